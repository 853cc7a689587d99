"""Run percent scripts cell by cell, as notebooks do, for the documentation and the tests."""

import ast
import contextlib
import html
import io
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"^# %%(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A cell of a percent script.

    Attributes:
        text: Markdown or Python source.
        is_code: Whether ``text`` is Python.
        output: What the cell printed and the value of its last expression, as HTML; empty if it has not run.
    """

    text: str
    is_code: bool
    output: str = ""


def cells(source: str) -> Iterator[Cell]:
    """Split a percent script into cells."""
    _, *parts = _MARKER.split(source)
    for head, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in head:
            yield Cell(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE), is_code=False)
        else:
            yield Cell(body.strip(), is_code=True)


def run(script: Path) -> list[Cell]:
    """Run a script in a temporary folder; return its cells with their output.

    Raises:
        ValueError: If it has no title, or shows nothing.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    found = list(cells(script.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ran = [Cell(cell.text, True, _output(cell.text, names, script)) if cell.is_code else cell for cell in found]
    if ran[0].is_code or not ran[0].text.startswith("# "):
        raise ValueError(f"{script} must begin with a title.")
    if not any(cell.output for cell in ran) or any("Traceback" in cell.output for cell in ran):
        raise ValueError(f"{script} must show something, and no traceback.")
    return ran


def _output(source: str, names: dict[str, Any], script: Path) -> str:
    tree = ast.parse(source, str(script))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(compile(tree, str(script), "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), str(script), "eval"), names)
    text = written.getvalue()
    return (f"<pre>{html.escape(text)}</pre>" if text else "") + ("" if value is None else _shown(value))


def _shown(value: Any) -> str:
    if hasattr(value, "_repr_mimebundle_"):
        return str(value._repr_mimebundle_()["image/svg+xml"])
    if hasattr(value, "_repr_html_"):
        return str(value._repr_html_())
    return f"<pre>{html.escape(repr(value))}</pre>"
