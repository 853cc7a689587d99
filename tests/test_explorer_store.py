"""The explorer's folder: files are the truth, derived ones are made again, and people's words are never lost."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.explorer import bundle
from convcircuits.explorer import store as module
from convcircuits.explorer.jobs import Events, Job, Jobs
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import Store, hash_of
from convcircuits.storage import sealed


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "project")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def circuits():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    scores = cc.score(model, cc.Feature("2", 1), torch.rand(2, 3, 9, 9), criterion="magnitude")
    return [cc.prune(scores, kernels=kernels) for kernels in (5, 9)]


def test_circuits_are_known_by_their_content_whatever_their_names(store, circuits):
    for name, circuit in (("b", circuits[0]), ("a", circuits[1]), ("c", circuits[0])):
        cc.save(circuit, store.folder / "circuits" / f"{name}.safetensors")
    first, second = store.circuits()  # of equal files the first
    assert [one.file.name for one in (first, second)] == ["a.safetensors", "b.safetensors"]
    assert [(one.kept, one.header["relevant"]) for one in (first, second)] == [(9, 16), (5, 16)]
    assert store.circuit(first.id) == first
    assert store.circuit("0" * 16) is None
    copy = cc.save(circuits[0], store.folder / "circuits" / "0.safetensors")
    assert [one.file.name for one in store.circuits()] == ["0.safetensors", "a.safetensors"]
    copy.unlink()
    first.file.unlink()
    assert [one.id for one in store.circuits()] == [second.id]
    cc.save(circuits[1], second.file)  # written anew
    assert store.circuit(first.id).file.name == "b.safetensors"
    assert store.place_for("b").name == "b-2.safetensors"


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-5], lambda c: c[:50], lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: b""]
)
def test_a_damaged_circuit_is_listed_with_what_is_wrong_and_never_removed(damage, store, circuits):
    file = cc.save(circuits[0], store.folder / "circuits" / "a.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    (one,) = store.circuits()
    assert "a.safetensors" in one.problem
    assert file.exists()


def test_a_file_of_something_else_is_no_circuit(store, circuits):
    cc.save(tuple(circuits), store.folder / "circuits" / "a.safetensors")
    assert "holds path, not a circuit" in store.circuits()[0].problem


def test_a_report_is_that_of_its_circuit(store):
    store.write_json(store.report_file("a" * 16), {"circuit": "b" * 16})
    assert store.report("a" * 16) is None
    store.write_json(store.report_file("a" * 16), {"circuit": "a" * 16})
    assert store.report("a" * 16) == {"circuit": "a" * 16}
    store.report_file("a" * 16).write_text("{")
    heard = []
    store.on_remark = heard.append
    assert [store.report("a" * 16) for _ in range(2)] == [None, None]
    assert heard == store.remarks
    assert len(heard) == 1
    assert heard[0].startswith("reports/aaaaaaaaaaaaaaaa.json was damaged")


@pytest.mark.parametrize("kind", ["reports", "curves", "splits"])
def test_what_took_long_is_kept_when_it_is_damaged_and_nothing_is_promised(store, kind):
    for number in (1, 2):
        file = store.folder / kind / "a.json"
        file.write_text(number * "{")
        assert store.read_json(file) is None
        assert store.remarks[-1].endswith(f"it was kept as a.damaged-{number}.json; ask for it again.")
        assert (store.folder / kind / f"a.damaged-{number}.json").read_text() == number * "{"
        assert not file.exists()
        assert store.splits() == []
        assert len(store.remarks) == number


def test_other_derived_files_that_are_damaged_are_removed_and_only_the_index_is_made_by_itself(store):
    again = {"features": "ask for it again", "jobs": "ask for it again", "index": "it will be made again"}
    for kind, said in again.items():
        file = store.folder / kind / "a.json"
        file.write_text("{")
        assert store.read_json(file) is None
        assert [*(store.folder / kind).iterdir()] == []
        assert store.remarks[-1].endswith(f"; {said}.")


def test_notes_are_kept_in_words_and_a_damaged_file_of_notes_is_kept_too(store):
    store.write_note("unit a:1", {"label": "é <b>"})
    store.write_note("photo 1", {"label": "x"})
    assert [*store.notes()] == ["photo 1", "unit a:1"]
    store.write_note("photo 1", None)
    assert store.notes() == {"unit a:1": {"label": "é <b>"}}
    file = store.folder / "notes.json"
    file.write_text(file.read_text()[:-9])
    assert store.notes() == {}
    assert [*store.folder.glob("notes.damaged-*.json")]
    assert "notes.damaged-1.json" in store.remarks[0]
    store.write_note("unit a:1", {"label": "again"})
    assert store.notes() == {"unit a:1": {"label": "again"}}


def test_a_damaged_file_of_notes_that_cannot_be_renamed_is_not_replaced(store, monkeypatch):
    file = store.folder / "notes.json"
    file.write_text("{")

    def failing(path, target):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "rename", failing)
    with pytest.raises(cc.ConvCircuitsError, match=r"notes\.json is damaged .* cannot be renamed: Permission denied"):
        store.write_note("photo 1", {"label": "x"})
    with pytest.raises(cc.ConvCircuitsError, match="cannot be renamed"):
        store.notes()
    assert file.read_text() == "{"


def test_no_notes_are_taken_for_the_damaged_ones_that_they_replace(store, monkeypatch):
    """One thread has read a damaged file when another puts it aside and writes notes."""
    file = store.folder / "notes.json"
    file.write_text("{")
    read, written = threading.Event(), []

    def slowly(text):
        if not read.is_set():
            read.set()
            written.append(threading.Thread(target=store.write_note, args=("photo 1", {"label": "x"})))
            written[0].start()
            written[0].join(0.3)
        return loads(text)

    loads = json.loads
    monkeypatch.setattr(module.json, "loads", slowly)
    assert store.notes() == {}
    written[0].join()
    assert store.notes() == {"photo 1": {"label": "x"}}
    assert len([*store.folder.glob("notes.damaged-*.json")]) == 1


def test_who_waits_for_answers_of_a_worker_that_died_is_told(store):
    """Each takes its question out of the list at once, which is gone through meanwhile."""
    jobs = Jobs(Opening(model="x", project=store.folder), store, Events())
    gone = SimpleNamespace(join=lambda seconds: None, exitcode=-9, close=lambda: None)
    jobs._process = jobs._channel = jobs._questions = gone
    asked = {n: Future() for n in range(5)}
    jobs._asked.update(asked)
    for n, future in asked.items():
        future.add_done_callback(lambda _, n=n: jobs._asked.pop(n))
    jobs._died()
    assert all("The worker has ended" in str(future.exception(0)) for future in asked.values())


def test_pictures_that_were_used_longest_ago_are_dropped_and_nothing_else(store, monkeypatch):
    for n in range(4):
        store.write_thumb(f"t{n}", bytes(100))
        os.utime(store.folder / "thumbs" / f"t{n}" / f"t{n}", (n, n))
    store.write_note("unit a:1", {"text": "x" * 1000})
    assert store.thumb("t0") == bytes(100)  # used just now
    monkeypatch.setattr(module, "THUMBS", 250)
    store.trim()
    assert sorted(file.name for file in (store.folder / "thumbs").glob("*/*")) == ["t0", "t3"]
    assert store.notes()
    assert store.thumb("t1") is None


def test_one_process_has_a_folder(store):
    program = (
        "import sys; from pathlib import Path; from convcircuits.explorer.store import Store\n"
        "try: Store(Path(sys.argv[1]))\nexcept ValueError as error: print(error)\n"
        "print(Store(Path(sys.argv[1]), read_only=True).circuits())"
    )
    command = [sys.executable, "-c", program, store.folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.splitlines()
    assert "is open in another explorer (process" in said[0]
    assert said[1] == "[]"
    store.close()
    Store(store.folder).close()


def test_read_only_writes_nothing(tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match="omit --read-only"):
        Store(tmp_path / "project", read_only=True)
    assert not (tmp_path / "project").exists()
    (tmp_path / "notes.json").write_text("{")
    store = Store(tmp_path, read_only=True)
    store.write_thumb("t", b"x")
    store.trim()
    assert (store.notes(), store.circuits(), store.jobs()) == ({}, [], [])
    assert [file.name for file in tmp_path.iterdir()] == ["notes.json"]


@pytest.mark.parametrize("basis", ["/../../a", "b" * 31, "b" * 32 + "\n", "../" + "b" * 29, ""])
def test_what_is_not_a_hash_becomes_no_path(basis, store):
    with pytest.raises(cc.ConvCircuitsError, match="32 hexadecimal digits"):
        store.diagram_file("a" * 16, basis, controls=False)


def test_a_hash_does_not_depend_on_the_order_of_names():
    assert hash_of({"a": 1, "b": [2.5, None]}) == hash_of(json.loads('{"b": [2.5, null], "a": 1}'))
    assert hash_of([1, 2]) != hash_of([2, 1])


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    folder = tmp_path / "project"
    Store(folder).close()
    assert not folder.exists()
    kept = Store(folder)
    kept.write_note("photo 1", {"label": "x"})
    kept.close()
    Store(folder).close()
    assert (folder / "notes.json").is_file()
    empty = tmp_path / "given"
    empty.mkdir()
    Store(empty).close()
    assert empty.is_dir()  # it was there before


def test_a_file_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(store, monkeypatch):
    """As when open files run out: nothing is removed, and notes do not begin anew."""
    store.write_note("photo 1", {"label": "x"})
    store.write_json(store.report_file("a" * 16), {"circuit": "a" * 16})
    (store.folder / "index" / "k").mkdir()
    layer = store.folder / "index" / "k" / "l"
    layer.write_bytes(b"x")

    def failing(path):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(module.Path, "read_bytes", failing)
        assert store.report("a" * 16) is None
        assert store.layer("k", "l") is None
        with pytest.raises(cc.ConvCircuitsError, match="Too many open files"):
            store.write_note("photo 2", {"label": "y"})
    assert store.report("a" * 16) == {"circuit": "a" * 16}
    assert layer.exists()
    assert [*store.notes()] == ["photo 1"]
    assert all("cannot be read" in remark for remark in store.remarks)


def test_layers_are_read_by_many_threads_at_once(store, monkeypatch):
    """A thread that meets another's change of what is in memory must not take a whole file for a damaged one."""
    folder = store.folder / "index" / "k"
    folder.mkdir()
    for n in range(24):
        (folder / str(n)).write_bytes(b"x")
    monkeypatch.setattr(module.LayerFile, "read", lambda content: content)
    monkeypatch.setattr(module, "LAYERS", 2)

    class Slow(dict):
        def __iter__(self):
            first = super().__iter__()
            time.sleep(0.001)
            return first

    store._arrays = Slow()
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda n: store.layer("k", str(n % 24)), range(96))]
    assert set(found) == {b"x"}
    assert store.remarks == []
    assert len([*folder.iterdir()]) == 24


