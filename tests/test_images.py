import importlib.util
import logging
import os
import random
import subprocess
import sys
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from convcircuits.errors import ConvCircuitsError
from convcircuits.zoo.images import (
    Crops,
    Photograph,
    _crop_size,
    _read,
    crops,
    distinct,
    load_folder,
    originals,
    photographs,
    readable,
    sample_photographs,
    split_photographs,
)


def noise(name: str, size: tuple[int, int] = (60, 40)) -> Photograph:
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (size[1], size[0], 3))
    return Photograph(name, Image.fromarray(pixels.astype(np.uint8)))


def small(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)), dtype=np.float32)).permute(2, 0, 1)


# --- the built-in photographs


def test_sample_photographs_are_rgb_sorted_and_the_same_each_time():
    first, second = sample_photographs(), sample_photographs()
    names = [photograph.name for photograph in first]
    assert names == sorted(names)
    assert len(set(names)) == 12
    assert {photograph.image.mode for photograph in first} == {"RGB"}
    assert first == second


def test_eight_sample_photographs_are_in_colour():
    def coloured(image: Image.Image) -> bool:
        pixels = np.asarray(image).astype(int)
        return (pixels.max(axis=2) - pixels.min(axis=2)).mean() > 3

    grey = {photograph.name for photograph in sample_photographs() if not coloured(photograph.image)}
    assert grey == {"brick", "camera", "grass", "gravel"}


@pytest.mark.slow
def test_sample_photographs_import_neither_package():
    program = (
        "import sys; from convcircuits.zoo.images import sample_photographs; sample_photographs();"
        "assert not {'skimage', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_missing_sample_packages_give_the_command(monkeypatch, tmp_path):
    empty = importlib.util.spec_from_file_location(
        "skimage", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(ConvCircuitsError, match="pip install --force-reinstall scikit-image"):
        sample_photographs()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvCircuitsError, match="pip install scikit-image scikit-learn"):
        sample_photographs()


def test_photographs_takes_sample_or_a_folder(tmp_path):
    noise("a").image.save(tmp_path / "a.png")
    assert photographs("sample") == (sample_photographs(), [])
    assert photographs(str(tmp_path)) == load_folder(tmp_path)


# --- folders


def test_folder_is_sorted_as_people_count_and_names_what_is_no_picture(tmp_path):
    for name in ("img10.png", "img2.PNG", "Img1.jpg", "b.webp", "02.bmp", "10.gif"):
        noise("x").image.save(tmp_path / name)
    noise("x").image.save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("no picture")
    good, bad = load_folder(str(tmp_path))
    assert [photograph.name for photograph in good] == [
        "02.bmp",
        "10.gif",
        "b.webp",
        "Img1.jpg",
        "img2.PNG",
        "img10.png",
    ]
    assert {photograph.image.mode for photograph in good} == {"RGB"}
    assert bad == ["notes.txt"]


def test_folders_in_a_folder_are_classes(tmp_path):
    for name in ("class 10/1.png", "class 2/10.png", "class 2/9.png", "class 2/deep/1.png", "1.png", ".git/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(name).image.save(tmp_path / name)
    (tmp_path / "class 2" / "labels.csv").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    good, bad = load_folder(tmp_path)
    assert [photograph.name for photograph in good] == [
        "1.png",
        "class 2/9.png",
        "class 2/10.png",
        "class 2/deep/1.png",
        "class 10/1.png",
    ]
    assert bad == ["class 2/labels.csv"]
    kept, held = split_photographs(good, held_out=0.4)
    assert len({photograph.name for photograph in kept + held}) == 5


def test_folders_that_link_to_each_other_are_seen_once(tmp_path):
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        noise("x").image.save(tmp_path / "in" / name / "1.png")
    (tmp_path / "in" / "a" / "to b").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "to a").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path)
    noise("x").image.save(tmp_path / "elsewhere.png")
    (tmp_path / "in" / "b" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "in" / "b" / "dead.png").symlink_to(tmp_path / "nowhere.png")
    good, bad = load_folder(tmp_path / "in")
    real = sorted((tmp_path / "in" / photograph.name).resolve() for photograph in good)
    assert [p for p in real if p.name == "1.png"] == [tmp_path / "in" / name / "1.png" for name in "ab"]
    assert any(photograph.name.endswith("link.png") for photograph in good)
    assert [name.rpartition("/")[2] for name in bad] == ["dead.png", "elsewhere.png"]


