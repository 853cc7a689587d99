"""The shapes that annotations of internal functions state hold, on every net.

They are checked in a process of its own: in all tests, it would take a fifth of their time.
"""

import importlib
import subprocess
import sys

import pytest
from jaxtyping import install_import_hook

# numba compiles presum, and public values must see a caller's mistakes first.
INSIDE = [
    *("network.calls", "network.masking"),
    *("circuits.tracing", "circuits.ranking", "circuits.equations", "circuits.lockstep", "circuits.responses"),
    *("subfeatures.saliencies", "subfeatures.grouping", "maps.receptive_fields", "maps.patches"),
]


def test_annotated_shapes_hold_on_every_net():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 22  # nets


def run_every_net():
    import jaxtyping
    import torch

    import convcircuits as cc
    from convcircuits.circuits.tracing import Layer
    from convcircuits.subfeatures.saliencies import image_saliencies
    from nets import NETS

    torch.set_num_threads(1)
    with pytest.raises(jaxtyping.TypeCheckError):  # the checks are on
        Layer("a", (), (2, 2), 1, "kernel").per_element(torch.zeros(2))
    for case in NETS.values():
        model, images, layer, unit = case.build(), case.images(), *case.features[-1]
        feature = cc.Feature(layer, unit)
        for granularity in ("kernel", "filter", "weight"):
            for criterion in ("actgrad", "snip", "gauss_newton"):
                cc.score(model, feature, images, criterion=criterion, granularity=granularity)
        circuit = cc.find(model, feature, images, density=0.5, criterion="snip")
        for method in ("kernels", "filters"):
            cc.evaluate(model, cc.refit(model, circuit, images, method=method), images)
        image_saliencies(model, feature, images, batch_size=2, seed=0)
    sys.stdout.write(str(len(NETS)))


if __name__ == "__main__":
    with install_import_hook([f"convcircuits.{module}" for module in INSIDE], "beartype.beartype"):
        for module in INSIDE:
            importlib.import_module(f"convcircuits.{module}")
    run_every_net()
