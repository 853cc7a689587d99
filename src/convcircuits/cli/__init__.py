"""The command ``convcircuits``: it parses options, calls the library and prints the results. No maths.

``console`` starts the command, reports its progress and handles how it ends. ``application`` registers the commands,
each of which has a file of its own. ``options`` defines the options that several commands share, ``preparing`` turns
them into a model and images, and ``output`` prints results.

A command's file imports little, so that ``--help`` and completion respond at once. A command imports what it needs
from the library when it runs.
"""

import importlib
import os
import signal

from convcircuits.cli.console import end_at_once, run


def main() -> None:
    """Run the command, for the installed script and for ``python -m convcircuits``."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)  # during imports, and after the work is done
    # Else torch's threads wait in loops for a while after each operation, and keep a core from other threads and from
    # whatever else runs on the machine. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run(lambda: importlib.import_module("convcircuits.cli.application").app)
