"""Files: what is saved comes back, whole or not at all, and nothing in a file can do harm."""

import copy
import dataclasses
import errno
import json
import math
import os
import pickle
import random
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import convcircuits as cc
from cases import parts_of_file
from convcircuits import files
from convcircuits.compiler.interpreter import CircuitModule
from convcircuits.storage import sealed
from convcircuits.values.tables import LayerTable
from handmade import HANDMADE, handmade, images
from nets import NETS

fuzz = settings(database=None, max_examples=400)


def made(kind="circuit", **changes):
    """Two layers whose names are not in alphabetical order, NaN, a calibration, notes in many scripts."""
    nan = math.nan
    kernels = {"z.1": torch.tensor([[True, False, True], [False, False, False]]), "a": torch.tensor([[True]])}
    values = {"z.1": torch.tensor([[1.0, 0.5, -2.0], [nan, math.inf, 3e-42]]), "a": torch.tensor([[7.0]])}
    provenance = {
        "model": "Net",
        "weights": "0123",
        "notes": ["Ünïcode 電路 🙂", 'quote " and \\', "\ud800", ""],
        "options": {"alpha": 0.1, "deep": [1, None, {"x": True}]},
        "seed": 2**63,
    }
    feature = cc.Feature("a", 0)
    if kind == "scores":
        value = cc.Scores(feature, LayerTable(values), 9, provenance)
    else:
        gain = {"z.1": torch.tensor([[0.5, 4.0, 1.0], [-1.0, 0.0, 2.0]])}
        offset = {"z.1": torch.tensor([-1.0, 0.0], dtype=torch.float64)}
        value = cc.Circuit(
            feature,
            LayerTable(kernels),
            LayerTable(values),
            9,
            LayerTable(gain),
            LayerTable(offset),
            provenance,
        )
    return dataclasses.replace(value, **changes)


def made_module(name="residual"):
    """A small module, with notes of where it comes from."""
    module = handmade(name)
    module.meta["circuit"] = {"feature": "head:1", "input_shape": [3, 16, 16], "notes": ["電路", ""]}
    return module


FEATURES = {
    "unit": cc.Feature("a", 3),
    "large unit": cc.Feature("a", 10**12),
    "direction": cc.Feature("a", torch.tensor([0.1, -2.0, 0.0])),
    "several units": cc.Feature("a", [9, 3, 40], position="max"),
    "a set of one": cc.Feature("a", [3]),
    "pair": cc.Feature("a", 1, position=(3, 5)),
    "max": cc.Feature("a", 1, position="max"),
    "interior": cc.Feature("a", [3, 1], position="interior"),
    "center of a call": cc.Feature("größe.層", 1, position="center", call=2),
}


def same(a, b):
    assert type(a) is type(b)
    assert a == b
    for field in dataclasses.fields(a):
        assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert list(a.elements) == list(b.elements)


@pytest.mark.parametrize("kind", ["scores", "circuit"])
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_what_is_saved_comes_back(kind, feature, tmp_path):
    value, path = made(kind, feature=feature), tmp_path / "f.safetensors"
    assert cc.save(value, str(path)) == path
    again = cc.load(str(path))
    same(again, value)
    assert (again.feature.position, again.feature.call) == (feature.position, feature.call)
    assert cc.load(path).summary() == value.summary()
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_a_path_of_circuits_comes_back(tmp_path):
    path = (made(), made(provenance={}), made(gain=LayerTable(), offset=LayerTable()))
    again = cc.load(cc.save(path, tmp_path / "f.safetensors"))
    assert len(again) == 3
    for one, other in zip(again, path, strict=True):
        same(one, other)
    with pytest.raises(cc.ConvCircuitsError, match="Only Scores, a Circuit, a tuple of circuits"):
        cc.save((), tmp_path / "f.safetensors")
    with pytest.raises(cc.ConvCircuitsError, match="got tuple"):
        cc.save((path[0], 3), tmp_path / "f.safetensors")
    (tmp_path / "g.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:-3])
    with pytest.raises(cc.ConvCircuitsError, match=r"complete|damaged"):
        cc.load(tmp_path / "g.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"gain": LayerTable(), "offset": LayerTable()},
        {"provenance": {}},
        {"elements": LayerTable(), "saliency": LayerTable(), "gain": LayerTable(), "offset": LayerTable()},
    ],
    ids=["no calibration", "no provenance", "no layers"],
)
def test_bare_circuits_come_back(change, tmp_path):
    value = made(**change)
    same(cc.load(cc.save(value, tmp_path / "f.safetensors")), value)


