"""Install what pip cannot: Python's venv, which Debian packages apart, and the Chromium that pages are tested in.

    python3 tools/needs.py venv .venv    # make a virtual environment of this Python
    python3 tools/needs.py chromium      # print the path of a Chromium or Chrome; install one where none is found

Node.js needs no place here: it comes from a wheel, with the extra ``dev``. Nothing is ever asked. What is there is
used; what is missing is installed by apt-get (as root, or by sudo where it needs no password), a browser else by
Playwright's own download. One line on standard error says what is being done.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT = (sys.executable, "-m", "playwright")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def main(arguments: Sequence[str]) -> None:
    """Do what the command line names."""
    match list(arguments):
        case ["venv", folder]:
            make_venv(folder)
        case ["chromium"]:
            make_driver_run()
            print(find_chromium() or install_chromium())
        case _:
            raise SystemExit(__doc__)


def make_venv(folder: str) -> None:
    """Make a virtual environment of the Python that runs this.

    Raises:
        SystemExit: It has no venv, and none can be installed.
    """
    if not _has_venv():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if not (_apt_get(package) and _has_venv()):
            raise SystemExit(f"{sys.executable} cannot make virtual environments: install {package}, then try again.")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome that runs, None where there is none.

    ``CHROME_BIN`` comes first, then what is on the PATH, where macOS has it, and what Playwright has downloaded.

    Raises:
        SystemExit: ``CHROME_BIN`` names something that does not run.
    """
    if given := os.environ.get("CHROME_BIN"):
        if not _runs(given):
            raise SystemExit(f"CHROME_BIN is {given!r}, which does not run: name a Chromium or Chrome, or unset it.")
        return given
    found = [*filter(None, map(shutil.which, NAMES)), *PLACES]
    return next(filter(_runs, found), None) or _playwrights()


def find_node() -> str | None:
    """Return the path of Node.js: the wheel's, beside this Python, else what is on the PATH."""
    return shutil.which("node", path=Path(sys.executable).parent) or shutil.which("node")


def make_driver_run() -> None:
    """Install what Playwright's driver, which drives the browser, is linked with, where that is missing.

    Raises:
        SystemExit: It does not run, and what it needs cannot be installed.
    """
    if not (_runs(*PLAYWRIGHT) or (_apt_get("libatomic1") and _runs(*PLAYWRIGHT))):
        raise SystemExit("Playwright does not run: pip install playwright; on Debian and Ubuntu it needs libatomic1.")


def install_chromium() -> str:
    """Install a Chromium and return its path.

    Raises:
        SystemExit: Neither apt-get nor Playwright could install one.
    """
    # Ubuntu's package only points to a snap, so that apt-get may find nothing to install.
    if _apt_get("chromium", "fonts-liberation") and (found := find_chromium()):
        return found
    _say("Downloading Playwright's Chromium.")
    needs = ["--with-deps"] if _root() is not None else []  # the libraries that it is linked with
    subprocess.run([*PLAYWRIGHT, "install", *needs, "chromium"], stdout=sys.stderr)
    if found := _playwrights():
        return found
    raise SystemExit(
        "No Chromium was found, and none could be installed: install Chromium or Chrome so that it is on the PATH, "
        "or name one by CHROME_BIN."
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _has_venv() -> bool:
    """Return whether this Python can make virtual environments with pip in them."""
    return subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0


def _runs(*command: str) -> bool:
    """Return whether a command tells its version; a stub of a browser that points to a snap does not."""
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
    """Return what a command begins with so that it runs as root, None where that would ask for a password."""
    if not hasattr(os, "geteuid"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    asks = not shutil.which("sudo") or subprocess.run([*sudo, "true"], capture_output=True).returncode != 0
    return None if asks else sudo


def _apt_get(*packages: str) -> bool:
    """Install Debian packages; return whether that was possible."""
    root = _root()
    if root is None or not shutil.which("apt-get"):
        return False
    _say(f"Installing {' and '.join(packages)} by apt-get.")
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    subprocess.run([*quiet, "update"], capture_output=True)  # where one source of several fails, the others may do
    install = [*quiet, "install", "--yes", "--no-install-recommends", *packages]
    done = subprocess.run(install, capture_output=True, text=True, errors="replace")
    if done.returncode:
        _say(f"apt-get could not: {done.stderr.strip()}")
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
