"""The photographs of GCompris: Qt's bundles, which of their pictures are read, and how they are split."""

import io
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convcircuits as cc
from convcircuits.cli import main, preparing
from convcircuits.errors import ConvCircuitsError
from convcircuits.zoo.images import (
    distinct,
    gcompris_photographs,
    load_folder,
    photographs,
    split_photographs,
)
from convcircuits.zoo.rcc import entries

PREFIX = "gcompris/src/activities"


def bundle(files: dict[str, bytes], version: int = 3, *, compressed: tuple[str, ...] = ()) -> bytes:
    """Write a bundle as Qt's rcc does: a header, then contents, names and the tree, whose folders come first."""
    tree: dict = {}
    for path in files:
        place = tree
        for part in path.split("/")[:-1]:
            place = place.setdefault(part, {})
        place[path.split("/")[-1]] = path
    nodes, contents, names = [("", tree)], b"", b""
    for _, inside in nodes:  # grows
        nodes += inside.items() if isinstance(inside, dict) else ()
    packed, first = b"", 1
    for name, inside in nodes:
        node = struct.pack(">I", len(names))
        names += struct.pack(">HI", len(name), hash(name) % 2**32) + name.encode("utf-16-be")
        if isinstance(inside, dict):
            node += struct.pack(">HII", 2, len(inside), first)
            first += len(inside)
        else:
            content, flags = files[inside], int(inside in compressed)
            if flags:
                content = struct.pack(">I", len(content)) + zlib.compress(content)
            node += struct.pack(">HHHI", flags, 0, 1, len(contents))
            contents += struct.pack(">I", len(content)) + content
        packed += node + struct.pack(">Q", 1_600_000_000_000) * (version > 1)
    header = 24 if version > 2 else 20
    places = header + len(contents) + len(names), header, header + len(contents)
    return struct.pack(">4sI3I", b"qres", version, *places) + bytes(header - 20) + contents + names + packed


def picture(name: str, mode: str = "RGB", kind: str = "WEBP") -> bytes:
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (6, 8, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(5, 0).repeat(5, 1), mode).save(file, kind, lossless=True)
    return file.getvalue()


def write(folder: Path, **activities: list[str]) -> None:
    """Write the bundles of activities with photographs of these names below a folder."""
    place = folder / "usr" / "share" / "gcompris-qt" / "rcc"
    place.mkdir(parents=True)
    for activity, names in activities.items():
        files = {f"{PREFIX}/{activity}/resource/{name}.webp": picture(activity + name) for name in names}
        (place / f"{activity}.rcc").write_bytes(bundle(files))


# --- bundles

FILES = {"a/b/one": b"1" * 300, "a/b/two": b"", "a/c/d/three": bytes(range(256)), "four/ö and 字": b"4", "five": b"5"}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [(), ("a/b/one", "a/b/two", "five")])
def test_a_bundle_of_each_format_has_its_files(version, compressed):
    found = list(entries(bundle(FILES, version, compressed=compressed)))
    assert {entry.path: entry.content() for entry in found} == FILES
    assert len(found) == len(FILES)
    assert {entry.path for entry in found if entry.stored != FILES[entry.path]} == set(compressed)


def test_an_empty_bundle():
    assert list(entries(bundle({}))) == []


@pytest.mark.parametrize("content", [b"", b"qres", b"PK\3\4" + bytes(60), bundle(FILES, 3).replace(b"\3", b"\4", 1)])
def test_what_is_no_bundle(content):
    with pytest.raises(ValueError, match=r"ends too early|not a Qt resource bundle of format 1, 2 or 3"):
        list(entries(content))


def test_a_damaged_bundle_is_refused_or_has_other_content():
    whole = bundle(FILES, 3, compressed=("five",))
    for size in range(len(whole) - 8):  # the last time is not read
        with pytest.raises(ValueError, match=r"too early|damaged"):
            list(entries(whole[:size]))
    generator = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] = generator.randrange(256)
        try:
            for entry in entries(bytes(damaged)):
                entry.content()
        except ValueError:
            continue


