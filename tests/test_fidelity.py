"""The benchmark of small circuits: its figures against closed forms, and that it goes on where it stood."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import convcircuits as cc
import oracles
from nets import NETS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


page = loaded("fidelity_page")
fidelity = loaded("fidelity")
ONE = torch.ones(1, 2, dtype=torch.float64)


def curve(r2, shares):
    """A curve with these R2 in all places: two photographs of values 1 and -1, each at 5 positions."""
    full = torch.tensor([[[5.0, 5.0, 5.0]] * 3, [[5.0, -5.0, 5.0]] * 3], dtype=torch.float64)
    errors = torch.tensor([[[10 * (1 - one) / 2] * 3] * 2 for one in r2], dtype=torch.float64)
    return page.Curve(shares, full, errors, ["a", "b"])


def test_r2_is_that_of_the_values():
    generator = torch.Generator().manual_seed(0)
    values, other = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    parts = torch.stack([torch.full((3,), 7.0, dtype=torch.float64), values.sum(1), values.square().sum(1)], 1)
    errors = (other - values).square().sum(1)
    made = page.Curve([0.1], parts[:, None].expand(3, 3, 3), errors[None, :, None].expand(1, 3, 3), ["a", "b", "c"])
    for weights in ([1, 1, 1], [2, 0, 1]):
        whole, wrong = (
            torch.cat([x[n] for n, times in enumerate(weights) for _ in range(times)]) for x in (values, other)
        )
        expected = 1 - (wrong - whole).square().sum() / (whole - whole.mean()).square().sum()
        assert float(made.r2(torch.tensor([weights]).double(), page.INSIDE)) == pytest.approx(float(expected))


def test_the_kernels_needed_are_interpolated_and_never_reached_is_said():
    assert float(curve([0.95, 0.85, 0.5], [0.4, 0.2, 0.1]).needed(ONE, 0.9)) == pytest.approx(math.sqrt(0.4 * 0.2))
    assert float(curve([0.95, 0.85, 0.99], [0.4, 0.2, 0.1]).needed(ONE, 0.9)) == pytest.approx(math.sqrt(0.4 * 0.2))
    assert float(curve([0.95, 0.92], [0.4, 0.2]).needed(ONE, 0.9)) == 0.2
    assert math.isnan(float(curve([0.89, 0.95], [0.4, 0.2]).needed(ONE, 0.9)))


def test_what_was_not_reached_is_no_more_than_a_bound():
    unit = ("net", "layer", 0)
    curves = {
        "snip, readout": {unit: curve([0.7, 0.6], [0.5, 0.25])},
        "progressive": {unit: curve([0.95, 0.9], [0.5, 0.25])},
        "learned": {unit: curve([0.85, 0.82], [0.2, 0.1])},
        "elsewhere": {("net", "layer", 1): curve([0.95], [0.1])},
    }

    def shown(curves):  # without the intervals: of two photographs, one drawn twice does not vary
        lines = page._needed_by(curves, [unit]).splitlines()[2:]
        return {name: re.sub(r" \([^)]*\)", "", rest) for name, rest in (line[2:].split(" | ", 1) for line in lines)}

    rows = shown(curves)
    assert rows["snip, readout"] == "> 50 % | 0 of 1 | 0.5 | > 50 % | 0 of 1 | 0.5 |"
    assert rows["progressive"].startswith("25 % | 1 of 1 | 2.0 | ")
    assert rows["learned"] == "> 20 % | 0 of 1 | 0.5 | 10 % | 1 of 1 | 5.0 |"
    assert "elsewhere" not in rows
    alone = shown({"progressive": curves["progressive"]})
    assert alone["progressive"].startswith("25 % | 1 of 1 | - | ")  # nothing published to compare with


def test_r2_at_a_size_is_interpolated_and_unknown_outside():
    made = curve([0.9, 0.5], [0.4, 0.1])
    assert made.at(0.2, page.INSIDE, ONE) == pytest.approx(0.7)
    assert made.at(0.4, page.INSIDE, ONE) == pytest.approx(0.9)
    assert math.isnan(made.at(0.05, page.INSIDE, ONE))


def test_what_training_adds_is_told_of_the_units_that_both_were_run_on():
    shares = [0.2, 0.05]
    curves = {
        "progressive": {
            ("net", "a", 1): curve([0.9, 0.5], shares),
            ("net", "a", 2): curve([0.8, 0.3], [0.2, 0.01]),  # smaller than its trained circuits
            ("net", "a", 3): curve([0.1, 0.1], shares),  # not trained
            ("net", "b", 1): curve([0.7, 0.1], shares),  # nor is any unit of this layer
        },
        "learned": {("net", "a", 1): curve([0.92, 0.6], shares), ("net", "a", 2): curve([0.86, 0.5], shares)},
    }
    between = 0.8 - 0.5 * math.log(0.2 / 0.05) / math.log(0.2 / 0.01)
    (row,) = [line.split(" | ") for line in page._trained(curves).splitlines() if line.startswith("| net")]
    assert row[:2] == ["| net `a`", "1, 2"]
    assert row[2] == ".85 / .85 to .89 / .89"  # at a fifth: medians of .9 and .8, and of .92 and .86
    assert row[4] == "{0} / {0} to .55 / .55".format(f"{(0.5 + between) / 2:.2f}".lstrip("0"))  # at a twentieth
    assert row[5:7] == ["-", "-"]  # at a fiftieth, which only one of the four reaches
    assert row[-1] == ".40 / .40 to .55 / .55 |"
    assert page._trained({"progressive": curves["progressive"]}) == ""


def test_a_unit_that_never_reaches_it_counts_as_above_all_others():
    median = page._median
    assert float(median(torch.tensor([0.1, math.inf, 0.2]).double())) == pytest.approx(0.2)
    assert math.isinf(float(median(torch.tensor([0.1, math.inf, math.inf]).double())))
    assert float(median(torch.tensor([-1, 0.1, 0.3, math.inf, -1]).double())) == pytest.approx(0.3)  # -1: not measured
    assert math.isinf(float(median(torch.tensor([0.1, math.inf]).double())))


def test_the_papers_protocol_is_a_mean_over_units():
    def record(unit, r):
        figures = {"snip": [[r, 0.5], [math.nan, -2.0]]}
        return {"net": "net", "layer": "layer", "unit": unit, "densities": [0.5, 0.001], "figures": figures}

    lines = page._paper([record(0, 0.9), record(1, 0.7)]).splitlines()
    assert lines[-3] == "| criterion | units | 50 % | 0.1 % |"
    assert lines[-1] == "| snip | 2 | .80 / .50 | .00 / -2.00 |"
    assert page._paper([]) == ""
    more = record(2, 0.5)
    more["figures"] |= {"progressive": [[0.9, 0.8], [0.6, 0.4]]}  # which older records do not have
    for records in ([record(0, 0.9), more], [more, record(0, 0.9)]):
        lines = page._paper(records).splitlines()
        assert lines[-2:] == ["| snip | 2 | .70 / .50 | .00 / -2.00 |", "| progressive | 1 | .90 / .80 | .60 / .40 |"]


def test_the_papers_protocol_measures_every_criterion_at_every_density(monkeypatch):
    monkeypatch.setattr(fidelity, "PAPER", (0.9, 0.5, 0.2))
    case = NETS["plain"]
    images, (layer, unit) = case.images(6), case.features[-1]
    data = fidelity.Data(None, SimpleNamespace(model=case.build()), images, images, [], [])
    feature = cc.Feature(layer, unit)
    found = fidelity.paper(data, feature)
    assert list(found["figures"]) == ["actgrad", "snip", "force", "progressive"]
    full = oracles.full_map(data.model, layer, unit, images).flatten()
    scores = cc.score(data.model, feature, images, criterion="snip")
    path = cc.find_path(data.model, feature, images, density=[0.9, 0.5, 0.2])
    for n, density in enumerate(found["densities"]):
        count = round(density * path[0].relevant)
        (descended,) = (one for one in path if len(one) == count)
        for name, circuit in (("snip", cc.prune(scores, density=density)), ("progressive", descended)):
            made = cc.activations(data.model, feature, images, circuit=circuit, effective=False).flatten()
            r = float(torch.corrcoef(torch.stack([full, made]))[0, 1])
            r2 = float(1 - (made - full).square().sum() / (full - full.mean()).square().sum())
            assert found["figures"][name][n] == pytest.approx([r, r2], rel=1e-6)


def drawable(run, controls, margin, provenance, draws=1, noise=0.1, verdict="found"):
    """Return the table of one circuit of R2 .7 inside."""
    figures = {name: {"name": name, "r2": 0.7, "r2_interior": r2, "r2_rectified": 0.5} for name, r2 in controls.items()}
    for one in figures.values():
        one["draws"] = [one["r2_interior"]] * draws
    circuit = {"r2": 0.7, "r2_interior": 0.7, "r2_rectified": 0.5}
    report = {"circuit": circuit, "controls": [*figures.values()], "margin": margin, "noise": noise, "verdict": verdict}
    row = {"kernels": 5, "relevant": 100, "constants": 9}
    unit = {"net": "net", "layer": "layer", "unit": {"unit": 3}, "run": run, "rows": [row]}
    return page._drawable([unit | {"controls": report | {"provenance": provenance}}])


def test_each_circuit_has_a_row_of_its_controls():
    made = {"treated": {"trained": {"starts": ["refit", "moments"]}}}
    said = drawable("learned", {"relabelled": 0.3, "refound": 0.5, "refitted": 0.65, "average_map": 0.0}, 0.2, made)
    assert "| .30 | - | .50 | - | .65 | .00 | .20 (.10) | found |" in said
    assert "*Not decided*" not in said
    assert "| .50 (3) |" in drawable("learned", {"refound": 0.5, "refitted": 0.65}, 0.2, made, draws=3)
    assert "| - (.10) | found |" in drawable("learned", {"relabelled": None, "refitted": 0.65}, None, made)
    said = drawable("learned", {"relabelled": 0.3}, 0.4, made, noise=None, verdict="not decided")
    assert "| .40 (-) | not decided |" in said
    assert "*Not decided*" in said
    assert "| - | - |" in said  # of those in short that were decided


def test_drawable_circuits_are_also_told_in_short():
    def record(unit, run, inside, refound):
        refound = [] if refound is None else [{"name": "refound", "r2": 0.7, "r2_interior": refound, "draws": [0.0]}]
        average_map = {"name": "average_map", "r2": 0.0, "r2_interior": 0.0, "draws": [0.0]}
        circuit = {"r2": 0.7, "r2_interior": inside, "r2_rectified": None if unit else 0.4}
        margin = inside - (refound[0]["r2_interior"] if refound else 0)
        report = {"circuit": circuit, "controls": [*refound, average_map], "margin": margin, "noise": 0.2}
        report |= {"verdict": "found" if margin > 0.2 else "not found", "provenance": {}}
        row = {"kernels": 10 * unit, "relevant": 100, "constants": 9}
        about = {"net": "net", "layer": "layer", "unit": {"unit": unit}, "run": run, "rows": [row]}
        return about | {"controls": report}

    records = [record(0, "progressive", 0.5, 0.4), record(1, "progressive", 0.7, 0.3), record(2, "progressive", 0.8, 0)]
    records += [record(1, "learned", 0.8, None), record(2, "learned", 0.6, 0.1)]
    said = page._drawable(records)
    assert (
        "| net `layer` | progressive | 3 | 10 | **.70 (.50 to .80)** | .40 | .30 (.00 to .40) | .40 (.10 to .80) "
        "| 2 of 3 | - |" in said
    )
    assert (
        "| net `layer` | learned | 2 | 15 | **.70 (.60 to .80)** | - | .10, of 1 | .65 (.50 to .80) | 1 of 1 | 1 of 1 |"
        in said
    )


def test_verdicts_beside_controls_that_could_not_be_trained_are_said_to_be_old():

    def text(run, treated, made):
        said = drawable(
            run, {"average_map": 0.2}, 0.5, {} if treated is None else {"treated": treated, "circuit": made}
        )
        assert "| .50 (.10) |" in said
        return said

    polished = {"calibration": {"trained": {"polish": 9}, "positive": True}}
    for run, treated, made, old in (
        ("progressive", None, None, False),
        ("learned", None, None, True),
        ("learned", {"trained": {"starts": ["refit", "moments"]}}, None, False),
        ("learned", {"trained": {"starts": ["refit", "moments"]}}, polished, False),
    ):
        said = text(run, treated, made)
        assert ("| learned, unpolished, any sign |" in said) == (run == "learned" and made is None)
        assert ("*Any sign*" in said) == (run == "learned" and made is None)
        assert made is None or "| learned |" in said
        assert ("*Unpolished*" in said) == (run == "learned" and made is None)
        assert ("| (found) |" in said, "of older records" in said) == (old, old)
        assert ("| found |" in said) != old


def test_stored_circuits_are_those_of_their_records():
    files = sorted((BENCHMARKS / "records" / "fidelity").rglob("*.safetensors.gz"))
    assert files
    for file in files:
        circuit = fidelity.stored(file)
        record = json.loads(file.with_name(file.name.replace(".safetensors.gz", ".json")).read_text())
        assert str(circuit.feature) == f"{record['layer']}:{record['unit']['unit']}"
        assert (len(circuit), circuit.constants) == (record["rows"][-1]["kernels"], record["rows"][-1]["constants"])
        assert circuit.provenance["cost"] == record["rows"][-1]["cost"]
        assert record["controls"]["provenance"]["circuit"] == json.loads(json.dumps(dict(circuit.provenance)))


@pytest.mark.zoo
@pytest.mark.slow
def test_the_quick_benchmark_runs_and_goes_on_where_it_stood(tmp_path, monkeypatch, capsys):
    command = [BENCHMARKS / "fidelity.py", "--quick", "--folder", tmp_path / "measured"]

    def run(*options):  # a process of its own would import torch and compile loops anew
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*command, *options)])
        fidelity.main()
        return capsys.readouterr().out

    first = [sys.executable, *command, "--out", tmp_path / "page.md"]
    told = subprocess.run(first, capture_output=True, text=True, check=True).stdout
    text = (tmp_path / "page.md").read_text()
    for way in ("snip", "snip, readout", "snip, refitted", "progressive"):
        assert f"\n| {way} | " in text
    assert "What this shows" not in text  # which is of the whole benchmark
    files = sorted((tmp_path / "measured").rglob("*.json"))
    assert [file.stem.rpartition("-")[2] for file in files] == ["progressive", "snip"]
    assert len(told.splitlines()) == 2
    assert run("--out", tmp_path / "again.md") == ""
    assert (tmp_path / "again.md").read_text() == text
    record = json.loads(files[0].read_text())
    assert not set(record["train"]) & set(record["test"])
    row = next(line for line in text.splitlines() if f":{record['unit']['unit']} | progressive" in line)
    assert f"**{page._figure(record['controls']['circuit']['r2_interior'])}**" in row
    figures = {one["name"]: page._figure(one["r2_interior"]) for one in record["controls"]["controls"]}
    assert row.endswith(f" {figures['without_circuit']} / {figures['without_random']} |")
    inside = curve_of_last(record)
    assert inside == pytest.approx(record["controls"]["circuit"]["r2_interior"], abs=1e-5)
    files[0].write_text(json.dumps(record | {"controls": None}))  # measured again on the circuit that was stored
    controls = ["--controls", "--out", tmp_path / "again.md"]
    run(*controls)
    assert json.loads(files[0].read_text()) == record
    files[0].with_suffix(".safetensors.gz").unlink()
    assert f"no circuit is stored; delete {files[0].name}" in run(*controls)
    assert (
        run(*controls, "--unit", "999") == f"vgg16_hed features.5 has units [{record['unit']['unit']}], none of [999]\n"
    )
    assert json.loads(files[0].read_text()) == record


def curve_of_last(record):
    """R2 inside of the last circuit, from the sums that were written."""
    full, errors = (torch.tensor(record[name], dtype=torch.float64) for name in ("full", "errors"))
    made = page.Curve([1.0], full, errors[-1:], record["test"])
    return float(made.r2(torch.ones(1, len(full), dtype=torch.float64), page.INSIDE))
