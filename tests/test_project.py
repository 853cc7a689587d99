"""What the project says of itself in several places agrees: Python and torch that it runs on, its pins, its forms."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from convcircuits.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def floor(requirements, package):
    (found,) = (re.fullmatch(rf"{package}>=([\d.]+)", line) for line in requirements if line.startswith(f"{package}>"))
    return found[1]


@pytest.fixture(scope="module")
def jobs():
    return read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]


def test_ci_runs_on_every_python_from_the_oldest_supported(jobs):
    pythons = jobs["check"]["strategy"]["matrix"]["python"]
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"])[1]
    assert pythons == [f"3.{minor}" for minor in range(int(oldest), int(oldest) + len(pythons))]
    assert len(pythons) > 1


def test_ci_runs_on_the_newest_and_the_oldest_supported_torch(jobs):
    newest, oldest = jobs["check"]["strategy"]["matrix"]["constraints"]
    project = PROJECT["project"]
    assert pins(oldest)["torch"] == floor(project["dependencies"], "torch") + ".0"
    assert pins(oldest)["torchvision"] == floor(project["optional-dependencies"]["torchvision"], "torchvision") + ".0"
    assert pins(newest).keys() == pins(oldest).keys()
    assert {name for name, version in pins(newest).items() if pins(oldest)[name] != version} == {"torch", "torchvision"}


def test_ci_runs_targets_that_there_are(jobs):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert {"lint", "quick", "dist"} <= set(targets)
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    assert ".ci/run" in commands


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_of_an_issue_asks_each_thing_once(path):
    form = read_yaml(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked) > 0


def test_the_citation_is_of_this_version():
    assert read_yaml(ROOT / "CITATION.cff")["version"] == __version__


def test_every_marker_is_explained_where_contributors_look():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    markers = [line.split(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    assert [name for name in markers if f"| `{name}` |" not in text] == []
