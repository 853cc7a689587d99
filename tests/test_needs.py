"""What ``tools/needs.py`` gets, with stand-ins for the programs that it calls."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("needs", Path(__file__).parents[1] / "tools" / "needs.py")
needs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(needs)

UNPACKED = 'mkdir -p "$3/usr/share" && echo rcc > "$3/usr/share/erase.rcc"'


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Put programs on an otherwise empty path: name -> a line of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "mkdir"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def put(**lines):
        for name, line in lines.items():
            file = folder / name.replace("_", "-")
            file.write_text(f'#!/bin/sh\necho "{name} $@" >> "{tmp_path}/calls"\n{line}\n')
            file.chmod(0o755)

    return put


def calls(tmp_path):
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_photographs_are_downloaded_and_unpacked_once(tmp_path, programs, capfd):
    programs(apt_get="echo deb > gcompris-qt-data_3.1.deb", dpkg_deb=UNPACKED)
    folder = tmp_path / "made" / "photographs"
    for _ in range(2):
        needs.main(["photographs", str(folder)])
        assert capfd.readouterr().out == f"gcompris:{folder}\n"
        assert [file.name for file in folder.rglob("*.rcc")] == ["erase.rcc"]
    assert [call.split()[0] for call in calls(tmp_path)] == ["apt_get", "dpkg_deb"]
    assert "install" not in calls(tmp_path)[0].split()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({}, "Only Debian and its like"),
        ({"apt_get": "exit 0"}, "Only Debian and its like"),
        ({"apt_get": "echo no such package >&2; exit 100", "dpkg_deb": UNPACKED}, "no such package"),
        ({"apt_get": "echo deb > g.deb", "dpkg_deb": "exit 2"}, "That failed"),
    ],
)
def test_without_them_the_photographs_of_python_packages_are_named(tmp_path, programs, capfd, lines, said):
    programs(**lines)
    needs.main(["photographs", str(tmp_path / "photographs")])
    out, err = capfd.readouterr()
    assert out == "sample\n"
    assert said in err
    assert not (tmp_path / "photographs").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, programs, capfd):
    programs(apt_get="echo deb > g.deb", dpkg_deb=UNPACKED)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "mine.txt").write_text("mine")
    needs.main(["photographs", str(tmp_path / "photographs")])
    out, err = capfd.readouterr()
    assert out == "sample\n"
    assert "exists and has no photographs" in err
    assert (tmp_path / "photographs" / "mine.txt").read_text() == "mine"
    assert calls(tmp_path) == []


def test_the_list_of_packages_is_fetched_as_root_if_there_is_none(tmp_path, programs, capfd, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    listed = tmp_path / "listed"
    line = f'case "$2" in update) echo > "{listed}";; *) test -e "{listed}" && echo deb > g.deb;; esac'
    programs(apt_get=line, dpkg_deb=UNPACKED)
    needs.main(["photographs", str(tmp_path / "photographs")])
    assert capfd.readouterr().out == f"gcompris:{tmp_path / 'photographs'}\n"
    assert [call.split()[2] for call in calls(tmp_path)[:3]] == ["download", "update", "download"]


def test_an_unknown_need_is_explained():
    with pytest.raises(SystemExit, match="photographs FOLDER"):
        needs.main(["photos"])
