"""Open the explorer's page in the web browser. The address holds the token, so no process list may show it."""

import atexit
import contextlib
import html
import os
import tempfile
import threading
import webbrowser
from pathlib import Path

_SECONDS = 60.0  # until the browser has read the file


def open_address(address: str, folder: Path) -> None:
    """Open a small file that leads to an address, which only this user can read; it is removed after a minute.

    Args:
        address: The address.
        folder: Where to write the file, if possible: some browsers may not read the system's temporary folder.
    """
    place = folder if folder.is_dir() and os.access(folder, os.W_OK) else None
    handle, name = tempfile.mkstemp(prefix="open-", suffix=".html", dir=place)  # mode 0600
    text = html.escape(address, quote=True)
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={text}"><title>convcircuits</title>'
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'{page}<a href="{text}">Open the explorer.</a>\n')
    webbrowser.open(Path(name).absolute().as_uri())
    timer = threading.Timer(_SECONDS, _remove, [name])
    timer.daemon = True
    timer.start()
    atexit.register(_remove, name)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        Path(name).unlink(missing_ok=True)
