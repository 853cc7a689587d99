"""Text of others, from files and models, as it may be shown."""

from collections.abc import Iterable


def printable(text: str) -> str:
    r"""Write what is not to be seen in text as escapes, ``\x1b`` or ``\n``: it could move a terminal's cursor.

    Control characters, line ends, surrogates and those that change the direction of reading are among them.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Do the same in every line of a text of our own."""
    return "\n".join(printable(line) for line in text.split("\n"))


def sentences(notes: Iterable[str]) -> tuple[str, ...]:
    """Write notes as sentences, each once: with a full stop last and, but for names (``conv1``), a capital first."""
    return tuple(dict.fromkeys(_sentence(note) for note in notes))


def _sentence(note: str) -> str:
    first = note.split(" ", 1)[0]
    text = note[:1].upper() + note[1:] if first.isalpha() else note
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
