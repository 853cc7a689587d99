"""Files on disk: their names, and writing them completely or not at all."""

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO

from convcircuits.errors import ConvCircuitsError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # on Windows, where leftovers of killed runs remain
    fcntl = None

_PREFIX, _SUFFIX = ".convcircuits-", ".part"
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


def safe_name(text: str) -> str:
    """Return a text with letters of ASCII, digits, ``_``, ``.`` and ``+`` alone, and ``-`` in place of the rest."""
    return re.sub(r"[^\w.+]+", "-", text, flags=re.ASCII)


def named_after(model: str, slug: str) -> str:
    """Return the name, without a suffix, of what is written for a feature of a model: ``vgg16_hed-features.14-54``."""
    return f"{safe_name(model).strip('-.')}-{slug}".lstrip("-.")


def is_file(path: Path) -> bool:
    """Return whether a path is an ordinary file; False for an impossible path."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False for an impossible path."""
    return os.path.isdir(path)  # noqa: PTH112


def check_place(path: Path) -> None:
    """Check that ``write_whole`` could write a path, before there is anything to write.

    Raises:
        ConvCircuitsError: As for ``write_whole``.
    """
    try:
        place = Path(os.path.realpath(path))
        _mode_of(path, place)
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConvCircuitsError(f"{path} cannot be written: {error.strerror or error}.") from error


def lock(file: IO[Any]) -> str:
    """Lock an open file against other processes, until it is closed.

    Returns:
        Why that is not possible here, on Windows or on a file system without locks; empty if the file is locked.

    Raises:
        BlockingIOError: If another process has locked it.
    """
    if fcntl is None:
        return "this system has none"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_whole(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder and rename it, so that the file is never half written.

    An existing file keeps its mode, and a symbolic link remains: its target is written. Leftovers of killed runs in the
    folder are removed.

    Raises:
        ConvCircuitsError: If the folder does not exist or is not writable, or the path is not that of an ordinary file.
    """
    try:
        place = Path(os.path.realpath(path))
        mode = _mode_of(path, place)
        _remove_abandoned(place.parent)
        handle, temporary = _new_file(place.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                _move(file, Path(temporary), place, mode)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConvCircuitsError(f"{path} cannot be written: {error.strerror or error}.") from error


def _mode_of(path: Path, place: Path) -> int:
    """Return the mode of the file to replace, or the default mode of a new file."""
    try:
        found = place.stat().st_mode
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
    if not stat.S_ISREG(found):
        kind = _KINDS.get(stat.S_IFMT(found), "device")
        raise ConvCircuitsError(f"{path} cannot be written: it is a {kind}; give the name of a file.")
    return stat.S_IMODE(found) & 0o777


def _new_file(folder: Path) -> tuple[int, str]:
    """Create a temporary file that stays locked as long as its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_PREFIX, suffix=_SUFFIX)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks on this file system, so nothing is ever removed there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_still(handle, name):
            return handle, name
        os.close(handle)  # another run removed it as abandoned before it was locked


def _is_still(handle: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False


def _move(file: BinaryIO, temporary: Path, place: Path, mode: int) -> None:
    """Rename the written file to its place while it is still locked."""
    file.flush()
    temporary.chmod(mode)  # mkstemp makes it private
    if fcntl is None:
        file.close()
    temporary.replace(place)


def _remove_abandoned(folder: Path) -> None:
    """Remove our temporary files whose writers are dead, that is whose locks are free."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        names = [e.path for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
    for name in names:
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                found = os.fstat(handle)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError if its writer lives
                    if _is_still(handle, name):
                        Path(name).unlink()
            finally:
                os.close(handle)
