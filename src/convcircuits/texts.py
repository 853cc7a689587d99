"""Text of others, from files and models, as it may be shown."""


def printable(text: str) -> str:
    r"""Write what is not to be seen in text as escapes, ``\x1b`` or ``\n``: it could move a terminal's cursor.

    Control characters, line ends, surrogates and those that change the direction of reading are among them.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Do the same in every line of a text of our own."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
