"""The command ``convcircuits``: reads options, calls the library, prints what it says. No maths.

``console`` is how it begins, reports and ends; ``application`` has the commands, each in a file of its own; ``options``
are the options that several of them take, ``preparing`` what these come to, ``output`` how results are printed.

A command's own file is light, so that ``--help`` and completion answer at once: what it needs of the library is
imported when it runs.
"""

from convcircuits.cli.console import main

__all__ = ["main"]
