"""``python -m convcircuits``: the command."""

from convcircuits.console import main

main()
