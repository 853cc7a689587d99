"""``python -m convcircuits``: the command."""

from convcircuits.cli import main

main()
