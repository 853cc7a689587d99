"""What is written runs: the README, every page, every example in a docstring, and the scripts in examples/."""

import ast
import doctest
import importlib
import pkgutil
import re
import sys
import textwrap
import tokenize
from pathlib import Path

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.preprocessing import Preprocess

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import percent  # noqa: E402

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```python" in page.read_text(encoding="utf-8")]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MODULES = [found.name for found in pkgutil.walk_packages(cc.__path__, "convcircuits.") if "__main__" not in found.name]


class Small(nn.Module):
    """Three convolutions, named as a reader of the pages expects them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)),
        )

    def forward(self, images):
        return self.features(images)


def names():
    """What pages and docstrings take for granted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small().eval()
        images, held_out = torch.randn(12, 3, 32, 32), torch.randn(10, 3, 32, 32)
    feature = cc.Feature("features.5", 1)
    scores = cc.score(model, feature, images)
    preprocess = Preprocess(size=(32, 32), resize=(32, 32))
    return {
        "cc": cc,
        "torch": torch,
        "model": model,
        "loaded": LoadedModel("small", model, preprocess, (32, 32), None),
        "feature": feature,
        "images": images,
        "held_out": held_out,
        "scores": scores,
        "circuit": cc.prune(scores, density=0.5),
    }


def blocks(text):
    return [textwrap.dedent(block) for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.zoo
def test_the_readme_runs(folder):
    """On fewer and smaller crops than it names, and refitted on fewer positions."""
    known = {}
    for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        fewer = block.replace("(112, 112)", "(48, 48)").replace("count=14", "count=7").replace("count=10", "count=5")
        fewer = fewer.replace("images, density=0.05)", "images, density=0.05, start=0.15, positions=200)")
        exec(compile(fewer, "README.md", "exec"), known)
    assert known["images"].shape == (7, 3, 48, 48)
    assert len(known["held_out"]) == 5
    assert "'positions': 200" in str(known["circuit"].provenance)
    assert (folder / "circuit.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_a_page_runs(page, folder):
    """With fewer steps of training than a page names: its controls train eight circuits more."""
    known = names()
    for block in blocks(page.read_text(encoding="utf-8")):
        exec(compile(block.replace("final=300", "final=30"), page.name, "exec"), known)


@pytest.mark.zoo
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs_and_shows_something(script):
    cells = percent.run(script)
    assert not cells[0].is_code
    assert cells[0].text.startswith("# ")
    assert any(cell.output for cell in cells)
    assert not any("Traceback" in cell.output for cell in cells)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_is_shown_in_the_documentation(script):
    shown = f"<!-- run: examples/{script.name} -->"
    assert any(shown in page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))


def documented():
    """Every docstring with an example, each once, wherever its name is imported to."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, module):
            if test.examples:
                found[test.name] = test
    return list(found.values())


@pytest.mark.parametrize("test", documented(), ids=lambda test: test.name)
def test_the_example_of_a_docstring_holds(test, folder):
    test.globs = names()
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert tried
    assert not failed


@pytest.mark.parametrize("name", sorted({*cc.__all__} - {"__version__", "CRITERIA", "ConvCircuitsError"}))
def test_every_public_name_is_in_the_reference(name):
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    assert f"::: convcircuits.{name}\n" in pages


def test_what_an_author_of_a_criterion_needs_is_in_the_reference():
    criteria = importlib.import_module("convcircuits.criteria")
    page = (ROOT / "docs" / "reference" / "criteria.md").read_text(encoding="utf-8")
    assert [name for name in criteria.__all__ if f"::: convcircuits.criteria.{name}\n" not in page] == ["CRITERIA"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "convcircuits")))
def test_code_in_comments_and_docstrings_stands_in_two_backticks(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    with path.open("rb") as file:
        said += [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    assert [found[0] for words in said for found in re.finditer(r"(?<!`)`[^`\n]+`(?!`)", words)] == []