@pytest.mark.parametrize("name", ["inception", "flat_head"])
def test_real_results_come_back_and_go_on(name, tmp_path):
    case = NETS[name]
    model, x = case.build(), case.images()
    scores = cc.score(model, cc.Feature(*case.features[-1]), x)
    circuit = cc.prune(cc.load(cc.save(scores, tmp_path / "s.safetensors")), density=0.5)
    assert circuit == cc.prune(scores, density=0.5)
    again = cc.load(cc.save(circuit, tmp_path / "c.safetensors"))
    same(again, circuit)
    assert len(again & circuit) == len(circuit)
    assert cc.evaluate(model, again, x).as_dict() == cc.evaluate(model, circuit, x).as_dict()


def test_numbers_that_strict_json_lacks_are_saved_or_refused_by_an_error_of_ours(tmp_path):
    for odd in (math.inf, math.nan, {1, 2}, torch.tensor(1)):
        value, path = made(provenance={"options": {"alpha": odd}}), tmp_path / "f.safetensors"
        try:
            cc.save(value, path)
        except cc.ConvCircuitsError:
            assert not path.exists()
        else:
            cc.load(path)


def test_a_result_with_an_infinite_option_can_be_saved(tmp_path):
    def mine(trace, *, cap):
        return {layer: torch.ones(shape) for layer, shape in trace.shapes.items()}

    case = NETS["plain"]
    scores = cc.score(case.build(), cc.Feature("features.5", 2), case.images(), criterion=mine, cap=math.inf)
    same(cc.load(cc.save(scores, tmp_path / "f.safetensors")), scores)


def test_a_module_comes_back_without_its_model(tmp_path):
    module, x = made_module(), images()
    again = cc.load(cc.save(module, tmp_path / "f.safetensors"))
    assert isinstance(again, CircuitModule)
    assert again.meta["circuit"] == module.meta["circuit"]
    assert again.state_dict().keys() == module.state_dict().keys()
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(x), module(x))
    again.load_state_dict(module.state_dict())
    assert "stem.weight" in load_file(tmp_path / "f.safetensors")


def test_a_module_without_notes_comes_back(tmp_path):
    module = made_module()
    del module.meta["circuit"]
    assert "circuit" not in cc.load(cc.save(module, tmp_path / "f.safetensors")).meta


def test_a_module_is_saved_as_it_computes_in_eval_mode_and_stays_as_it_is(tmp_path):
    module, x = made_module(), images()
    with torch.no_grad():
        expected = module(x)
    module.train().requires_grad_(False).to(memory_format=torch.channels_last)
    again = cc.load(cc.save(module, tmp_path / "f.safetensors"))
    assert module.training
    with torch.no_grad():
        torch.testing.assert_close(again(x), expected)


def test_a_loaded_module_does_not_hang_on_its_file(tmp_path):
    module, x = made_module(), images()
    path = cc.save(module, tmp_path / "f.safetensors")
    again = cc.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