def test_a_folder_in_itself_is_refused():
    whole = bytearray(bundle({"a/b": b""}))
    (tree,) = struct.unpack_from(">I", whole, 8)
    struct.pack_into(">II", whole, tree + 22 + 6, 1, 1)  # folder a has one child: a
    with pytest.raises(ValueError, match="tree is damaged"):
        list(entries(bytes(whole)))


def test_zstandard_is_named():
    whole = bytearray(bundle({"a": b"1"}))
    (tree,) = struct.unpack_from(">I", whole, 8)
    struct.pack_into(">H", whole, tree + 22 + 4, 4)
    (entry,) = entries(bytes(whole))
    with pytest.raises(ValueError, match="Zstandard"):
        entry.content()


# --- photographs


def test_photographs_are_the_rgb_webp_pictures_of_six_activities(tmp_path, caplog):
    write(tmp_path, erase=["bee", "crab"], explore_monuments=["wonders/petra"], paintings=["monaLisa"])
    place = next(tmp_path.rglob("erase.rcc")).parent
    inside = f"{PREFIX}/categorization/resource"
    files = {
        f"{inside}/images/tools/hammer1.webp": picture("hammer1"),
        f"{inside}/images/tools/drawn.webp": picture("drawn", "RGBA"),
        f"{inside}/images/tools/torn.webp": picture("torn")[:20],
        f"{inside}/images/tools/other.png": picture("other", kind="PNG"),
        f"{inside}/images/tools/README": b"License: CC0",
    }
    (place / "categorization.rcc").write_bytes(bundle(files, 2, compressed=tuple(files)))
    (place / "explore_world_music.rcc").write_bytes(b"no bundle")
    good, bad = photographs(f"gcompris:{tmp_path}")
    assert [photograph.name for photograph in good] == [
        "categorization/images/tools/hammer1.webp",
        "erase/bee.webp",
        "erase/crab.webp",
        "explore_monuments/wonders/petra.webp",
    ]
    assert bad == [
        "categorization/images/tools/torn.webp",
        "explore_farm_animals.rcc",
        "explore_world_animals.rcc",
        "explore_world_music.rcc",
    ]
    assert all(name in caplog.text for name in bad)
    with Image.open(io.BytesIO(picture("hammer1"))) as image:
        assert np.array_equal(np.asarray(good[0].image), np.asarray(image))
    assert repr(good[0]) == "Photograph(name='categorization/images/tools/hammer1.webp', subject='hammer')"
    assert gcompris_photographs(place) == (good, bad)


def test_where_no_photographs_of_gcompris_are(tmp_path):
    with pytest.raises(ConvCircuitsError, match=r"absent' is not a folder\. Give one with the files of gcompris"):
        photographs(f"gcompris:{tmp_path / 'absent'}")
    with pytest.raises(ConvCircuitsError, match="apt-get download gcompris-qt-data; dpkg-deb -x "):
        photographs(f"gcompris:{tmp_path}")


