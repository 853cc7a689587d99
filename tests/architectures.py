"""Architectures of torchvision and timm: one table, with random weights, for tests that must hold on every one.

``from architectures import ARCHITECTURES``: name -> `Architecture`. Whatever training would leave non-trivial is made
so: BatchNorm's statistics and affine (negative gammas too), LayerNorm's affine, layer scales, skip gains.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import timm
import torch
import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """How to build a model, what it reads, and the (layer, unit) features worth testing.

    `blocks` names the channels C of every Linear that reads a flattened (C, H, W) map. `error`, where given, is what
    the library's error says: the architecture is not supported, for the features named.
    """

    name: str
    features: tuple[tuple[str, int], ...]
    side: int = 64
    options: Mapping[str, object] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    error: str | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.side, self.side)

    def images(self, n: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(1000)
        return torch.randn(n, *self.input_shape, generator=generator).to(self.dtype)

    def build(self) -> nn.Module:
        """Make the model, the same at every call, in eval mode; the global random state stays as it was."""
        library, _, kind = self.name.partition(":")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            if library == "timm":
                model = timm.create_model(kind, pretrained=False, **self.options)
            else:
                model = torchvision.models.get_model(kind, weights=None, **self.options)
            _make_nontrivial(model)
        return model.to(self.dtype).eval()


def _make_nontrivial(model: nn.Module) -> None:
    """Give every weight that is not a kernel values that matter, and every bias."""
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for parameter in model.parameters():
        if id(parameter) not in kernels:
            parameter.data.normal_(0.1, 0.3)
    for module in model.modules():
        if _is_norm(module):
            signs = torch.where(torch.rand(module.weight.shape) < 0.25, -1.0, 1.0)
            module.weight.data.copy_(signs * (0.5 + torch.rand(module.weight.shape)))
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("layer_scale", "gamma", "skipinit_gain", "gain"):
            parameter.data.uniform_(0.3, 0.7)  # 1e-6 or 0 where training begins


def _is_norm(module: nn.Module) -> bool:
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, norms) and isinstance(module.weight, Tensor)
