"""The checksum of a file in the safetensors format, and the JSON in its header, read without torch.

Our metadata begins with a checksum over all bytes of the file, in which the checksum itself counts as zeros.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "convcircuits"
"""The metadata that holds our JSON."""

NO_SUM = "0" * 64
"""What stands in the place of a checksum while it is computed."""


def metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a file's header. Errors are those of any damaged JSON."""
    found: dict[str, str] = json.loads(content[8 : _end_of_header(content)]).get("__metadata__", {})
    return found


def filled(content: bytes) -> bytes:
    """Return a file's content with its checksum in place of ``NO_SUM``."""
    start, end = _place_of(NO_SUM, content)
    return content[:start] + _checksum(content, start, end).encode() + content[end:]


def is_sealed(content: bytes, header: Mapping[str, Any]) -> bool:
    """Return whether a file's content is what it was when the checksum in its header, our JSON, was taken."""
    checksum = str(header.get("checksum"))
    start, end = _place_of(checksum, content)
    return start >= 0 and checksum == _checksum(content, start, end)


def _place_of(checksum: str, content: bytes) -> tuple[int, int]:
    """Return where a checksum begins and ends in a file's header, or (-1, -1) if it is missing or there twice."""
    before = json.dumps('{"checksum": "')[:-1].encode()
    word = before + checksum.encode(errors="replace")
    header = content[: _end_of_header(content)]
    start = header.find(word) if header.count(word) == 1 and len(checksum) == len(NO_SUM) else -1
    return (start + len(before), start + len(word)) if start >= 0 else (-1, -1)


def _checksum(content: bytes, start: int, end: int) -> str:
    whole = memoryview(content)
    found = hashlib.sha256(whole[:start])
    found.update(NO_SUM.encode())
    found.update(whole[end:])
    return found.hexdigest()


def _end_of_header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")