def test_a_folder_with_gcompris_in_it_is_no_folder_of_pictures(tmp_path):
    """It has three screenshots, on which circuits would be found instead."""
    write(tmp_path, erase=["bee"])
    (tmp_path / "screenshot.png").write_bytes(picture("x", kind="PNG"))
    with pytest.raises(ConvCircuitsError, match=r"are GCompris's\. Give gcompris:"):
        load_folder(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_photographs_of_one_subject_are_on_one_side(seed, tmp_path):
    write(
        tmp_path,
        categorization=["hammer1", "hammer2", "screwDriver", "screwDriver3", "monuments/kutubMinar", "statueOfLiberty"],
        explore_monuments=["usa/statueofLiberty", "india/qutubMinar", "wonders/petra"],
        erase=["long_nosed_monkey", "bee"],
    )
    pictures, _ = gcompris_photographs(tmp_path)
    subjects = {photograph.subject for photograph in pictures}
    assert subjects == {
        *("hammer", "screwdriver", "qutubminar", "statueofliberty"),
        *("petra", "longnosedmonkey", "bee"),
    }
    kept, held = split_photographs(pictures, held_out=0.4, seed=seed)
    assert len(kept) + len(held) == 11
    assert len({photograph.subject for photograph in held}) == 3
    assert not {photograph.subject for photograph in kept} & {photograph.subject for photograph in held}
    again = split_photographs(pictures[::-1], held_out=0.4, seed=seed)
    assert again == (kept, held)


def test_a_split_of_one_subject(tmp_path):
    write(tmp_path, erase=["bee1", "bee2", "bee3"])
    with pytest.raises(ConvCircuitsError, match="1 subject of photographs cannot be split in two; give"):
        split_photographs(gcompris_photographs(tmp_path)[0])


def test_copies_in_a_bundle_and_in_a_file_are_copies(tmp_path):
    write(tmp_path / "game", erase=["bee"])
    (bee,), _ = gcompris_photographs(tmp_path / "game")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "copy.webp").write_bytes(bee.source)
    (copy,), _ = load_folder(tmp_path / "mine")
    assert distinct([bee, copy]) == [bee]


# --- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(
        "import torch\nfrom torch import nn\nfrom convcircuits.zoo.preprocessing import Preprocess\n"
        "preprocess = Preprocess(size=(12, 12), resize=(12, 12))\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))\n"
    )
    birds, beasts = ([f"{name}{n}" for name in names for n in (1, 2)] for names in ("abcde", "fghij"))
    write(tmp_path / "game", erase=birds, explore_farm_animals=beasts)
    return tmp_path


@pytest.fixture
def find(folder, monkeypatch, capsys):
    """Find a circuit by the command, and return it."""

    def find(line: str) -> cc.Circuit:
        command = (
            "convcircuits find --model tiny:net --feature 2:1 --images gcompris:game --count 4 --out a.safetensors"
        )
        monkeypatch.setattr(sys, "argv", [*command.split(), *line.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return cc.load("a.safetensors")

    return find


def subjects(names: list[str]) -> set[str]:
    return {Path(name).stem[0] for name in names}


def test_a_circuit_is_found_and_measured_on_other_subjects(find):
    parts = find("--reach-r2 0.5").provenance["photographs"]
    apart = [subjects(names) for names in parts.values()]
    assert [len(names) for names in parts.values()] == [4, 4, 4]
    assert sum(map(len, apart)) == len(set().union(*apart))
    _, setup = preparing.set_up_again(Path("a.safetensors"), device="cpu", model="tiny:net")
    assert setup.held_out.names == parts["held_out"]
    assert setup.train.names == parts["found_on"]
    # Measured on all photographs, it is measured on those of other subjects alone.
    again = {"model": "tiny:net", "images": "gcompris:game", "count": 20}
    _, setup = preparing.set_up_again(Path("a.safetensors"), device="cpu", **again)
    assert subjects(setup.held_out.names) == set("abcdefghij") - apart[0] - apart[1]


def test_few_crops_are_not_of_neighbors_alone(find):
    names = find("--density 0.5 --held-out 0.1").provenance["photographs"]["found_on"]
    assert len(names) == 4
    assert {Path(name).parts[0] for name in names} == {"erase", "explore_farm_animals"}


def test_a_size_is_chosen_on_subjects_of_its_own(find, folder):
    write(folder / "few", erase=["a1", "a2", "b1", "b2"])
    with pytest.raises(AssertionError, match=r"(?s)--reach-r2 needs at least.*there\s+is\s+only\s+1"):
        find("--reach-r2 0.5 --images gcompris:few --held-out 0.5")