def test_the_layers_used_last_stay_in_memory_as_many_as_fit(store, monkeypatch):
    (store.folder / "index/k").mkdir()
    for name, size in (("a", 40), ("b", 40), ("c", 30), ("d", 500)):
        (store.folder / "index/k" / name).write_bytes(name.encode() * size)
    read = []
    monkeypatch.setattr(module.LayerFile, "read", lambda content: read.append(chr(content[0])) or content)
    monkeypatch.setattr(module, "LAYERS", 100)
    for name in "abacabbddad":  # c drives out b; d, too large, all but itself
        assert store.layer("k", name)[:1] == name.encode()
    assert "".join(read) == "abcbdad"


def test_foreign_files_among_circuits_are_listed_or_passed_over(store, circuits):
    """Whatever a person puts there, the list is answered."""
    folder = store.folder / "circuits"
    os.mkfifo(folder / "pipe.safetensors")  # reading it would never end
    odd = folder / os.fsdecode(b"caf\xe9.safetensors")
    cc.save(circuits[0], folder / "plain.safetensors")
    (folder / "plain.safetensors").rename(odd)
    text = json.dumps({"kind": "circuit", "feature": {}, "granularity": "kernel", "relevant": 1, "provenance": {}})
    (folder / "other.safetensors").write_bytes(sealed(text, {"elements/2": torch.ones(2)}))
    named, other = store.circuits()
    assert (named.name, named.problem) == ("caf\\xe9.safetensors", "")
    assert "is not a circuit" in other.problem


