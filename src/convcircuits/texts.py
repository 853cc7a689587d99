"""Text from files and models, made safe to show."""

from collections.abc import Hashable, Iterable, Sequence


def printable(text: str) -> str:
    r"""Escape unprintable characters, as ``\x1b`` or ``\n``, since they could move a terminal's cursor.

    They include control characters, line ends, surrogates and characters that change the direction of text.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Escape unprintable characters in each line, keeping the line ends."""
    return "\n".join(printable(line) for line in text.split("\n"))


def names(of: Sequence[str]) -> str:
    """Join names by commas; of more than twelve, name the first twelve and count the rest."""
    return ", ".join(map(printable, of[:12])) + (f" and {len(of) - 12} more" if len(of) > 12 else "")


def counted(photographs: Sequence[Hashable], *, subjects: bool = False) -> str:
    """Count images, given the photograph that each is a crop of, or that it is, given its subject."""
    images, several = len(photographs), len(set(photographs))
    if images == several:
        return number(images, "photograph")
    what, of = ("photograph", "subject") if subjects else ("crop", "photograph")
    return f"{number(images, what)} of {number(several, of)}"


def number(count: int, noun: str) -> str:
    """Return a number with its noun, as "1 photograph" or "1,200 photographs"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def sentences(notes: Iterable[str]) -> tuple[str, ...]:
    """Return distinct notes as sentences: ended by a period and, unless a name (``conv1``) is first, capitalized."""
    return tuple(dict.fromkeys(_sentence(note) for note in notes))


def _sentence(note: str) -> str:
    first = note.split(" ", 1)[0]
    text = note[:1].upper() + note[1:] if first.isalpha() else note
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
