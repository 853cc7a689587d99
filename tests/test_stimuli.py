"""Stimuli against closed forms, dense supersampling with hard edges, and the symmetries of the plane."""

import math
from dataclasses import replace

import pytest
import torch

import convcircuits as cc
from convcircuits.values.stimulus import OWN
from convcircuits.zoo.stimuli import battery, draw

SIZE, CENTER = (48, 48), (23.3, 24.8)
SHAPES = {
    "line": cc.Stimulus("line", 20, width=2, orientation=31),
    "thin line": cc.Stimulus("line", 22, width=0.3, orientation=-70, contrast=-0.5),
    "arc": cc.Stimulus("arc", 20, width=2, orientation=130, turn=90),
    "long arc": cc.Stimulus("arc", 34, width=3, orientation=10, turn=330, offset=(1.2, -2.7)),
    "closed arc": cc.Stimulus("arc", 30, width=2.5, orientation=77, turn=360),
    "corner": cc.Stimulus("corner", 24, width=3, orientation=200, turn=120),
    "right corner": cc.Stimulus("corner", 24, width=1.5, orientation=45, turn=90, contrast=0.3, background=0.2),
    "circle": cc.Stimulus("circle", 13, width=2.5),
    "disc": cc.Stimulus("circle", 7, width=7, contrast=-0.2, offset=(0.5, 0.5)),
    "square": cc.Stimulus("square", 14, width=2, orientation=20),
    "grating": cc.Stimulus("grating", 21, orientation=33, frequency=0.17, phase=40),
    "slow grating": cc.Stimulus("grating", 21, orientation=90, frequency=0.02, phase=0, contrast=0.4),
    "fast grating": cc.Stimulus("grating", 21, orientation=60, frequency=0.45, phase=10),
}
STROKES = {name: shape for name, shape in SHAPES.items() if shape.kind != "grating"}
ORIENTED = {name: shape for name, shape in SHAPES.items() if shape.kind != "circle"}


def gray(stimulus, size=SIZE, center=CENTER):
    return draw([stimulus], size=size, center=center)[0, 0].double()


def corners_of(stimulus):
    """A corner as a polygon around its center: where the edges of its two arms meet, and its ends."""
    half, arm, turn = stimulus.width / 2, stimulus.size / 2, math.radians(stimulus.turn)
    points = []
    for side in (1, -1):  # the left edge from its beginning to its end, then the right edge back
        edge = []
        for sign in (-1, 1):
            angle = sign * turn / 2
            along, left = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
            end = [sign * arm * a + side * half * b for a, b in zip(along, left, strict=True)]
            edge.append(end)
        miter = [0.0, side * half / math.cos(turn / 2)]
        edge.insert(1, miter)
        points += edge if side == 1 else edge[::-1]
    return points


def inside_polygon(x, y, points):
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if y1 != y2:
            crosses = ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
            inside ^= crosses
    return inside


def height(stimulus, x, y):
    """1 inside of a stroke and 0 outside, or the height of a grating; x runs along the orientation, y to its left."""
    half = (stimulus.width or 0) / 2
    if stimulus.kind == "line":
        return ((y.abs() <= half) & (x.abs() <= stimulus.size / 2)).double()
    if stimulus.kind == "corner":
        return inside_polygon(x, y, corners_of(stimulus)).double()
    if stimulus.kind == "arc":
        radius = stimulus.size / math.radians(stimulus.turn)
        on_ring = (torch.hypot(x, y - radius) - radius).abs() <= half
        angle = torch.atan2(x, radius - y).abs()
        return (on_ring & (angle <= math.radians(stimulus.turn) / 2)).double()
    if stimulus.kind == "circle":
        return ((torch.hypot(x, y) - stimulus.size / 2).abs() <= half).double()
    if stimulus.kind == "square":
        furthest = torch.maximum(x.abs(), y.abs())
        return ((furthest - stimulus.size / 2).abs() <= half).double()
    window = torch.hypot(x, y) <= stimulus.size / 2
    wave = torch.cos(2 * math.pi * stimulus.frequency * y - math.radians(stimulus.phase))
    mean = wave[window].mean()
    return torch.where(window, (wave - mean) / (1 + mean.abs()), 0.0)


def densely(stimulus, fine=40):
    """The picture from many points of each pixel, each of which is either on the figure or not."""
    places = (torch.arange(SIZE[0] * fine, dtype=torch.float64) + 0.5) / fine
    right = (places - CENTER[1] - stimulus.offset[1])[None].expand(len(places), -1)
    up = (CENTER[0] + stimulus.offset[0] - places)[:, None].expand(-1, len(places))
    angle = math.radians(stimulus.orientation or 0)
    x, y = right * math.cos(angle) + up * math.sin(angle), up * math.cos(angle) - right * math.sin(angle)
    part = height(stimulus, x, y).reshape(SIZE[0], fine, SIZE[1], fine).mean((1, 3))
    return stimulus.background + stimulus.contrast * part


