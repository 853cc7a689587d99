"""Where the worker process begins. The server imports this module, which imports torch only when the worker runs."""

import signal
from multiprocessing.connection import Connection
from typing import Any

from convcircuits.explorer.opening import Opening


def work(opening: Opening, jobs: Connection, questions: Connection, stops: Any) -> None:
    """Run the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, also while torch is being imported
    from convcircuits.explorer import worker

    worker.run(opening, jobs, questions, stops)
