"""The explorer's process when it is started from Python: it ends when its standard input does."""

import json
import sys
import threading
from pathlib import Path

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.launch import start
from convcircuits.explorer.opening import Opening


def main() -> None:
    """Read what to open from the first line of standard input, write the address, and serve."""
    request = json.loads(sys.stdin.readline())
    fields = request["opening"]
    opening = Opening(
        **{
            **fields,
            "given": None if fields["given"] is None else Path(fields["given"]),
            "project": Path(fields["project"]),
            "path": tuple(fields["path"]),
            "atlases": tuple(map(Path, fields["atlases"])),
        }
    )
    sys.path[:0] = [path for path in opening.path if path not in sys.path]
    until = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        until.set()

    threading.Thread(target=wait, daemon=True).start()

    def tell(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        start(
            opening,
            host="127.0.0.1",
            port=request["port"],
            read_only=request["read_only"],
            open_page=False,
            notify=tell,
            until=until,
        )
    except ConvCircuitsError as error:
        tell(f"error: {error}")
        sys.exit(1)
    finally:
        if opening.given is not None:
            opening.given.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
