"""Run the command with ``python -m convcircuits``."""

from convcircuits.cli import main

main()
