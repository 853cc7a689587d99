"""Read Qt's resource bundles (.rcc): a tree of files in one file."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4
_NODE_SIZES = {1: 14, 2: 22, 3: 22}
"""The formats with the size of a node, which ends with the time of the last change from the second format on."""


class Entry(NamedTuple):
    """A file in a bundle: its path, its flags, and its content as it is stored."""

    path: str
    flags: int
    stored: bytes

    def content(self) -> bytes:
        """Return the content, decompressed if need be.

        Raises:
            ValueError: If it is damaged, or compressed by Zstandard.
        """
        if self.flags & _ZSTD:
            raise ValueError("it is compressed by Zstandard, which is not supported")
        if not self.flags & _COMPRESSED:
            return self.stored
        try:
            return zlib.decompress(self.stored[4:])  # after the size
        except zlib.error as error:
            raise ValueError(str(error)) from error


def entries(bundle: bytes) -> Iterator[Entry]:
    """Yield the files in a bundle of format 1, 2 or 3.

    Raises:
        ValueError: If it is no such bundle, or damaged.
    """
    magic, version = _unpack(">4sI", bundle, 0)
    if magic != b"qres" or version not in _NODE_SIZES:
        raise ValueError("it is not a Qt resource bundle of format 1, 2 or 3")
    tree, data, names = _unpack(">3I", bundle, 8)
    folders, node = {0: ""}, 0  # the folder that each node is in, which comes before it
    while node in folders:
        place = tree + node * _NODE_SIZES[version]
        name, flags = _unpack(">IH", bundle, place)
        (length,) = _unpack(">H", bundle, names + name)
        path = folders[node] + _slice(bundle, names + name + 6, 2 * length).decode("utf-16-be") if node else ""
        if flags & _FOLDER:
            count, first = _unpack(">2I", bundle, place + 6)
            if count and not node < first <= len(bundle) - count:
                raise ValueError("its tree is damaged")
            folders |= dict.fromkeys(range(first, first + count), f"{path}/" if node else "")
        else:
            (start,) = _unpack(">I", bundle, place + 10)  # after the language and the country
            (size,) = _unpack(">I", bundle, data + start)
            yield Entry(path, flags, _slice(bundle, data + start + 4, size))
        node += 1
    if len(folders) > node:
        raise ValueError("its tree is damaged")


def _unpack(form: str, bundle: bytes, place: int) -> tuple[Any, ...]:
    return struct.unpack(form, _slice(bundle, place, struct.calcsize(form)))


def _slice(bundle: bytes, start: int, size: int) -> bytes:
    if start + size > len(bundle):
        raise ValueError("it ends too early")
    return bundle[start : start + size]
