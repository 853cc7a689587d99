"""Settings that all tests share."""

import importlib
import os

import torch
from jaxtyping import install_import_hook

# The networks are tiny: threads cost more than they gain, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Annotated shapes are checked in internal modules. (Public modules must see a caller's mistakes first, and numba
# compiles presum.)
INSIDE = ["network.calls", "circuits.ranking", "circuits.tracing"]
with install_import_hook([f"convcircuits.{module}" for module in INSIDE], "beartype.beartype"):
    for module in INSIDE:
        importlib.import_module(f"convcircuits.{module}")
