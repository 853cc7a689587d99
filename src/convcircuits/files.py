"""Files on disk: their names, and that they are written whole or not at all."""

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from convcircuits.errors import ConvCircuitsError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # on Windows, where what a killed run left stays
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
    """Return whether a path is that of an ordinary file; any path that there cannot be is not."""
    return os.path.isfile(path)  # noqa: PTH113 (Path's raises for a name that is too long)


def is_folder(path: Path) -> bool:
    """Return whether a path is that of a folder; any path that there cannot be is not."""
    return os.path.isdir(path)  # noqa: PTH112


def check_place(path: Path) -> None:
    """Refuse a path that ``write_whole`` could not write, before there is anything to write.

    Raises:
        ConvCircuitsError: As of ``write_whole``.
    """
    try:
        place = Path(os.path.realpath(path))
        _mode_of(path, place)
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConvCircuitsError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that it is never half written.

    A file that was there keeps its mode, and a symbolic link stays one: what it points to is written. What a run that
    was killed has left in the folder is removed.

    Raises:
        ConvCircuitsError: If the folder is not there or not to be written to, or the path is that of something other
            than an ordinary file.
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
    """Return the mode of the file that is replaced; where there is none, that of any new file."""
    try:
        found = place.stat().st_mode
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
    if not stat.S_ISREG(found):
        kind = _KINDS.get(stat.S_IFMT(found), "device")
        raise ConvCircuitsError(f"{path} cannot be written: there is a {kind} of that name; give the name of a file.")
    return stat.S_IMODE(found) & 0o777


def _new_file(folder: Path) -> tuple[int, str]:
    """Make a file that is locked for as long as its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_PREFIX, suffix=_SUFFIX)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks on this file system: then nothing is ever removed there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_still(handle, name):
            return handle, name
        os.close(handle)  # another run took it for abandoned before it was locked


def _is_still(handle: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False


def _move(file: BinaryIO, temporary: Path, place: Path, mode: int) -> None:
    """Move what is written to its place while it is still locked."""
    file.flush()
    temporary.chmod(mode)  # mkstemp makes it private
    if fcntl is None:
        file.close()
    temporary.replace(place)


def _remove_abandoned(folder: Path) -> None:
    """Remove files of ours whose writers are dead: nobody holds their locks any more."""
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
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError where its writer lives
                    if _is_still(handle, name):
                        Path(name).unlink()
            finally:
                os.close(handle)
