"""Start the explorer: from the command, in this process; from Python, in a process of its own."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from convcircuits.errors import ConvCircuitsError, option
from convcircuits.explorer.browser import open_address
from convcircuits.explorer.bundle import Bundle
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.security import ANYWHERE
from convcircuits.files import named_after
from convcircuits.zoo.specs import check_runs_no_code_unasked

if TYPE_CHECKING:
    from torch import nn

    from convcircuits.zoo.preprocessing import Preprocessing

_OWN = ("127.0.0.1", "localhost", "::1")


def start(opening: Opening, *, host: str, port: int | None, notify: Callable[[str], None], **how: Any) -> None:
    """Serve the explorer in this process until Ctrl-C.

    Args:
        opening: What to open.
        host: The address to listen at.
        port: The port, or None.
        notify: Called with each sentence for the user; first with the address.
        **how: As for ``server.serve``.

    Raises:
        ConvCircuitsError: If the extra ``explore`` is not installed, or as for ``server.serve``.
    """
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise ConvCircuitsError("The explorer needs fastapi and uvicorn: pip install 'convcircuits[explore]'.")
    from convcircuits.explorer.server import serve

    def announced(address: str) -> None:
        notify(address)
        if host in ANYWHERE:
            number, own = number_in_network(), urlsplit(address)
            elsewhere = None if number is None else own._replace(netloc=f"{number}:{own.port}").geturl()
            notify(f"from other machines: {elsewhere or 'the same, with a number of this machine for 127.0.0.1'}")
        if host not in _OWN:
            notify(
                f"warning: {host} can be reached from other machines. Whoever has this address, with its token, sees "
                "your photographs and can start work; the connection is not encrypted."
            )

    serve(opening, host=host, port=port, notify=announced, **how)


def number_in_network() -> str | None:
    """Return the IPv4 address of this machine in the network that leads out of it, or None if there is none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))  # an address of nobody: nothing is sent, but the way there is looked up
        number: str = one.getsockname()[0]
        return None if number.startswith("127.") else number
    return None


def of_bundle(
    file: Path, model: str | None, images: str | None, project: Path | None, *, weights: Path | None, read_only: bool
) -> tuple[str, str, Path, dict[str, Any]]:
    """Return the model, the photographs and the project to open a bundle with, after checking its hashes.

    Its photographs, if it has any and no others are given, are written to a folder of the project. The last value are
    the size, mean and std that were given where its circuit is from; it is empty for another model.

    Raises:
        ConvCircuitsError: If it is no bundle or damaged, it names a model of custom code or photographs that are not
            in it and none are given, its weights are in a file and none is given, or nothing may be written.
    """
    if read_only:
        raise ConvCircuitsError("--bundle adds a circuit to the project, so it does not go with --read-only.")
    found = Bundle.read(file)
    if model is None:
        model = str(found.about["model"])
        check_runs_no_code_unasked(file, model)
    options = dict(found.about["options"]) if model == found.about["model"] else {}
    named = options.pop("weights", None)
    if named is not None and weights is None:
        raise ConvCircuitsError(
            f"The circuit of {file} is of the weights in a file {named!r:.200}, which is not in it; give --weights."
        )
    project = project or Path(named_after(model, "explorer"))
    if images is None:
        images = str(found.about["images"])
        if found.photographs:
            images = str(found.unpack_photographs(project))
        elif images != "sample":
            raise ConvCircuitsError(
                f"{file} holds no photographs; give --images with those that its circuit was found on, or others."
            )
    return (
        model,
        images,
        project,
        {name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value},
    )


class Explorer:
    """An explorer that runs in a process of its own until it is closed or this process ends.

    Attributes:
        address: What to open in a browser; it holds the token.
    """

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process, self.address = process, address
        assert process.stdout is not None
        self._reader = threading.Thread(target=process.stdout.read, daemon=True)  # so that its pipe never fills
        self._reader.start()

    def close(self) -> None:
        """End it. What was being computed is lost, except what the index has written."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Explorer({self.address})"


def explore(
    model: "nn.Module | str",
    images: str | os.PathLike[str],
    *,
    preprocess: "Preprocessing | None" = None,
    project: str | os.PathLike[str] | None = None,
    atlases: Sequence[str | os.PathLike[str]] = (),
    size: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    port: int | None = None,
    read_only: bool = False,
    open: bool = True,
) -> Explorer:
    """Look at a model's units and their circuits in the web browser.

    The page is served from a process of its own at 127.0.0.1, and another one holds the model.

    Args:
        model: A CNN, whose class and ``preprocess`` a new Python can import; or a name as for ``load_model``.
        images: A folder of photographs, ``"sample"`` or ``"gcompris:FOLDER"``.
        preprocess: A function that turns a picture into the model's input (C, H, W). Needed for a CNN, and not for a
            name.
        project: Folder for the index, the circuits and the notes. If not given, one named after the model.
        atlases: Folders that ``cc.atlas`` wrote for layers of the model, besides those in ``atlases`` of the project.
        size: Side of the images in pixels. If not given, the model's own.
        batch_size: Maximum number of images that run at once.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``. Only for a name: a CNN stays where it is.
        port: Port. If not given, the first free one from 8642 on.
        read_only: Start no work and write nothing.
        open: Open the page in the web browser.

    Returns:
        The explorer, which has an ``address`` and is ended by ``close`` or at the end of a ``with`` statement.

    Raises:
        ConvCircuitsError: If the extra ``explore`` is not installed, there is no atlas in a folder, the model cannot be
            sent to another process, a model or its preprocessing is missing or given twice, or the explorer does not
            start.
    """
    named = isinstance(model, str)
    if named != (preprocess is None):
        what = f"{model!r} specifies its own preprocessing; omit" if named else "A model of your own needs"
        raise ConvCircuitsError(f"{what} {option('preprocess')}.")
    given = None if isinstance(model, str) else _pickled(model, preprocess)
    name = model if isinstance(model, str) else type(model).__name__
    opening = Opening(
        model=model if isinstance(model, str) else None,
        given=given,
        path=tuple(path for path in sys.path if path),
        images=os.fspath(images),
        project=Path(project if project is not None else named_after(name, "explorer")).absolute(),
        size=size,
        batch_size=batch_size,
        device=device,
        atlases=tuple(Path(folder).absolute() for folder in atlases),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "convcircuits.explorer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C stops what Python computes, not the explorer beside it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    fields = {
        **dataclasses.asdict(opening),
        "given": given and str(given),
        "project": str(opening.project),
        "bundle": None,
        "atlases": [str(folder) for folder in opening.atlases],
    }
    try:
        process.stdin.write(json.dumps({"opening": fields, "port": port, "read_only": read_only}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline().strip()
    except OSError:
        line = ""
    if not line.startswith("http://"):
        process.kill()
        process.communicate()
        if given is not None:
            given.unlink(missing_ok=True)
        raise ConvCircuitsError(line.removeprefix("error: ") or "The explorer's process ended before it served a page.")
    if open:
        open_address(line, opening.project)
    return Explorer(process, line)


def _pickled(model: "nn.Module", preprocess: Any) -> Path:
    """Write a model and its preprocessing to a file that only this user can read, and that the explorer removes."""
    try:
        content = pickle.dumps((model, preprocess))
    except Exception as error:
        raise ConvCircuitsError(
            f"The model or preprocess cannot be sent to the explorer's own process ({error}); define both in a module "
            "that can be imported, and give no lambda."
        ) from error
    handle, name = tempfile.mkstemp(prefix="convcircuits-", suffix=".model")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)
