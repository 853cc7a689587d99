"""Charts are drawn from tables: whole files that name every criterion, or an error and no file."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

import convcircuits as cc
import twofold
from convcircuits import charts
from convcircuits.charts import cross_chart, fidelity_chart, trajectory_chart, tuning_chart

CRITERIA = ["gauss_newton", "actgrad", "snip", "force", "magnitude", "random", "layer_random"]
COLUMNS = ("r2", "r2_interior", "r2_rectified", "pearson")
BESIDE = ("r2_average_map", "r2_average_map_interior", "r2_random", "r2_random_interior")


def table(criteria=CRITERIA, densities=(0.3, 0.01, 0.1), **figures):
    return [
        {"criterion": c, "density": d} | dict.fromkeys(COLUMNS + BESIDE, d - 0.1 * i) | figures
        for i, c in enumerate(criteria)
        for d in densities
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, as matplotlib holds them."""
    from matplotlib.figure import Figure

    figures, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), real(self, *a, **k)))
    return figures


def svg_text(path):
    """The text of an SVG; matplotlib writes letters as paths, and each text in a comment before them."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.parse(path, parser).getroot()
    assert root.tag.endswith("svg")
    return [(element.text or "").strip() for element in root.iter()]


def test_a_png_opens_and_is_not_blank(tmp_path):
    fidelity_chart(table(), tmp_path / "a.png", title="T")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_an_svg_is_xml_that_names_every_criterion_the_title_and_the_densities(tmp_path):
    fidelity_chart(table(), tmp_path / "a.svg", title="What it shows")
    text = svg_text(tmp_path / "a.svg")
    titles = [
        "R² (cut off below -0.5)",
        "R² on the interior, away from padding",
        "R² of the rectified map",
        "Pearson r",
    ]
    for name in [*CRITERIA, *titles, "What it shows", "30 %", "10 %", "1 %"]:
        assert name in text, name


@pytest.mark.parametrize(("kind", "heading"), [("inside", "interior, away"), ("central", "central positions")])
def test_the_panel_of_the_interior_says_what_it_is_of(kind, heading, tmp_path, drawn):
    fidelity_chart([row | {"interior": kind} for row in table()], tmp_path / "a.svg", title="T")
    assert heading in drawn[0].axes[1].get_title()


def test_a_pdf_is_a_pdf(tmp_path):
    fidelity_chart(table(), tmp_path / "a.pdf", title="T")
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")


def test_each_panel_draws_its_column_sorted_by_density(tmp_path, drawn):
    rows = table()
    fidelity_chart(rows, tmp_path / "a.png", title="T")
    (figure,) = drawn
    for axis, column in zip(figure.axes, COLUMNS, strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        for criterion in CRITERIA:
            points = sorted((row["density"], row[column]) for row in rows if row["criterion"] == criterion)
            assert list(zip(*lines[criterion].get_data(), strict=True)) == points


@pytest.mark.parametrize("count", [1, 3, 7])
def test_criteria_are_told_apart(count, tmp_path, drawn):
    fidelity_chart(table([*map(str, range(count)), "magnitude", "random"]), tmp_path / "a.png", title="T")
    named = [line for line in drawn[0].axes[0].get_lines() if not line.get_label().startswith("_")]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in named}
    assert len(looks) == len(named) == count + 2 + 2  # and two baselines


def test_baselines_stand_beside_r2_over_all_and_on_the_interior(tmp_path, drawn):
    rows = table()
    for i, row in enumerate(rows):
        row |= {"r2_average_map": 0.5, "r2_average_map_interior": 0.25}
        row |= {"r2_random": 0.01 * i, "r2_random_interior": None if row["density"] == 0.1 else -0.01 * i}
    fidelity_chart(rows, tmp_path / "a.svg", title="T")
    lines = [{ln.get_label(): ln for ln in axis.get_lines()} for axis in drawn[0].axes]
    for panel, average, end in ((0, 0.5, ""), (1, 0.25, "_interior")):
        assert list(lines[panel]["average training map"].get_ydata()) == [average] * 3
        points = {}
        for row in rows:
            if row[f"r2_random{end}"] is not None:
                points.setdefault(row["density"], []).append(row[f"r2_random{end}"])
        highest = sorted((density, max(values)) for density, values in points.items())
        shown = lines[panel]["best random circuit of equal size"].get_data()
        assert list(zip(*shown, strict=True)) == highest
    assert not {"average training map", "best random circuit of equal size"} & (set(lines[2]) | set(lines[3]))
    assert {"average training map", "best random circuit of equal size"} <= set(svg_text(tmp_path / "a.svg"))


def test_a_baseline_that_was_not_measured_is_not_drawn(tmp_path, drawn):
    fidelity_chart(table(r2_average_map=None, r2_average_map_interior=None), tmp_path / "a.svg", title="T")
    assert "average training map" not in svg_text(tmp_path / "a.svg")


def test_undefined_figures_leave_gaps(tmp_path, drawn):
    rows = table()
    for row in rows:
        if row["density"] == 0.01:
            row["pearson"] = None
        if row["criterion"] == "random":
            row["r2"] = None
    fidelity_chart(rows, tmp_path / "a.svg", title="T")
    r2, _, _, pearson = ({ln.get_label(): list(ln.get_xdata()) for ln in axis.get_lines()} for axis in drawn[0].axes)
    assert all(pearson[c] == [0.1, 0.3] for c in CRITERIA)
    assert r2["random"] == []
    assert r2["snip"] == [0.01, 0.1, 0.3]
    assert set(CRITERIA) <= set(svg_text(tmp_path / "a.svg"))


def test_a_chart_of_nothing_but_undefined_figures_is_drawn(tmp_path):
    fidelity_chart(table(**dict.fromkeys(COLUMNS + BESIDE)), tmp_path / "a.svg", title="T")
    assert set(CRITERIA) <= set(svg_text(tmp_path / "a.svg"))


def test_one_density_is_enough(tmp_path):
    fidelity_chart(table(densities=[0.05]), tmp_path / "a.svg", title="T")
    assert "5 %" in svg_text(tmp_path / "a.svg")


def test_a_file_of_that_name_is_replaced(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    fidelity_chart(table(), path, title="T")
    with Image.open(path) as image:
        image.verify()


@pytest.mark.parametrize("target", ["none/a.png", "file/a.png", "folder.png"])
def test_a_target_that_cannot_be_written_is_an_error_that_leaves_nothing(target, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(cc.ConvCircuitsError, match="cannot be written"):
        fidelity_chart(table(), tmp_path / target, title="T")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.xyz", "a"])
def test_an_unknown_kind_of_file_is_an_error_that_leaves_nothing(name, tmp_path):
    with pytest.raises(cc.ConvCircuitsError):
        fidelity_chart(table(), tmp_path / name, title="T")
    assert not list(tmp_path.iterdir())


def test_a_failure_while_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(self, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(KeyboardInterrupt):
        fidelity_chart(table(), path, title="T")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_without_matplotlib_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(cc.ConvCircuitsError, match="pip install"):
        fidelity_chart(table(), tmp_path / "a.png", title="T")
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path):
    import matplotlib

    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    fidelity_chart(table(), tmp_path / "a.png", title="T")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


# --- tuning curves

CURVES = [
    {"feature": feature, "kind": kind, "parameter": parameter, "value": value, "relative": sign * value - 3}
    for feature, sign in (("conv:1", 1), ("conv:2", -1))
    for kind, parameters in (("line", ("size", "orientation")), ("grating", ("frequency",)))
    for parameter in parameters
    for value in (0, 5, 9)
]


def shown(figure):
    """The panels with curves: (kind, parameter) -> the axis."""
    rows, columns = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()
    lines = [figure.axes[n * columns : (n + 1) * columns] for n in range(rows)]
    return {(line[0].get_title(), axis.get_xlabel()): axis for line in lines for axis in line[1:] if axis.axison}


def test_each_kind_and_parameter_has_a_panel_with_the_curve_of_each_feature(tmp_path, drawn):
    tuning_chart(CURVES, tmp_path / "a.svg", title="How it is tuned")
    panels = shown(drawn[0])
    assert set(panels) == {
        ("line", "size (pixels)"),
        ("line", "orientation (degrees)"),
        ("grating", "cycles per pixel"),
    }
    for axis in panels.values():
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert lines["conv:1"].get_xydata().tolist() == [[0, -3], [5, 2], [9, 6]]
        assert lines["conv:2"].get_xydata().tolist() == [[0, -3], [5, -8], [9, -12]]
    assert len({axis.get_ylim() for axis in panels.values()}) == 1
    assert {"How it is tuned", "conv:1", "conv:2", "line", "grating"} <= set(svg_text(tmp_path / "a.svg"))


def test_one_feature_needs_no_legend_and_may_have_gaps(tmp_path, drawn):
    rows = [row for row in CURVES if row["feature"] == "conv:1" and (row["kind"], row["value"]) != ("grating", 5)]
    tuning_chart(rows, tmp_path / "a.png", title="T")
    assert not drawn[0].legends
    axis = shown(drawn[0])["grating", "cycles per pixel"]
    assert axis.get_lines()[0].get_xdata().tolist() == [0, 9]


def test_pictures_stand_before_the_curves_of_their_kind(tmp_path, drawn):
    tuning_chart(CURVES, tmp_path / "a.png", title="T", pictures={"line": [[0, 0.5], [1, 0.25]]})
    images = {axis.get_title(): [image.get_array().tolist() for image in axis.get_images()] for axis in drawn[0].axes}
    assert images["line"] == [[[0, 0.5], [1, 0.25]]]
    assert images["grating"] == []
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 500


def test_a_unit_that_answers_to_nothing_has_a_chart(tmp_path):
    tuning_chart([row | {"relative": 0.0} for row in CURVES], tmp_path / "a.svg", title="T")
    assert "conv:2" in svg_text(tmp_path / "a.svg")


def test_a_chart_of_curves_is_written_whole_or_not_at_all(tmp_path):
    for name, said in (("a.gif", "must be a .png, .svg or .pdf"), ("none/a.png", "cannot be written")):
        with pytest.raises(cc.ConvCircuitsError, match=said):
            tuning_chart(CURVES, tmp_path / name, title="T")
    assert not list(tmp_path.iterdir())


def test_charts_know_tables_only():
    source = Path(charts.__file__).read_text()
    assert "torch" not in source
    assert "numpy" not in source


# --- the cross-test


def cross(groups=("red", "blue"), densities=(0.5, 0.1)):
    """A cross-test in which circuits err by .1 on their own groups and by .8 on others."""
    return {
        "feature": "2:0@max",
        "verdict": "selective",
        "groups": dict.fromkeys(groups, 5),
        "chosen": 1,
        "selectivity": [{"density": density} for density in densities],
        "rows": [
            {"circuit": a, "group": b, "size": size, "density": density, "error": 0.1 if a == b else 0.8}
            for size, density in enumerate(densities)
            for a in groups
            for b in groups
        ],
    }


def test_a_cross_test_shows_a_curve_of_each_circuit_on_each_group_and_the_matrix(tmp_path, drawn):
    cross_chart(cross(("a", "b", "c")), tmp_path / "cross.svg")
    (figure,) = drawn
    *panels, matrix = figure.axes
    assert [panel.get_title() for panel in panels] == ["on images of a", "on images of b", "on images of c"]
    for own, panel in enumerate(panels):
        lines = panel.get_lines()[:3]
        assert [list(line.get_ydata()) for line in lines] == [[0.1] * 2 if n == own else [0.8] * 2 for n in range(3)]
        assert all(list(line.get_xdata()) == [0.5, 0.1] for line in lines)
        assert [line.get_linestyle() for line in lines] == ["-" if n == own else "--" for n in range(3)]
    shown = [float(text.get_text()) for text in matrix.texts]
    assert shown == [0.1 if a == b else 0.8 for a in range(3) for b in range(3)]
    assert matrix.get_title() == "at 10 % of the kernels"
    text = svg_text(tmp_path / "cross.svg")
    assert {"2:0@max: selective", "circuit of a", "circuit of c"} <= set(text)


def test_a_real_cross_test_can_be_drawn(tmp_path):
    made, blue = twofold.images(12)
    groups = {"red": made[~blue], "blue": made[blue]}
    report = cc.cross(twofold.net(), {name: twofold.circuit(name) for name in groups}, groups)
    cross_chart(report.as_dict(), tmp_path / "cross.png")
    with Image.open(tmp_path / "cross.png") as image:
        assert image.width > 1000
    with pytest.raises(cc.ConvCircuitsError, match=r"a \.png, \.svg or \.pdf file"):
        cross_chart(report.as_dict(), tmp_path / "cross.gif")


@pytest.mark.parametrize("grouped", [True, False])
def test_a_trajectory_has_a_panel_for_each_layer_with_every_image_in_it(grouped, tmp_path, drawn):
    made, blue = twofold.images(12)
    groups = [("blue" if b else "red") if n else None for n, b in enumerate(blue)] if grouped else None
    found = cc.trajectory(twofold.net(), twofold.FEATURE, made, groups=groups)
    trajectory_chart(found.as_dict(), tmp_path / "a.svg", title="What it shows")
    (figure,) = drawn
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["0", "2"]
    for panel, points in zip(panels, found.points.tolist(), strict=True):
        shown = [point for part in panel.collections for point in part.get_offsets().tolist()]
        assert sorted(shown) == sorted(points)
        assert len(panel.collections) == (3 if grouped else 1)
        assert panel.get_xlim() == panel.get_ylim() == panels[0].get_xlim()
    assert panels[0].get_xlabel() == f"{found.explained[0]:.0%} of variance"
    assert panels[1].get_xlabel().endswith(f", disparity {found.disparity[1]:.2f}")
    assert {"What it shows", *(["red", "blue", "no group"] if grouped else ["response"])} <= set(
        svg_text(tmp_path / "a.svg")
    )
    with pytest.raises(cc.ConvCircuitsError, match=r"a \.png, \.svg or \.pdf file"):
        trajectory_chart(found.as_dict(), tmp_path / "a.gif", title="")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cats", "cats"),
        ("$a_1$ and $b$", "$a_1$ and $b$"),
        ("g\u00e2teau \u03b1", "g\u00e2teau \u03b1"),
        ("\u732b\ue000", r"\u732b\ue000"),  # no font of the tests' has these
    ],
)
def test_a_name_is_shown_as_it_is_or_escaped(name, shown, tmp_path, drawn, monkeypatch):
    """A letter without a glyph is a warning of matplotlib's, and warnings are errors here."""
    monkeypatch.setattr(charts, "_MORE_FONTS", ("A font that is not installed",))
    fidelity_chart(table(), tmp_path / "a.png", title=f"{name} of a net")
    (figure,) = drawn
    assert figure.get_suptitle() == f"{shown} of a net"


def test_letters_are_drawn_in_the_first_font_that_has_them(tmp_path, drawn, monkeypatch):
    from matplotlib.font_manager import findfont, get_font

    letter = chr(
        min(set(get_font(findfont("STIXGeneral")).get_charmap()) - set(get_font(findfont("DejaVu Sans")).get_charmap()))
    )
    monkeypatch.setattr(charts, "_MORE_FONTS", ("A font that is not installed", "STIXGeneral"))
    fidelity_chart(table(), tmp_path / "a.png", title=f"{letter} of a net")
    (figure,) = drawn
    assert figure.get_suptitle() == f"{letter} of a net"
    assert figure._suptitle.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