def test_two_names_of_one_photograph_are_one_photograph(tmp_path):
    for name in "abc":
        noise(name).image.save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "e.png").hardlink_to(tmp_path / "b.png")
    good, left_out = load_folder(tmp_path)
    assert [photograph.name for photograph in good] == ["a.png", "b.png", "c.png"]
    assert left_out == ["d.png", "e.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        noise("x").image.save(tmp_path / name / "1.png")
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    good, bad = load_folder(tmp_path)
    assert [photograph.name for photograph in good] == ["open/1.png"]
    assert bad == ["closed"]


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "tga", "jp2", "avif", "qoi", "pcx"])
def test_folder_takes_every_kind_that_pillow_decodes(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow decodes no AVIF")
    if suffix == "qoi":  # which not every Pillow writes
        (tmp_path / "p.qoi").write_bytes(b"qoif" + bytes([0, 0, 0, 1, 0, 0, 0, 1, 3, 0, 254, 9, 9, 9] + [0] * 7 + [1]))
    else:
        kinds = {"jfif": "JPEG", "JPE": "JPEG", "jp2": "JPEG2000"}
        Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / f"p.{suffix}", kinds.get(suffix, suffix.upper()))
    assert pixel(tmp_path) == pytest.approx((9, 9, 9), abs=3)


def test_folder_runs_no_program_in_a_file(tmp_path):
    """Ghostscript runs what an .eps holds, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "p.eps")
    (tmp_path / "q.jpg").write_bytes((tmp_path / "p.eps").read_bytes())
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    noise("x").image.save(tmp_path / "a.png")
    good, bad = load_folder(tmp_path)
    assert [photograph.name for photograph in good] == ["a.png"]
    assert bad == ["q.jpg", "p.eps", "weights.h5"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_written_in_ascii(tmp_path):
    noise("x").image.save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")  # noqa: PTH104
    (photograph,), bad = load_folder(tmp_path)
    assert (photograph.name, bad) == (r"caf\xe9.png", [])
    assert np.array_equal(np.asarray(photograph.image), np.asarray(noise("x").image))


def test_a_pipe_and_a_thin_picture_are_left_out(tmp_path):
    """A pipe would never end; a picture of 1 x 10,000 would be resized to cover a model's input, and that is huge."""
    os.mkfifo(tmp_path / "pipe.png")
    for name, size in {"thin": (1, 65), "wide": (65, 1), "strip": (64, 1)}.items():
        noise("x", size).image.save(tmp_path / f"{name}.png")
    good, bad = load_folder(tmp_path)
    assert [photograph.name for photograph in good] == ["strip.png"]
    assert bad == ["thin.png", "wide.png", "pipe.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_folder_turns_pictures_upright(tmp_path, orientation):
    """Store the picture as a camera held in each of the eight ways would."""
    upright = noise("x").image
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.png", exif=exif)
    (photograph,), _ = load_folder(tmp_path)
    assert np.array_equal(np.asarray(photograph.image), np.asarray(upright))


def pixel(folder) -> tuple[int, ...]:
    (photograph,), bad = load_folder(folder)
    assert bad == []
    assert photograph.image.mode == "RGB"
    return photograph.image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), "png", (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), "png", (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("I;16", 257 * 100, "png", (100, 100, 100)),
        ("I;16", 65535, "tif", (255, 255, 255)),
        ("I", 257 * 100, "tif", (100, 100, 100)),
    ],
)
def test_folder_makes_every_mode_rgb(tmp_path, mode, color, suffix, expected):
    Image.new(mode, (8, 8), color).save(tmp_path / f"p.{suffix}")
    assert pixel(tmp_path) == expected


