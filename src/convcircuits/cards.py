"""How values display in a notebook: small HTML tables in the notebook's own colors, light or dark."""

from collections.abc import Iterable, Sequence
from html import escape

from convcircuits.texts import printable

# Lines are gray, which shows on white and on black; everything else is inherited.
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, .4)"
_CELL = f"padding: .15em .8em; text-align: {{}}; background: none; color: inherit; {_LINE}"


def card(title: str, head: Sequence[str] = (), rows: Iterable[Sequence[str]] = (), notes: Iterable[str] = ()) -> str:
    """Return HTML with a title, a table and notes below it; all text is escaped.

    Args:
        title: Title of the card.
        head: Names of the columns, if the table needs any.
        rows: Cells of each row; the first names the row.
        notes: Sentences below the table.
    """
    lines = [f"<tr>{''.join(_cell('th', text, n) for n, text in enumerate(head))}</tr>"] if head else []
    lines += [f"<tr>{''.join(_cell('td', text, n) for n, text in enumerate(row))}</tr>" for row in rows]
    table = (
        '<div style="max-height: 24em; overflow: auto">'
        f'<table style="border-collapse: collapse; margin: .3em 0">{"".join(lines)}</table></div>'
    )
    return (
        f'<div style="line-height: 1.4"><strong>{_text(title)}</strong>{table if lines else ""}'
        f"{''.join(f'<div>{_text(note)}</div>' for note in notes)}</div>"
    )


def figure(value: float | None) -> str:
    """Format a figure with two decimals; a dash if it is not defined."""
    return "–" if value is None or value != value else f"{value:z.2f}"


def _cell(tag: str, text: str, column: int) -> str:
    return f'<{tag} style="{_CELL.format("right" if column else "left")}">{_text(text)}</{tag}>'


def _text(text: str) -> str:
    return escape(printable(text))
