"""The one error that every mistake of a caller ends in."""


class ConvCircuitsError(ValueError):
    """Say what was given, what was expected and what to do, in one message."""