def test_notes_that_json_cannot_say_are_refused(tmp_path):
    module = made_module()
    for odd in (math.nan, {1, 2}, torch.tensor(1)):
        module.meta["circuit"] = {"x": odd}
        with pytest.raises(cc.ConvCircuitsError, match=r"not valid JSON|its provenance holds"):
            cc.save(module, tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


# ---------------------------------------- saving


def test_a_file_is_an_ordinary_one_with_ordinary_rights(tmp_path):
    path = cc.save(made(), tmp_path / "f.safetensors")
    assert "elements/z.1" in load_file(path)
    (tmp_path / "other").write_text("")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def half(handle, mode, real=os.fdopen):
    file = real(handle, mode)

    class Half:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

        def write(self, content):
            file.write(content[: len(content) // 2])
            fail()

    return Half()


@pytest.mark.parametrize(
    ("owner", "name", "broken", "error"),
    [
        (Path, "replace", fail, cc.ConvCircuitsError),
        (Path, "replace", interrupt, KeyboardInterrupt),
        (Path, "chmod", fail, cc.ConvCircuitsError),
        (os, "fdopen", fail, cc.ConvCircuitsError),
        (os, "fdopen", half, cc.ConvCircuitsError),
        (os, "fdopen", interrupt, KeyboardInterrupt),
    ],
    ids=["replace", "replace interrupted", "chmod", "fdopen", "half written", "fdopen interrupted"],
)
@pytest.mark.parametrize("before", [True, False], ids=["over a file", "new"])
def test_a_save_that_fails_leaves_the_old_file_whole_and_nothing_else(
    owner, name, broken, error, before, tmp_path, monkeypatch
):
    path, old = tmp_path / "f.safetensors", made("scores")
    if before:
        cc.save(old, path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(error):
            cc.save(made("circuit"), path)
    assert [p.name for p in tmp_path.iterdir()] == (["f.safetensors"] if before else [])
    if before:
        same(cc.load(path), old)
    same(cc.load(cc.save(made("circuit"), path)), made("circuit"))


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "f.safetensors"
    cc.save(made("scores"), path)
    cc.save(made("circuit"), path)
    same(cc.load(path), made("circuit"))


@pytest.mark.parametrize("name", ["f", "f.pt", "f.safetensors.gz", "f.json", ".safetensors", "f.onnx"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match=r"must end in \.safetensors\."):
        cc.save(made(), tmp_path / name)
    if name != "f.onnx":
        with pytest.raises(cc.ConvCircuitsError, match=r"must end in \.safetensors or, for ONNX, in \.onnx"):
            cc.save(made_module(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    for place in ("missing/f.safetensors", "file/f.safetensors", "folder.safetensors", "x" * 300 + ".safetensors"):
        with pytest.raises(cc.ConvCircuitsError, match=r"cannot be written: ") as caught:
            cc.save(made(), tmp_path / place)
        assert str(tmp_path / place) in str(caught.value)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(cc.ConvCircuitsError, match="Permission denied"):
        cc.save(made(), tmp_path / "f.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize(
    "value", [None, 3, {}, cc.Feature("a", 1), torch.ones(2), made().kernels, cc.Circuit, torch.nn.Conv2d(1, 1, 1)]
)
def test_only_results_are_saved(value, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match="Only Scores, a Circuit, a tuple of circuits or a module from"):
        cc.save(value, tmp_path / "f.safetensors")


# ---------------------------------------- what there is at the place already


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    for mode in (0o600, 0o640, 0o444):
        path = tmp_path / f"{mode}.safetensors"
        path.write_text("old")
        path.chmod(mode)
        cc.save(made(), path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        same(cc.load(path), made())


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
def test_a_symbolic_link_is_written_through(there, tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "f.safetensors"
    if there:
        target.write_text("old")
        target.chmod(0o600)
    link.symlink_to(Path("far") / "target")
    assert cc.save(made(), link) == link
    assert link.is_symlink()
    same(cc.load(target), made())
    assert not there or stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["f.safetensors", "far", "target"]


def test_only_ordinary_files_are_written_to_and_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "null.safetensors").symlink_to(os.devnull)
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    before = {p.name: p.lstat().st_mode for p in tmp_path.iterdir()}
    for name, said in (("fifo", "a FIFO;"), ("null", "a device;"), ("folder", "a folder;"), ("loop", "symbolic")):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(cc.ConvCircuitsError, match=f"cannot be written: .*{said}"):
            cc.save(made(), path)
        refused(path, "There is no file")
    assert {p.name: p.lstat().st_mode for p in tmp_path.iterdir()} == before
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    for path in (tmp_path / ("x" * 300 + ".safetensors"), tmp_path / ("x" * 300) / "f.safetensors"):
        refused(path, "There is no file")
        with pytest.raises(cc.ConvCircuitsError, match="cannot be written: File name too long"):
            cc.save(made(), path)
    longest = tmp_path / ("x" * 243 + ".safetensors")
    same(cc.load(cc.save(made(), longest)), made())


KILLED = """
import os, signal, sys, time
from pathlib import Path
from convcircuits.files import write_whole

def stop(*args):
    print("ready", flush=True)
    time.sleep(100)

Path.replace = stop
write_whole(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_run_has_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / f"{n}.txt"], stdout=subprocess.PIPE) for n in (0, 1)
    ]
    try:
        for run in runs:
            assert run.stdout.readline() == b"ready\n"
        others = [tmp_path / ".convcircuits-notes", tmp_path / "x.part", tmp_path / ".f.safetensors.abc"]
        for other in others:
            other.write_text("of somebody else")
        assert len(list(tmp_path.iterdir())) == 5
        runs[0].kill()
        runs[0].wait()
        cc.save(made(), tmp_path / "f.safetensors")
        left = {p.name for p in tmp_path.iterdir()} - {"f.safetensors", *(p.name for p in others)}
        assert len(left) == 1
        runs[1].kill()
        runs[1].wait()
        cc.save(made(), tmp_path / "f.safetensors")
        assert {p.name for p in tmp_path.iterdir()} == {"f.safetensors", *(p.name for p in others)}
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()


def test_a_file_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    real, made_files = tempfile.mkstemp, []

    def mkstemp(**options):
        handle, name = real(**options)
        if not made_files:
            files._remove_abandoned(tmp_path)  # as another run may, just then
        made_files.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    cc.save(made(), tmp_path / "f.safetensors")
    assert len(made_files) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


# ---------------------------------------- loading what is not right


def refused(path, match=None):
    with pytest.raises(cc.ConvCircuitsError, match=match) as caught:
        cc.load(path)
    assert str(path) in str(caught.value)


def written(path, header, tensors=None, text=None):
    """A file with that JSON in its header."""
    tensors = tensors if tensors is not None else parts_of_file(made())[1]
    if text is None:
        path.write_bytes(sealed(json.dumps(header), tensors))
    else:
        save_file(tensors, path, {"convcircuits": text})
    return path


def test_no_file_is_an_error_of_ours(tmp_path):
    refused(tmp_path / "f.safetensors", "There is no file")
    refused(tmp_path, "There is no file")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_safetensors_are_refused(metadata, tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "f.safetensors", metadata)
    refused(tmp_path / "f.safetensors", "convcircuits did not write it")


@pytest.mark.parametrize("content", [b"", b"x", b"text\n" * 99, b"\x00" * 99, b"\xff" * 99, pickle.dumps([1])])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "f.safetensors").write_bytes(content)
    refused(tmp_path / "f.safetensors", r"not a complete \.safetensors file")


def test_a_module_file_cut_or_without_a_part_is_refused(tmp_path):
    path = cc.save(made_module(), tmp_path / "f.safetensors")
    whole = path.read_bytes()
    for place in range(0, len(whole), 997):
        path.write_bytes(whole[:place])
        refused(path, "cut off")
    header, tensors = parts_of_file(made_module())
    for key in header:
        refused(written(path, {k: v for k, v in header.items() if k != key}, tensors), "damaged")
    for key in header["graph"]:
        less = {k: v for k, v in header["graph"].items() if k != key}
        refused(written(path, header | {"graph": less}, tensors), "damaged")
    for name in tensors:
        refused(written(path, header, {k: v for k, v in tensors.items() if k != name}), "damaged")
        for wrong in (tensors[name][None], tensors[name].to(torch.complex64)):
            if name.endswith("weight"):
                refused(written(path, header, tensors | {name: wrong[..., None]}), "damaged")
    refused(written(path, header, tensors | {"more": torch.ones(1)}), "damaged")


@pytest.mark.parametrize("kind", ["scores", "circuit"])
def test_a_file_cut_anywhere_is_refused(kind, tmp_path):
    path = cc.save(made(kind), tmp_path / "f.safetensors")
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, (header + len(whole)) // 2}
    for place in places | {len(whole) - 1} | set(range(0, len(whole), 97)):
        path.write_bytes(whole[:place])
        refused(path, "cut off")
    path.write_bytes(whole + b"\0")
    refused(path)
    path.write_bytes(whole)
    same(cc.load(path), made(kind))


@pytest.mark.parametrize("schema", ["convcircuits/4", "convcircuits/10", "other/1", 1, None])
def test_another_schema_asks_for_an_upgrade(schema, tmp_path):
    header, tensors = parts_of_file(made())
    refused(written(tmp_path / "f.safetensors", header | {"schema": schema}, tensors), "pip install --upgrade")


@pytest.mark.parametrize("schema", ["convcircuits/1", "convcircuits/2"])
@pytest.mark.parametrize("kind", [made, made_module])
def test_a_file_of_an_earlier_format_is_to_be_made_again(kind, schema, tmp_path):
    header, tensors = parts_of_file(kind())
    refused(written(tmp_path / "f.safetensors", header | {"schema": schema}, tensors), "make the file again")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"x"', "{}", "NaN", "[" * 100_000, "1" * 5000])
def test_a_header_that_is_no_header_is_refused(text, tmp_path):
    refused(written(tmp_path / "f.safetensors", None, text=text), "damaged")


@pytest.mark.parametrize("kind", ["scores", "circuit"])
def test_a_header_without_one_of_its_keys_is_refused(kind, tmp_path):
    header, tensors = parts_of_file(made(kind))
    path = tmp_path / "f.safetensors"
    for key in header:
        refused(written(path, {k: v for k, v in header.items() if k != key}, tensors), "damaged")
    for group in ("feature", "layers"):
        for key in header[group]:
            less = {k: v for k, v in header[group].items() if k != key}
            refused(written(path, header | {group: less}, tensors), "damaged")
    for name in tensors:
        refused(written(path, header, {k: v for k, v in tensors.items() if k != name}), "damaged")
    refused(written(path, header, tensors | {"more": torch.ones(1)}), "damaged")


@pytest.mark.parametrize("kind", ["scores", "circuit"])
@pytest.mark.parametrize(
    "other",
    [
        lambda t: t.int(),
        lambda t: t.to(torch.uint8),
        lambda t: ~t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.flatten(),
        lambda t: t[None],
        lambda t: t.nan_to_num().to(torch.float8_e4m3fn),
    ],
    ids=["int32", "uint8", "bool", "complex", "1-D", "3-D", "float8"],
)
def test_tables_of_other_types_or_shapes_are_refused(kind, other, tmp_path):
    header, tensors = parts_of_file(made(kind))
    path = tmp_path / "f.safetensors"
    name = "elements/z.1" if kind == "scores" else "saliency/z.1"
    refused(written(path, header, tensors | {name: other(tensors[name])}))


def test_masks_that_are_not_bool_are_refused(tmp_path):
    header, tensors = parts_of_file(made())
    for dtype in (torch.uint8, torch.float32, torch.int64):
        wrong = tensors | {"elements/z.1": tensors["elements/z.1"].to(dtype)}
        refused(written(tmp_path / "f.safetensors", header, wrong))


@pytest.mark.parametrize("kind", ["scores", "circuit", "module"])
def test_every_flipped_bit_is_noticed(kind, tmp_path):
    path = cc.save(made_module() if kind == "module" else made(kind), tmp_path / "f.safetensors")
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    bits = {rng.randrange(8 * len(whole)) for _ in range(300)} | {rng.randrange(8 * header) for _ in range(300)}
    for bit in bits | set(range(64)) | set(range(8 * header - 64, 8 * header + 64)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        refused(path)
    path.write_bytes(whole)
    cc.load(path)


def test_a_checksum_is_taken_at_its_place_alone(tmp_path):
    """The word before the checksum may stand in the provenance too, or in the name of a layer."""
    word = '{"checksum": "' + "0" * 64 + '"'
    value = made(provenance={"notes": [word, json.dumps(word)]})
    same(cc.load(cc.save(value, tmp_path / "f.safetensors")), value)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    paths = [cc.save(made(kind), tmp_path / f"{kind}.safetensors") for kind in ("scores", "circuit")]
    paths.append(cc.save(made_module(), tmp_path / "module.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps({"a": 1}))
    for owner, name in ((pickle, "Unpickler"), (pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, interrupt)
    for path in paths:
        cc.load(path)
    refused(tmp_path / "bad.safetensors")


# ---------------------------------------- fuzzing


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "f.safetensors"


WHOLE = {}


def whole(kind, place):
    if kind not in WHOLE:
        value = made_module() if kind == "module" else made(kind, feature=FEATURES["direction"])
        WHOLE[kind] = cc.save(value, place).read_bytes()
    return WHOLE[kind]


def value_or_our_error(path):
    try:
        value = cc.load(path)
    except cc.ConvCircuitsError:
        refused(path)
    else:
        assert type(value) in (cc.Scores, cc.Circuit) or isinstance(value, CircuitModule)
        assert repr(value)


@fuzz
@given(st.data())
def test_a_file_of_damaged_bytes_gives_a_value_or_our_error(place, data):
    content = bytearray(whole(data.draw(st.sampled_from(["scores", "circuit", "module"])), place))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "set", "delete", "insert", "text"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "text":
                word = data.draw(st.sampled_from([b"F32", b"BOOL", b"I64", b"9", b"-", b"null", b"[", b'"', b"}"]))
                content[at : at + len(word)] = word
        if not content:
            break
    place.write_bytes(bytes(content))
    value_or_our_error(place)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["all", "max", "a", "z.1", "scores", "circuit", "convcircuits/1", 10**30, -1, 0, 1e400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


HEADERS = {
    (kind, name): parts_of_file(made(kind, feature=FEATURES[name]))
    for kind in ("scores", "circuit")
    for name in ("direction", "pair", "several units")
} | {(kind, "module"): parts_of_file(made_module(kind)) for kind in HANDMADE}


@pytest.mark.slow
@fuzz
@given(st.data())
def test_a_header_of_any_other_json_gives_a_value_or_our_error(place, data):
    header, tensors = HEADERS[data.draw(st.sampled_from(sorted(HEADERS)))]
    header = copy.deepcopy(header)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(places(header)))
        inner = header
        for key in where[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[where[-1]] = data.draw(JSON)
        else:
            del inner[where[-1]]
        if not places(header):
            break
    value_or_our_error(written(place, header, tensors))
