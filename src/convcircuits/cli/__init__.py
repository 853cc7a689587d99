"""The command ``convcircuits``: reads options, calls the library, prints what it says. No maths.

``console`` is how it begins, reports and ends; ``application`` has the commands, each in a file of its own; ``options``
are the options that several of them take, ``preparing`` what these come to, ``output`` how results are printed.

A command's own file is light, so that ``--help`` and completion answer at once: what it needs of the library is
imported when it runs.
"""

import importlib
import signal

from convcircuits.cli.console import end_at_once, run


def main() -> None:
    """Run the command: what the installed script and ``python -m convcircuits`` do."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)  # while modules are imported, and after all is done
    run(lambda: importlib.import_module("convcircuits.cli.application").app)
