"""The benchmark of atlases: its statistics against slower ones, and that its page takes every number from a record."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import convcircuits as cc
from convcircuits.atlases.store import Row

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

torch.set_num_threads(1)


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and one imports the other
    spec.loader.exec_module(module)
    return module


page = loaded("atlas_findings_page")
findings = loaded("atlas_findings")


def columns(count, rows, seed=0):
    dice = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, generator=dice, dtype=torch.float64)
    return [common + torch.randn(rows, generator=dice, dtype=torch.float64) for _ in range(count)]


def test_units_drawn_again_count_as_often_as_they_are_drawn():
    draws, (one, other) = findings.Draws(30, times=4), columns(2, 30)
    found = draws.rank_correlations(one, other)
    assert found[0, 0, 1] == pytest.approx(spearmanr(one, other).statistic)
    ranks = [findings._ranks(column).numpy() for column in (one, other)]
    for n, counts in enumerate(draws.counts):
        assert counts.sum() == 30
        often = [np.repeat(some, counts.long().numpy()) for some in ranks]
        assert found[n, 0, 1] == pytest.approx(np.corrcoef(*often)[0, 1])
        assert draws.of_units(one)[n] == pytest.approx(np.repeat(one.numpy(), counts.long().numpy()).mean())


def test_a_pair_counts_as_often_as_both_of_its_units():
    tables = [column.reshape(12, 12) for column in columns(2, 144)]
    tables = [table + table.T for table in tables]
    draws = findings.Draws(12, times=60)
    found = draws.pair_correlations(*tables)
    pairs = list(itertools.combinations(range(12), 2))
    ranks = [findings._ranks(torch.stack([table[pair] for pair in pairs])).numpy() for table in tables]
    assert found.shape == (61, 2, 2)
    for n in (0, 1, 60):
        often = [int(draws.counts[n, a] * draws.counts[n, b]) for a, b in pairs]
        assert found[n, 0, 1] == pytest.approx(np.corrcoef(*(np.repeat(some, often) for some in ranks))[0, 1])


def test_a_partial_correlation_is_that_of_what_the_others_leave():
    given = torch.stack(columns(4, 50), 1).numpy()
    given = given - given.mean(0)
    left = [column - given[:, 2:] @ np.linalg.lstsq(given[:, 2:], column)[0] for column in given.T[:2]]
    table = torch.from_numpy(np.corrcoef(given.T))[None]
    assert findings.partial(table)[0] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_is_left_of_maps_has_nothing_of_the_map_common_to_all():
    maps = torch.stack(columns(5, 40))
    common = findings._common(maps)
    left = findings._without(maps, common)
    torch.testing.assert_close(left @ common, torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(findings._without(common, common), torch.zeros_like(common), atol=1e-9, rtol=0)
    assert findings._r2(maps[0], maps[0]) == 1
    assert findings._r2(maps[0], maps[0].mean()) == pytest.approx(0)


def planted(units, seed):
    """Circuits of 10 % of the kernels, drawn at random, and the unit's own layer."""
    dice, shapes = torch.Generator().manual_seed(seed), {"a": (10, 8), "own": (units, 10)}
    every = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    rows = {}
    for unit in range(units):
        kept = {name: torch.rand(shape, generator=dice) < 0.2 for name, shape in shapes.items()}
        rows[unit] = Row(unit, "f", "", {}, 0.0, kept, every)
    asked = {"layer": "own", "criterion": "planted"}
    return cc.Atlas(asked, shapes, {unit: (Path(), row) for unit, row in rows.items()}), rows


def test_circuits_of_two_sets_are_compared_without_the_units_own_layer():
    atlas, _ = planted(6, 0)
    _, again = planted(6, 1)
    crossed = findings.joined(atlas, again).overlap()[:6, 6:]
    for u, v in itertools.product(range(6), repeat=2):
        one, other = atlas.rows_by_unit[u].kept["a"], again[v].kept["a"]
        sizes = float(one.sum()), float(other.sum())
        chance = sizes[0] * sizes[1] / one.numel()
        iou, expected = float((one & other).sum()) / float((one | other).sum()), chance / (sum(sizes) - chance)
        assert crossed[u, v] == pytest.approx((iou - expected) / (1 - expected))
    figures, (row,) = findings.of_layers(findings.joined(atlas, atlas.rows_by_unit), 6)
    assert figures["same_unit"][0] == pytest.approx(1)
    assert figures["named"][0] == row["named"][0] == 1
    assert abs(figures["others_unit"][0]) < 0.1


def test_a_circuit_keeps_the_largest():
    kept = findings._largest(torch.tensor([[3.0, 1.0], [2.0, 5.0]]), 2)
    assert kept.tolist() == [[True, False], [False, True]]


def test_numbers_of_the_findings_come_from_the_records():
    records = {"vgg": {"figures": {"ratio": [0.512, 0.4, 0.6], "families": [7.0], "loss": [-0.25], "most": [0.997]}}}
    text = page.filled("{vgg.ratio}; {vgg.ratio:}; {vgg.families}; {vgg.loss}; {vgg.most}; {not one}", records)
    assert text == ".51 (.40 to .60); .51; 7; −.25; 1.00; {not one}"
    with pytest.raises(KeyError):
        page.filled("{vgg.nothing}", records)


def test_the_page_is_that_of_the_records_and_has_each_layers_own_density():
    files = {case.key: findings.RECORDS / f"{case.name}.json" for case in findings.CASES}
    records = {key: json.loads(file.read_text(encoding="utf-8")) for key, file in files.items()}
    text = page.page(findings.CASES, records)
    assert text == (BENCHMARKS.parent / "docs" / "benchmarks" / "atlas.md").read_text(encoding="utf-8")
    for case in findings.CASES:
        density = {row["layer"]: f"{100 * row['density']:.0f} %" for row in records[case.key]["profile"]}
        table = text.split(f"### {case.title}\n")[-1].split("\n#")[0]
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
        assert [row[0] for row in rows] == [f"`{row['layer']}`" for row in records[case.key]["layers"]]
        assert [row[1] for row in rows] == [density[row[0].strip("`")] for row in rows]