def test_small_pictures_are_trimmed_while_they_are_made(store, monkeypatch):
    monkeypatch.setattr(module, "THUMBS", 800)
    for n in range(50):
        store.write_thumb(f"{n}", b"x" * 60)
    assert store.size() <= 800 + 160


def test_the_size_is_told_while_files_come_and_go(store, monkeypatch):
    store.write_thumb("a", b"x" * 100)
    monkeypatch.setattr(module.os, "walk", lambda folder: [(str(folder / "thumbs" / "a"), [], ["a", "gone.part"])])
    assert store.size() == 100


def test_a_small_picture_is_written_without_a_look_at_all_others(store):
    for n in range(40):
        store.write_thumb(hash_of(n), b"x")
    assert max(len([*folder.iterdir()]) for folder in (store.folder / "thumbs").iterdir()) < 5
    assert store.thumb(hash_of(7)) == b"x"


def test_superseded_files_are_evicted_and_what_people_made_is_not(store, circuits, monkeypatch):
    cc.save(circuits[0], store.folder / "circuits" / "a.safetensors")
    store.write_note("photo 1", {"label": "x"})
    store.write_json(store.report_file("a" * 16), {"circuit": "a" * 16})
    files = [store.diagram_file("d", "b" * 32, controls=False), store.derived("modules", "m", "b" * 32, ".safetensors")]
    files += [store.derived("modules", "m", "b" * 32)]
    for key in ("old", "present"):
        (store.folder / "index" / key).mkdir()
        files.append(store.folder / "index" / key / "index.json")
    for n, file in enumerate(files):
        file.write_bytes(bytes(100))
        os.utime(file, (n, n))
    store.used(files[0])
    monkeypatch.setattr(module, "DERIVED", 250)
    store.trim("present")
    assert [file.exists() for file in files] == [True, False, False, True, True]
    monkeypatch.setattr(module, "DERIVED", 0)
    store.trim("present")
    assert [file.exists() for file in files] == [False, False, False, False, True]
    assert not (store.folder / "index" / "old").exists()
    assert (len(store.circuits()), len(store.notes())) == (1, 1)
    assert store.report("a" * 16)


