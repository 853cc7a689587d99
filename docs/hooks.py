"""Hooks for MkDocs: run the examples and show their output, and add pages from outside this folder.

A line ``<!-- run: examples/NAME.py -->`` in a page is replaced by the script's cells and their output.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src")]

import percent  # noqa: E402

_RUN = re.compile(r"^<!-- run: (\S+) -->$", re.MULTILINE)
_ELSEWHERE = {
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/CIRCUITS.md": "benchmarks/CIRCUITS.md",
    "benchmarks/DIAGRAM.md": "benchmarks/DIAGRAM.md",
    "changelog.md": "CHANGELOG.md",
}
_outputs: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside this folder."""
    for uri, path in _ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Run the examples; adapt links to repository files to the site, which contains only some of them."""
    markdown = _RUN.sub(lambda match: _example(ROOT / match[1]), markdown)
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)*([^)#\s]+)(#[^)]*)?\)", lambda match: _link(match, page), markdown)


def on_page_content(page_html: str, /, **_: Any) -> str:
    """Insert the output of the examples, which must not pass through Markdown."""
    return re.sub(r'<div class="shown" data-number="(\S+)"></div>', lambda match: _outputs[match[1]], page_html)


def _example(script: Path) -> str:
    parts = []
    for number, cell in enumerate(percent.run(script)):
        if not cell.is_code:
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if cell.output:
            key = f"{script.stem}-{number}"
            _outputs[key] = f'<div class="shown">{cell.output}</div>'
            parts.append(f'<div class="shown" data-number="{key}"></div>')
    return "\n\n".join(parts)


def _link(match: re.Match[str], page: Page) -> str:
    """Point a link out of the documentation at the page that was added, or replace it by its text."""
    text, target = match[1], match[2]
    whole = match[0]
    if "://" in whole or "../" not in whole:
        return whole
    up = "../" * page.file.src_uri.count("/")
    if target in _ELSEWHERE and (ROOT / target).is_file():
        return f"[{text}]({up}{target}{match[3] or ''})"
    inside = (ROOT / "docs" / page.file.src_uri).parent / whole.split("(")[1].split(")")[0].split("#")[0]
    return whole if inside.resolve().is_relative_to(ROOT / "docs") else text
