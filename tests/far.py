"""A device without hardware: computed on the CPU, its tensors refuse to meet the CPU's, as those of a GPU do.

It shows what a test on the CPU cannot: a mask, an index or a constant that was left behind. torch's autograd, modules
and ``.to`` treat it as any other device. What it cannot show is what only a GPU does: its own kernels and rounding.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "far"


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)

# As on a GPU: indices may lie on the CPU, and copies go from one device to another.
_MIXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_"}
_MIXED |= {"aten::_copy_from"}


class FarTensor(Tensor):
    """A tensor on the far device, which holds one of the CPU."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=DEVICE,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = FarTensor(self.near.clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def __repr__(self) -> str:
        return f"FarTensor({self.near!r})"

    @property
    def data(self) -> Tensor:
        return FarTensor(self.near)

    @data.setter
    def data(self, value: "FarTensor") -> None:
        Tensor.data.__set__(self, value)
        self.near = value.near

    # Memory is that of the tensor held: of an object without memory torch knows neither overlap nor sharing.

    def untyped_storage(self) -> Any:
        return self.near.untyped_storage()

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("A tensor on the far device has no numpy array; call .cpu() first.")

    def tolist(self) -> Any:
        host["tolist"] += 1
        return self.near.tolist()


host: Counter[str] = Counter()
"""How often values went to the CPU, by operation."""


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = [x for x in tensors if isinstance(x, FarTensor)]
    near = [x for x in tensors if not isinstance(x, FarTensor) and x.dim() > 0]
    if far and near and (name not in _MIXED or (name == "aten::index" and not isinstance(args[0], FarTensor))):
        shapes = [[tuple(x.shape) for x in some] for some in (far, near)]
        raise RuntimeError(f"{func} got tensors on two devices: {shapes[0]} on {NAME} and {shapes[1]} on the CPU.")
    device = kwargs.get("device")
    if device is None:
        stays = bool(far) and (name != "aten::copy_" or isinstance(args[0], FarTensor))
    else:
        stays = torch.device(device).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    held = {id(x.near): x for x in far}  # what is written in place is the same object afterwards
    args, kwargs = tree_map_only(FarTensor, lambda x: x.near, (args, kwargs))
    with _disable_current_modes():
        result = func(*args, **kwargs)
    if not stays:
        if far:
            host[name] += 1
        return result
    return tree_map_only(Tensor, lambda x: held[id(x)] if id(x) in held else FarTensor(x), result)


class Far(TorchDispatchMode):
    """Within this mode, tensors can be made on the far device and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if (device is not None and torch.device(device).type == NAME) or any(
            isinstance(x, FarTensor) for x in tree_leaves((args, kwargs))
        ):
            return _compute(func, args, kwargs)
        return func(*args, **kwargs)


# ``torch.tensor(values, device=...)`` sees no mode.
_library = torch.library.Library("aten", "IMPL")
for _name in ("empty_strided", "_to_copy", "copy_", "_copy_from"):
    _op = getattr(torch.ops.aten, _name).default
    _library.impl(_name, lambda *args, op=_op, **kwargs: _compute(op, args, kwargs), "PrivateUse1")