def test_a_job_that_is_done_leaves_no_more_than_the_cap(store, monkeypatch):
    monkeypatch.setattr(module, "DERIVED", 250)
    jobs = Jobs(Opening(model="x", project=store.folder), store, Events())
    for n in range(4):
        file = store.derived("modules", f"m{n}", "b" * 32, ".safetensors")
        file.write_bytes(bytes(100))
        os.utime(file, (n, n))
        jobs._end(Job(f"{n}", "extract", {}), "done", result={})
    assert sorted(file.name[:2] for file in (store.folder / "modules").iterdir()) == ["m2", "m3"]


def test_the_index_in_use_stays_when_pictures_that_are_written_trim_the_rest(store, monkeypatch):
    index = store.folder / "index" / "present" / "index.json"
    index.parent.mkdir()
    index.write_bytes(bytes(100))
    os.utime(index, (1, 1))
    monkeypatch.setattr(module, "DERIVED", 0)
    monkeypatch.setattr(module, "THUMBS", 80)
    store.trim("present")
    assert index.stat().st_mtime > 1  # used just now, if another is in use later
    store.write_thumb("abcd", bytes(20))
    assert index.exists()
    store.trim("another")
    assert not index.exists()


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"label": "x" * 201}, "its label has more than 200 characters"),
        ({"text": "x" * 20_001}, "its text has more than 20,000 characters"),
        ({"label": "a\ud83d"}, "its label has a half of a character"),
        ({"label": 3}, "its label is 3"),
        ({"star": 1}, "its star is 1"),
        ({"other": ""}, "other fields"),
        ("x", "other fields"),
    ],
)
def test_a_note_that_was_edited_by_hand_is_left_out_and_kept(note, said, store):
    store.write_note("photo 1", {"label": "x"})
    content = json.loads((store.folder / "notes.json").read_text())
    content["notes"]["photo 2"] = note
    (store.folder / "notes.json").write_text(json.dumps(content))
    assert store.notes() == {"photo 1": {"label": "x"}}
    assert said in store.remarks[0]
    with pytest.raises(cc.ConvCircuitsError, match=said):
        store.note("photo 2")
    store.write_note("photo 1", None)
    assert json.loads((store.folder / "notes.json").read_text())["notes"] == {"photo 2": note}


JOB = {"kind": "find", "parameters": {}, "result": {}, "created": 1.0, "ended": 2.0, "state": "done"}


@pytest.mark.parametrize("wrong", [{"ended": None}, {"created": "x"}, {"result": 3}, {"state": "running"}, {"id": "b"}])
def test_a_job_that_was_edited_by_hand_is_no_job(wrong, store):
    for id in ("a", "b"):
        store.write_job(JOB | {"id": id})
    store.write_json(store.folder / "jobs" / "a.json", JOB | {"id": "a"} | wrong)
    assert [job["id"] for job in store.jobs()] == ["b"]
    assert "jobs/a.json was damaged" in store.remarks[0]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    store = Store(tmp_path / "project")
    assert "file system without locks (Operation not supported)" in store.remarks[0]
    store.close()


def test_a_note_without_names_stays_a_note():
    notes = ["12 of the images of cat, one of cat, crop 2, are dark.", "Only catalogs: R2 is 0.5."]
    told = bundle.unnamed({"report": {"notes": notes}, "notes": notes}, ["cat", "cat, crop 2"])
    said = ["12 of the images of a photograph, one of a photograph, are dark.", "Only catalogs: R2 is 0.5."]
    assert (told["notes"], told["report"]["notes"]) == (said, said)
    assert bundle.unnamed({"report": {"notes": notes}}, [])["report"]["notes"] == notes