def test_folder_lays_a_transparent_palette_on_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "p.png")
    assert pixel(tmp_path) == (10, 20, 30)
    image.save(tmp_path / "p.png", transparency=1)
    assert pixel(tmp_path) == (255, 255, 255)
    image.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    assert pixel(tmp_path) == (255, 255, 255)


def test_folder_names_and_logs_the_unreadable(tmp_path, monkeypatch, caplog):
    noise("x", (50, 50)).image.save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "nothing.png").write_bytes(b"")
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    Image.new("RGB", (80, 80)).save(tmp_path / "large.png")
    Image.new("RGB", (200, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with caplog.at_level(logging.WARNING, "convcircuits.zoo.images"):
        good, bad = load_folder(tmp_path)
        assert bad == ["bomb.png", "float.tif", "large.png", "nothing.png", "text.jpg"]
        assert [photograph.name for photograph in good] == ["cut.png", "good.png"]
        with pytest.raises(ConvCircuitsError, match=r"cut\.png cannot be read: "):
            _ = good[0].image
        assert readable(good, 9) == (good[1:], ["cut.png"])
    assert all(name in caplog.text for name in [*bad, "cut.png"])


def test_readable_looks_no_further_than_it_needs_to(tmp_path):
    for name in "bdf":
        noise("x").image.save(tmp_path / f"{name}.png")
    for name in "aceg":
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "b.png").read_bytes()[:-30])
    listed, _ = load_folder(tmp_path)
    by_name = {photograph.name[0]: photograph for photograph in listed}
    for count, good, bad in ((1, "b", "a"), (2, "bd", "ac"), (3, "bdf", "ace"), (4, "bdf", "aceg")):
        assert readable(listed, count) == ([by_name[name] for name in good], [f"{name}.png" for name in bad])
    with pytest.raises(ConvCircuitsError, match=r"None of these .*: a\.png, c\.png"):
        readable([by_name["a"], by_name["c"]], 3)


def test_folder_leaves_the_warning_filters_alone(tmp_path):
    noise("x").image.save(tmp_path / "a.png")
    before = list(warnings.filters)
    load_folder(tmp_path)
    assert warnings.filters == before


def test_folder_without_pictures(tmp_path):
    with pytest.raises(ConvCircuitsError, match="is not a folder"):
        load_folder(tmp_path / "absent")
    with pytest.raises(ConvCircuitsError, match="contains no pictures"):
        load_folder(tmp_path)
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(ConvCircuitsError, match="contains no pictures"):
        load_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ConvCircuitsError, match=r"none of its pictures can be read \(a\.png\)"):
        load_folder(tmp_path)


# --- the split


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_split_shares_no_photograph_and_loses_none(seed, share):
    pictures = [noise(f"p{index}") for index in range(10)]
    kept, held = split_photographs(pictures, held_out=share, seed=seed)
    assert len(held) == round(10 * share)
    assert {p.name for p in kept} & {p.name for p in held} == set()
    assert {p.name for p in kept} | {p.name for p in held} == {p.name for p in pictures}
    assert [p.name for p in kept] == sorted(p.name for p in kept)


