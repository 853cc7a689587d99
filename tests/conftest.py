"""Settings that all tests share."""

import os

import torch

# The nets are tiny: threads cost more than they give, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
