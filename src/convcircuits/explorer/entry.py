"""Where the worker process begins. The server imports this module, which imports torch only when the worker runs."""

from multiprocessing.connection import Connection
from typing import Any

from convcircuits.explorer.opening import Opening


def work(opening: Opening, jobs: Connection, questions: Connection, stop: Any) -> None:
    """Run the worker."""
    from convcircuits.explorer import worker

    worker.run(opening, jobs, questions, stop)