def test_split_depends_on_the_seed_not_on_the_order_nor_on_global_state():
    pictures = [noise(f"p{index}") for index in range(10)]
    random.seed(1)
    state = random.getstate()
    first = split_photographs(pictures, seed=3)
    assert random.getstate() == state
    random.seed(2)
    assert split_photographs(pictures[::-1], seed=3) == first
    assert any(split_photographs(pictures, seed=seed) != first for seed in range(3))


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [
        (1, 0.5, "1 photograph cannot be split in two; give at least two"),
        (2, 0.1, "both parts need"),
        (4, 0.0, "held_out must be a share above 0 and below 1"),
        (4, 1.0, "held_out must be a share above 0 and below 1"),
    ],
)
def test_split_with_an_empty_part(count, share, message):
    with pytest.raises(ConvCircuitsError, match=message):
        split_photographs([noise(f"p{index}") for index in range(count)], held_out=share)


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_a_photograph_are_split_once(tmp_path, seed):
    """The same bytes under two names and in two folders of classes; pictures in memory by their pixels."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(name).image.save(tmp_path / name)
    for copy in ("cat/10.png", "dog/copy of 1.png"):
        (tmp_path / copy).write_bytes((tmp_path / "cat/1.png").read_bytes())
    pictures, left_out = load_folder(tmp_path)
    assert (len(pictures), left_out) == (6, [])
    for some in (pictures, [Photograph(p.name, p.image) for p in pictures]):
        kept, held = split_photographs(some, held_out=0.5, seed=seed)
        names = sorted(p.name for p in kept + held)
        assert names == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
        assert len(held) == 2
        assert [p.name for p in distinct(some[::-1])] == ["dog/copy of 1.png", "dog/2.png", "dog/1.png", "cat/2.png"]
        assert [p.name for p in distinct(some, apart_from=some[2:4])] == ["cat/2.png", "dog/2.png"]
        assert [some[n].name for n in originals(some)] == [
            {"cat/10.png": "cat/1.png", "dog/copy of 1.png": "cat/1.png"}.get(p.name, p.name) for p in some
        ]


def test_what_is_left_of_copies_must_still_be_two(tmp_path):
    with pytest.raises(ConvCircuitsError, match=r"^1 photograph \(2 copies left out\) cannot be split in two"):
        split_photographs([Photograph(name, noise("a").image) for name in "abc"])


def test_files_of_one_size_and_files_that_are_gone_are_no_copies(tmp_path):
    for name in "ab":
        noise(name).image.save(tmp_path / f"{name}.bmp")
    some = [Photograph(name, tmp_path / f"{name}.bmp") for name in "abcd"]
    assert distinct(some) == some


def test_split_of_two_photographs_with_one_name():
    with pytest.raises(ConvCircuitsError, match="More than one photograph is named 'a'"):
        split_photographs([noise("a"), noise("b"), noise("a")])


# --- crops


def test_crops_begin_with_the_whole_pictures_and_go_round():
    pictures = [noise("a"), noise("b"), noise("c")]
    images = crops(pictures, small, count=8, seed=0)
    assert images.shape == (8, 3, 16, 16)
    for index, picture in enumerate(pictures):
        assert torch.equal(images[index], small(picture.image))
        assert not torch.equal(images[index + 3], images[index])


def test_crops_are_the_same_for_a_seed_and_a_smaller_count_is_the_beginning():
    pictures = [noise("a"), noise("b")]
    images = crops(pictures, small, count=9, seed=5)
    assert torch.equal(images, crops(pictures, small, count=9, seed=5))
    for count in (1, 2, 5):
        assert torch.equal(images[:count], crops(pictures, small, count=count, seed=5))
    assert not torch.equal(images, crops(pictures, small, count=9, seed=6))


def test_crops_of_a_photograph_depend_on_no_other():
    a, b, c = noise("a"), noise("b"), noise("c")
    together = crops([a, b, c], small, count=12, seed=1)
    assert torch.equal(together[1::3], crops([b], small, count=4, seed=1))
    assert torch.equal(together[0::3], crops([c, a], small, count=8, seed=1)[1::2])


def test_crops_are_parts_of_the_picture_mirrored_half_of_the_time():
    """Pixels hold their own coordinates, so that a crop tells where it was cut."""
    y, x = np.mgrid[:100, :200]
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    seen: list[np.ndarray] = []

    def record(image: Image.Image) -> torch.Tensor:
        seen.append(np.asarray(image).astype(int))
        return torch.zeros(3, 1, 1)

    crops([Photograph("grid", picture)], record, count=201, seed=0)
    assert np.array_equal(seen[0], np.asarray(picture))
    mirrored = Counter()
    for crop in seen[1:]:
        height, width = crop.shape[:2]
        steps = np.unique(np.diff(crop[0, :, 0]))
        assert abs(steps.item()) == 1
        assert np.array_equal(np.diff(crop[:, 0, 1]), np.ones(height - 1))
        assert 0.19 < height * width / 20000 <= 1
        assert 0.73 < width / height < 1.37
        mirrored[steps.item()] += 1
    assert 70 < mirrored[-1] < 130
    assert len({crop.shape for crop in seen}) > 100


def test_crops_of_a_thin_strip_fit_into_it():
    generator = random.Random(0)
    sizes = [_crop_size((500, 3), generator) for _ in range(50)]
    assert all(1 <= width <= 500 and 1 <= height <= 3 for width, height in sizes)
    assert crops([noise("strip", (500, 1))], small, count=5, seed=0).shape == (5, 3, 16, 16)


def test_crops_are_resized_after_preprocessing():
    images = crops([noise("a")], small, count=3, seed=0, size=(8, 4))
    assert images.shape == (3, 3, 8, 4)
    flat = Photograph("flat", ImageOps.expand(Image.new("RGB", (20, 20), (9, 9, 9)), 10, (9, 9, 9)))
    torch.testing.assert_close(crops([flat], small, count=2, seed=0, size=(5, 7)), torch.full((2, 3, 5, 7), 9.0))


def test_crops_leave_global_random_state_alone():
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    crops([noise("a")], small, count=4, seed=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("count", [1, 4, 5, 17])
@pytest.mark.parametrize("size", [None, (9, 7)])
def test_crops_batch_by_batch_are_the_same_in_every_pass(count, size):
    pictures = [noise(name) for name in "abcde"]
    whole = crops(pictures, small, count=count, seed=3, size=size)
    for batch_size in (1, 3, 5, 7, 99):
        streamed = Crops(pictures, small, count=count, seed=3, size=size, batch_size=batch_size)
        assert len(streamed) == count
        for _ in range(2):
            batches = list(streamed)
            assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
            assert torch.equal(torch.cat(batches), whole)


def test_one_decoded_photograph_is_in_memory_at_a_time(tmp_path, monkeypatch):
    for number in range(30):
        noise(f"{number}").image.save(tmp_path / f"{number}.png")
    alive, most, decoded = 0, 0, []

    def end():
        nonlocal alive
        alive -= 1

    def spy(path):
        nonlocal alive, most
        picture = _read(path)
        alive, most = alive + 1, max(most, alive + 1)
        decoded.append(path)
        weakref.finalize(picture, end)
        return picture

    monkeypatch.setattr("convcircuits.zoo.images._read", spy)
    listed, _ = load_folder(tmp_path)
    assert decoded == []
    listed, _ = readable(listed, 10)
    assert (len(decoded), alive) == (10, 0)
    sizes = [len(batch) for batch in Crops(listed, small, count=25, seed=0, batch_size=4)]
    assert sizes == [4] * 6 + [1]
    assert len(decoded) == 10 + 25
    crops(listed, small, count=25, seed=0)
    assert len(decoded) == 10 + 25 + 10
    assert most <= 2  # the one before goes when the next one takes its name
    assert alive == 0


def test_crops_of_nothing():
    with pytest.raises(ConvCircuitsError, match="no photographs"):
        crops([], small, count=3, seed=0)
    with pytest.raises(ConvCircuitsError, match="count=0"):
        crops([noise("a")], small, count=0, seed=0)
