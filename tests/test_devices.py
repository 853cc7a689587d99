"""Results on another device than the CPU: see `devices`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration


@pytest.mark.oracle
def test_another_device_gives_the_same_results():
    """A device that is registered changes torch for its whole process, so these tests have one of their own."""
    if not (torch.cuda.is_available() or hasattr(backend_registration, "_setup_privateuseone_for_python_backend")):
        pytest.skip("needs a GPU or a later torch")
    file = Path(__file__).with_name("devices.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(command, cwd=file.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