@pytest.mark.parametrize("name", SHAPES)
def test_pixels_are_the_mean_of_many_points_with_hard_edges(name):
    stimulus = SHAPES[name]
    error = (gray(stimulus) - densely(stimulus)).abs() / abs(stimulus.contrast)
    assert float(error.max()) < 0.015
    assert float(error.mean()) < 0.0005


@pytest.mark.parametrize("name", STROKES)
def test_the_area_of_a_stroke_is_the_length_of_its_midline_times_its_width(name):
    stimulus = STROKES[name]
    length = stimulus.size * {"circle": math.pi, "square": 4}.get(stimulus.kind, 1)
    area = (gray(stimulus) - stimulus.background).sum() / stimulus.contrast
    assert float(area) == pytest.approx(length * stimulus.width, rel=1e-3)


@pytest.mark.parametrize("phase", [0, 45, 90, 200])
@pytest.mark.parametrize("frequency", [0.02, 0.11, 0.5])
def test_the_mean_of_a_grating_is_the_background(phase, frequency):
    for orientation in (0, 30, 135):
        stimulus = cc.Stimulus("grating", 30, orientation=orientation, frequency=frequency, phase=phase, background=0.5)
        assert float(gray(stimulus).mean()) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("orientation", [0, 25, 90])
@pytest.mark.parametrize("frequency", [0.1, 0.49])
def test_pixels_inside_of_a_grating_are_means_of_the_wave_over_their_area(frequency, orientation):
    """At phase 90, the wave is odd, so that its mean over the window is 0."""
    stimulus = cc.Stimulus("grating", 40, orientation=orientation, frequency=frequency, phase=90)
    places = torch.arange(48, dtype=torch.float64) + 0.5 - 24
    angle = torch.tensor(math.radians(orientation), dtype=torch.float64)
    left = -places[:, None] * angle.cos() - places[None] * angle.sin()
    wave = torch.sin(2 * math.pi * frequency * left)
    wave *= torch.sinc(frequency * angle.cos()) * torch.sinc(frequency * angle.sin())
    inside = torch.hypot(places[:, None], places[None]) < 19
    found = (gray(stimulus, center=(24, 24)) - 0.5) / 0.5
    torch.testing.assert_close(found[inside], wave[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ORIENTED)
def test_turning_a_stimulus_by_a_right_angle_turns_the_picture(name):
    stimulus = ORIENTED[name]
    rows, columns = stimulus.offset
    turned = replace(stimulus, orientation=stimulus.orientation + 90, offset=(-columns, rows))
    middle = (24, 24)
    expected = torch.rot90(gray(stimulus, center=middle), 1, (0, 1))
    torch.testing.assert_close(gray(turned, center=middle), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_the_opposite_contrast_mirrors_gray_levels_in_the_background(name):
    stimulus = replace(SHAPES[name], background=0.5)
    opposite = replace(stimulus, contrast=-stimulus.contrast)
    torch.testing.assert_close(gray(stimulus) + gray(opposite), torch.ones(SIZE, dtype=torch.float64))


def test_a_grating_of_the_opposite_phase_has_the_opposite_polarity():
    stimulus = SHAPES["grating"]
    opposite = replace(stimulus, phase=stimulus.phase + 180)
    torch.testing.assert_close(gray(opposite), gray(replace(stimulus, contrast=-stimulus.contrast)))


def test_the_crests_of_a_grating_move_to_the_left_of_its_stripes():
    stimulus = cc.Stimulus("grating", 40, orientation=0, frequency=0.1, phase=90)
    column = gray(stimulus, center=(24, 24))[:, 24]
    assert int(column[16:25].argmax()) + 16 in (21, 20)  # a quarter of ten pixels above the center
    assert float(column[24:27].mean()) < 0.5 < float(column[20:24].mean())


@pytest.mark.parametrize("name", SHAPES)
def test_whole_pixels_of_offset_move_the_picture_and_so_does_the_center(name):
    stimulus = replace(SHAPES[name], offset=(0, 0))
    moved = gray(replace(stimulus, offset=(3, -2)))
    torch.testing.assert_close(moved, gray(stimulus).roll((3, -2), (0, 1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved, gray(stimulus, center=(CENTER[0] + 3, CENTER[1] - 2)), atol=1e-6, rtol=0)


def test_lines_arcs_and_corners_are_one_family():
    line = SHAPES["line"]
    for kind in ("arc", "corner"):
        torch.testing.assert_close(gray(replace(line, kind=kind, turn=0)), gray(line))
        nearly = replace(line, kind=kind, turn=1e-3)
        torch.testing.assert_close(gray(nearly), gray(line), atol=1e-3, rtol=0)


def test_a_closed_arc_is_a_circle_whose_edge_is_at_the_center():
    radius = 30 / (2 * math.pi)
    arc = cc.Stimulus("arc", 30, width=2, orientation=90, turn=360)
    circle = cc.Stimulus("circle", 2 * radius, width=2, offset=(0, -radius))  # left of upwards
    torch.testing.assert_close(gray(arc), gray(circle), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["arc", "corner"])
def test_at_orientation_0_arcs_and_corners_open_upwards(kind):
    picture = gray(cc.Stimulus(kind, 20, width=2, orientation=0, turn=120), center=(24, 24)) - 0.5
    assert float(picture[:20].sum()) > 0
    assert float(picture[27:].sum()) == 0
    torch.testing.assert_close(picture, picture.flip(1))


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_is_drawn_beyond_the_reach(name):
    stimulus = SHAPES[name]
    down, right = CENTER[0] + stimulus.offset[0], CENTER[1] + stimulus.offset[1]
    places = torch.arange(48) + 0.5
    distance = torch.hypot(places[:, None] - down, places[None] - right)
    picture = gray(stimulus)
    assert bool((picture[distance > stimulus.reach + 0.71] == torch.tensor(stimulus.background).double()).all())
    assert float((picture - stimulus.background).abs().max()) > 0.1 * abs(stimulus.contrast)


def test_what_lies_outside_of_the_picture_is_cut_off():
    for stimulus in SHAPES.values():
        whole = gray(stimulus, size=(80, 80), center=(40.2, 40.6))
        part = gray(stimulus, size=(44, 30), center=(40.2 - 36, 40.6 - 34))
        torch.testing.assert_close(part, whole[36:, 34:64])
    far = gray(SHAPES["circle"], center=(-30, 200))
    assert bool((far == 0.5).all())


def test_pictures_are_gray_float32_from_0_to_1_in_order():
    some = [replace(stimulus, contrast=sign * 0.5, background=0.5) for stimulus in SHAPES.values() for sign in (1, -1)]
    pictures = draw(some, size=(40, 36))
    assert (tuple(pictures.shape), pictures.dtype) == ((len(some), 3, 40, 36), torch.float32)
    assert (float(pictures.min()), float(pictures.max())) == pytest.approx((0, 1), abs=0.02)
    assert bool((pictures == pictures[:, :1]).all())
    for picture, stimulus in zip(pictures, some, strict=True):
        torch.testing.assert_close(picture[0].double(), gray(stimulus, size=(40, 36), center=(20, 18)))


def test_no_contrast_is_the_background():
    for stimulus in SHAPES.values():
        assert bool((draw([replace(stimulus, contrast=0)], size=(9, 9)) == stimulus.background).all())


# --- values


def test_a_stimulus_is_a_value_that_says_what_it_is():
    one = cc.Stimulus("arc", 20, width=2, orientation=45, turn=90, offset=[1, -2.5])
    assert one == cc.Stimulus("arc", 20.0, width=2.0, orientation=45.0, turn=90.0, offset=(1.0, -2.5))
    assert len({one, replace(one)}) == 1
    assert repr(cc.Stimulus("circle", 6.59734, width=1.5, offset=(3.2e-16, -0.0))) == (
        "Stimulus(circle, size=6.6, width=1.5, contrast=0.5)"
    )
    grating = cc.Stimulus("grating", 21, orientation=112.5, frequency=0.0625, phase=0, offset=(1e-17, 1.755))
    assert "orientation=112.5, frequency=0.0625, phase=0, contrast=0.5, offset=(0, 1.75)" in repr(grating)
    said = "Stimulus(arc, size=20, width=2, orientation=45, turn=90, contrast=0.5, offset=(1, -2.5))"
    assert repr(one) == said
    row = one.as_dict()
    assert (row["kind"], row["turn"], row["phase"], row["offset_columns"]) == ("arc", 90, None, -2.5)
    assert [list(stimulus.as_dict()) for stimulus in SHAPES.values()] == [list(row)] * len(SHAPES)


GOOD = {
    "line": {"width": 1, "orientation": 0},
    "arc": {"width": 1, "orientation": 0, "turn": 90},
    "corner": {"width": 1, "orientation": 0, "turn": 90},
    "circle": {"width": 1},
    "square": {"width": 1, "orientation": 0},
    "grating": {"orientation": 0, "frequency": 0.1, "phase": 0},
}


@pytest.mark.parametrize("kind", OWN)
def test_a_kind_has_its_own_parameters_and_no_other(kind):
    cc.Stimulus(kind, 10, **GOOD[kind])
    for name in GOOD[kind]:
        with pytest.raises(cc.ConvCircuitsError, match=f"A {kind} needs {name}"):
            cc.Stimulus(kind, 10, **{k: v for k, v in GOOD[kind].items() if k != name})
    for name in ("width", "orientation", "turn", "frequency", "phase"):
        if name not in GOOD[kind]:
            with pytest.raises(cc.ConvCircuitsError, match=f"A {kind} has no {name}"):
                cc.Stimulus(kind, 10, **GOOD[kind], **{name: 0.1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "ark"}, "Similar names: arc"),
        ({"size": 0}, "size of a stimulus must be a number above 0; got 0"),
        ({"size": math.nan}, "size"),
        ({"size": "big"}, "got 'big'"),
        ({"size": True}, "got True"),
        ({"width": 0}, "width of a stimulus must be a number above 0"),
        ({"width": -2}, "got -2"),
        ({"width": 26}, "its width is 26, at most 25.46 is possible"),
        ({"orientation": math.inf}, "orientation of a stimulus must be a number"),
        ({"turn": 400}, "turn of a stimulus must be from 0 to 360"),
        ({"turn": -1}, "got -1"),
        ({"kind": "corner", "turn": 170}, "from 0 to 150"),
        ({"contrast": 0.6}, "contrast 0.6 on a background of 0.5 would leave the gray levels"),
        ({"contrast": -0.3, "background": 0.2}, "would leave"),
        ({"contrast": 1.1}, "from -1 to 1"),
        ({"background": 2}, "from 0 to 1"),
        ({"offset": 3}, "offset must be .rows, columns."),
        ({"offset": (1, 2, 3)}, "offset must be"),
        ({"offset": (1, math.inf)}, "offset"),
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_an_error_that_says_the_range(change, said):
    given = {"kind": "arc", "size": 20, **GOOD["arc"], **change}
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Stimulus(**given)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("grating", {"frequency": 0}, "above 0 and at most 0.5"),
        ("grating", {"frequency": 0.6}, "at most 0.5"),
        ("grating", {"contrast": 0.5, "background": 0.6}, "would leave"),
        ("circle", {"width": 11}, "at most 10 is possible"),
        ("square", {"width": 10.5}, "inner edge"),
        ("corner", {"width": 11}, "inner edge"),
    ],
    ids=str,
)
def test_so_is_one_that_only_some_kinds_have(kind, change, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Stimulus(kind, 10, **GOOD[kind] | change)


def test_drawing_nothing_or_without_a_size_is_an_error():
    with pytest.raises(cc.ConvCircuitsError, match="no stimuli to draw"):
        draw([], size=(8, 8))
    with pytest.raises(cc.ConvCircuitsError, match="size of a picture must be a whole number from 1"):
        draw([SHAPES["line"]], size=(8, 0))


# --- the battery


@pytest.mark.parametrize("side", [6, 7, 10, 10.5, 11, 13, 14, 24, 40, 92, 300])
def test_a_battery_fits_and_matches_what_is_curved_with_what_is_straight(side):
    shown = battery(side)
    assert len(set(shown)) == len(shown)
    assert max(max(map(abs, stimulus.offset)) + stimulus.reach for stimulus in shown) <= side / 2
    ink = {kind: {(s.width, s.contrast, s.background) for s in shown if s.kind == kind} for kind in OWN}
    assert all(ink.values())
    assert ink["arc"] == ink["corner"] == ink["line"]
    assert ink["circle"] == ink["square"]
    places = {
        kind: {(s.size, s.width, *(round(o, 6) + 0.0 for o in s.offset)) for s in shown if s.kind == kind}
        for kind in OWN
    }
    assert places["arc"] == places["corner"] <= places["line"]
    assert {place[2:] for place in places["circle"]} >= {place[2:] for place in places["square"]}


def test_a_battery_has_the_contrast_and_the_background_that_it_is_given():
    shown = battery(40, contrast=0.2, background=0.3)
    assert {(abs(s.contrast), s.background) for s in shown} == {(0.2, 0.3)}
    assert {s.contrast for s in shown if s.kind == "grating"} == {0.2}
    with pytest.raises(cc.ConvCircuitsError, match="square of 6 pixels or more; got 5"):
        battery(5)
