"""Hooks for MkDocs: run the examples and show their output, and add pages from outside this folder.

A line ``<!-- run: examples/NAME.py -->`` in a page is replaced by the script's cells and their output.
"""

import json
import posixpath
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
from convcircuits.drawing.atlas_page import atlas_page  # noqa: E402

_RUN = re.compile(r"^<!-- run: (\S+) -->$", re.MULTILINE)
_ELSEWHERE = {  # where it lies in the repository, from where it is on the site
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/ATLAS.md": "benchmarks/ATLAS.md",
    "benchmarks/DESCENTS.md": "benchmarks/DESCENTS.md",
    "benchmarks/CIRCUITS.md": "benchmarks/CIRCUITS.md",
    "benchmarks/DIAGRAM.md": "benchmarks/DIAGRAM.md",
    "benchmarks/EXPLORER.md": "benchmarks/EXPLORER.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_outputs: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages from outside this folder, and the maps of the atlases that were measured."""
    for uri, path in _ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "benchmarks" / "records" / "atlas").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        content = atlas_page(found["page"], model=path.stem.partition("-")[0])
        files.append(File.generated(config, f"benchmarks/atlas-{found['case']}.html", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Run the examples; adapt links to repository files to the site, which contains only some of them."""
    markdown = _RUN.sub(lambda match: _example(ROOT / match[1]), markdown)
    return re.sub(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)", lambda match: _link(match, page.file.src_uri), markdown)


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


def _link(match: re.Match[str], uri: str) -> str:
    """Point a link to a repository file at its page on the site, or replace it by its text if there is none."""
    text, target, anchor = match[1], match[2], match[3] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_ELSEWHERE.get(uri, f"docs/{uri}")), target))
    if not (ROOT / path).is_file():  # a link elsewhere, or no link: code such as CRITERIA["snip"](trace)
        return match[0]
    pages = {source: page for page, source in _ELSEWHERE.items()}
    if path not in pages and not path.startswith("docs/"):
        return text
    there = pages.get(path, path.removeprefix("docs/"))
    return f"[{text}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"
