"""Record a model up to a feature as a graph, by running it once and keeping the dispatched ATen operations.

The effect of a write on other views of the memory is recorded as a separate value, so that each value is computed once,
from earlier ones. Models that depend on the values of the images, draw random numbers or mix maps in an unsupported way
raise an error.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.graph import Graph, Node, Ref
from convcircuits.network.operations import (
    is_added_to,
    is_constant,
    is_contraction,
    is_known,
    name_of,
    part_of_storage,
    written_into_storage,
)
from convcircuits.values.feature import Feature


def record_graph(network: Network, feature: Feature, images: Tensor) -> Graph:
    """Run a model up to the feature and return the recorded graph.

    Args:
        network: The model.
        feature: The feature, which names the layer and, if it runs several times, the call.
        images: The batch to run on; the graph is for batches of this shape.

    Raises:
        ConvCircuitsError: If the operations depend on the values of the images, are random, or multiply by weights
            other than with ``conv2d`` and ``linear``.
    """
    recorder = Recorder(network, feature, images)
    with torch.no_grad(), recorder:
        output = network.run(feature, images, recorder.kernel)
        recorder.stop(output)
    return recorder.graph()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations on the images that are dispatched while it is active, until ``stop`` is called.

    Args:
        network: The model that runs.
        feature: The feature, for error messages.
        images: The batch on which the model runs.
    """

    def __init__(self, network: Network, feature: Feature, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network, self._feature, self._images = network, feature, images
        self._nodes: list[Node] = []
        self._values: list[tuple[torch.Size, torch.dtype]] = []
        self._held: Any = WeakIdKeyDictionary()  # tensor -> number of its value, and its memory when it was seen
        self._learned: Any = WeakIdKeyDictionary()  # constants that were computed from parameters
        self._of_storage: dict[int, list[weakref.ref[Tensor]]] = {}
        self._roots: dict[int, Tensor] = {}  # storage that was written to -> the tensor from which its views are read
        self._output: int | None = None
        self._recording = True
        self._put(images)

    def __enter__(self) -> "Recorder":
        self._network.composed = self._composed
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._network.composed = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which is slow and sets an environment variable

    def graph(self) -> Graph:
        """Return the recorded operations from which the output is computed."""
        assert self._output is not None
        shapes, dtypes = zip(*self._values, strict=True)
        wanted, nodes = {self._output}, []
        for node in reversed(self._nodes):
            if wanted & set(node.outputs):
                wanted |= set(node.inputs)
                nodes.append(node)
        return Graph(tuple(reversed(nodes)), shapes, dtypes, self._output)

    def stop(self, output: Tensor) -> None:
        """Stop recording; ``output`` is the output of the feature's layer."""
        with self._paused():
            if not self._is_of_image(output):
                raise ConvCircuitsError(
                    f"The output of {self._feature.layer} does not depend on the image, so it has no feature; "
                    "choose another layer."
                )
            self._output = self._number(output)
        self._recording = False  # for good

    def kernel(self, call: KernelCall) -> Tensor:
        """Record a kernel call as one node.

        Its output is only sketched: no recorded operation may depend on the values of maps, and all that is computed
        from constants alone is computed as the model does.
        """
        if not self._recording:
            return call.sketch()
        with self._paused():
            for name, tensor in (("weights", call.weight), ("biases", call.bias)):
                if tensor is not None and self._is_of_image(tensor):
                    raise self.undecided(f"computes its {name} from the image")
            if not self._is_of_image(call.x):
                output = call.compute()
                self._learned[output] = True
                return output
            output = call.sketch()
            if len(call.x) != len(self._images):
                raise self.undecided("reads windows or tokens split along the batch")
            args = (Ref(self._number(call.x)),)
            kind = call.x.device.type
            cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            if not self._network.shared:  # the model writes to its weights
                call = replace(call, weight=call.weight.clone(), bias=None if call.bias is None else call.bias.clone())
            self._nodes.append(Node(None, args, {}, _without_input(call), (self._put(output),), call.layer, cast))
            return output

    def _composed(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute a function that torch does not dispatch, or not as one operation.

        Instance norm and circular padding are one node each, not their parts.
        """
        if func in _UNSEEN and self._recording and any(map(self._is_of_image, tensors_in(args))):
            raise self.undecided(f"depends on the values of a map ({func.__name__})")
        if func is F.instance_norm:
            op, given = torch.ops.aten.instance_norm.default, _instance_norm(*args, **kwargs)
        elif func is F.pad and "circular" in (*args[2:3], kwargs.get("mode")):
            op, given = torch.ops.aten.pad.default, _padding(*args, **kwargs)
        else:
            return func(*args, **kwargs)
        if not self._recording or not any(map(self._is_of_image, tensors_in(given))):
            return op(*given)
        return self._computed(op, given, {})

    def undecided(self, what: str) -> ConvCircuitsError:
        """Return the error for a model that does something unsupported."""
        where, layer = self._network.running() or self._network.name, self._feature.layer
        return ConvCircuitsError(
            f"{where} {what}, so the kernels that reach {layer} are unknown. Choose a feature before it."
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not self._recording:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        if name_of(func) == "rrelu_with_noise":
            known = _by_name(func, args, kwargs)
            if not known["training"]:  # in eval mode, its random slope is replaced by the mean
                leaky = torch.ops.aten.leaky_relu_ if func._schema.name.endswith("_") else torch.ops.aten.leaky_relu
                with self._inside():
                    return leaky(known["self"], (known["lower"] + known["upper"]) / 2)
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self._random(func)
        if not any(map(self._is_of_image, given)):
            result = func(*args, **kwargs)
            if any(isinstance(x, nn.Parameter) or x in self._learned for x in given):
                for x in tensors_in(result):
                    self._learned[x] = True
            return result
        if name_of(func).startswith("_foreach_"):  # torch loops over the lists
            with self._inside():
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        self._check(func, given)
        if name_of(func) == "as_strided":
            return self._restrided(func, args, kwargs)
        if name_of(func) in _SAME:  # how often torch calls these varies
            number, result = self._number(args[0]), func(*args, **kwargs)
            self._hold(result, number)
            return result
        if is_constant(func) or (name_of(func) == "resize_as" and not self._is_of_image(args[0])):
            return func(*args, **kwargs)
        return self._record(func, args, kwargs)

    def _random(self, func: Any) -> ConvCircuitsError:
        return ConvCircuitsError(
            f"{self._network.running() or self._network.name} draws random numbers ({name_of(func)}) in eval "
            "mode, so its maps differ in every run and their figures would be meaningless. Make it deterministic "
            "(functional dropout needs training=self.training), or choose a feature before it."
        )

    def _check(self, func: Any, given: Sequence[Tensor]) -> None:
        """Check that an operation neither depends on the values of the image nor multiplies by a weight."""
        name = name_of(func)
        chosen = [x for x in given[1:] if self._is_of_image(x)]
        indexed = name in ("index", "masked_select") and all(x.dtype in (torch.int32, torch.int64) for x in chosen)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags) and not indexed:
            raise self.undecided(f"depends on the values of a map ({_SPOKEN.get(name, name)})")
        constants = [x for x in given if not self._is_of_image(x)]
        weights = [x for x in constants if x.dim() > 1 and (isinstance(x, nn.Parameter) or x in self._learned)]
        if weights and (is_contraction(func) or not (is_known(func) or name in _PARTS)):
            raise ConvCircuitsError(
                f"{self._network.running() or self._network.name} multiplies by a weight with {name}; convcircuits "
                "supports weights of conv2d and linear only. Use nn.Conv2d or nn.Linear, or choose a feature before it."
            )
        if name in ("put", "take"):
            raise self.undecided(f"uses indices across all images of a batch ({name})")
        if is_contraction(func) and sum(map(self._is_of_image, given[is_added_to(func) :])) > 1:
            raise self.undecided(f"mixes maps with {name}")

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        written = _written(func, len(args))
        op = _functional(func)
        if op is None or any(not isinstance(given.get(key), Tensor) for key in written):
            raise self.undecided(f"writes to tensors in an unsupported way ({func})")
        before = [self._before_write(given[key]) for key in written]
        known = {known.name for known in op._schema.arguments}
        result = self._computed(op, args, {key: value for key, value in kwargs.items() if key in known})
        if not written:
            return result
        if torch.Tag.inplace_view in func.tags:
            func(*args, **kwargs)
            self._hold(args[0], self._number(result))
            return args[0]
        for key, new, (root, old) in zip(written, _results(result), before, strict=True):
            self._overwrite(given[key], new, root, old)
        return given[written[0]] if len(written) == 1 else tuple(given[key] for key in written)

    def _computed(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute and record an operation that writes to nothing."""
        name = name_of(op)
        if name in _PARTS and (name != "copy" or self._is_of_image(args[1])):  # a copied constant is not a map
            with self._inside():
                return _PARTS[name](*args, **kwargs)
        encoded = self._encoded(args), self._encoded(kwargs)
        with self._paused():
            result = op(*args, **kwargs)
        outputs = tuple(self._put(x) if isinstance(x, Tensor) else None for x in _results(result))
        self._nodes.append(Node(op, *encoded, None, outputs, self._network.running()))
        return result

    def _restrided(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a view with equal strides, as poolings create, and raise an error for any other."""
        x, number, before = args[0], self._number(args[0]), _steps(args[0])
        result = func(*args, **kwargs)
        if _steps(result) != before or result.storage_offset() != x.storage_offset():
            raise self.undecided("reads the memory of a map with other strides")
        self._hold(result, number)
        return result

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if self._is_of_image(value):
                return Ref(self._number(value))
            shared = isinstance(value, nn.Parameter) and self._network.shared
            return value if shared else value.detach().clone()
        if isinstance(value, Mapping):
            return {key: self._encoded(part) for key, part in value.items()}
        return type(value)(self._encoded(part) for part in value) if type(value) in (tuple, list) else value

    def _put(self, x: Tensor) -> int:
        """Record a new value of a tensor, and return its number."""
        number = len(self._values)
        self._values.append((x.shape, x.dtype))
        self._hold(x, number)
        return number

    def _hold(self, x: Tensor, number: int) -> None:
        """Store which value a tensor holds, and where its memory is."""
        self._held[x] = number, _memory(x)
        self._of_storage.setdefault(_storage(x), []).append(weakref.ref(x))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Record the operations inside an operation."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._recording = False
        try:
            yield
        finally:
            self._recording = True

    # ---------------------------------------- tensors that share memory

    def _is_of_image(self, x: Tensor) -> bool:
        held = self._held.get(x)
        if held is None:
            return _storage(x) in self._roots or self._alias(x) is not None
        if held[1] != _memory(x):
            raise self.undecided("assigns to the .data of a map (assign to a new name instead, or use copy_)")
        return True

    def _alias(self, x: Tensor) -> Tensor | None:
        """Return a tensor with a known value that shares its memory with ``x``."""
        key = _storage(x)
        if not key:
            return None
        for reference in self._of_storage.get(key, []):
            known = reference()
            if known is not None and known in self._held and _storage(known) == key:
                return known
        return None

    def _number(self, x: Tensor) -> int:
        """Return the number of a tensor's value, recording it first if it is a view of another tensor's memory."""
        if x in self._held:
            return int(self._held[x][0])
        whole = self._roots.get(_storage(x), self._alias(x))
        assert whole is not None
        if _geometry(x) == _geometry(whole):
            self._hold(x, self._held[whole][0])
        else:
            args = (Ref(self._number(whole)), self._places(x, whole))
            self._nodes.append(Node(part_of_storage, args, {}, None, (self._put(x),), self._network.running()))
        return int(self._held[x][0])

    def _places(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return the indices of a tensor's values in another, flattened tensor that shares its memory."""
        size = whole.untyped_storage().nbytes() // whole.element_size()
        memory = torch.full((size,), -1)
        memory[_elements(whole, size).flatten()] = torch.arange(whole.numel())
        if part.dtype == whole.dtype:
            places = memory[_elements(part, size)]
            if bool((places >= 0).all()):
                return places
        raise self.undecided("reads the memory of a map as another dtype or beyond its bounds")

    def _before_write(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the tensor from which views of the memory of ``x`` are read, and its value before the write."""
        root = self._roots.get(_storage(x), x if x._base is None else x._base)
        if _geometry(root) == _geometry(x):
            return root, None
        return root, self._encoded(root)

    def _overwrite(self, x: Tensor, new: Tensor, root: Tensor, old: Any) -> None:
        """Write a recorded value to a tensor, record the new value of the memory's root and forget those of views."""
        if new.dtype != x.dtype:
            with self._inside():
                new = new.to(x.dtype)
        if not x.numel():  # an empty out= tensor takes the shape of what is written
            x.resize_(new.shape)
            root, old = x, None
        x.copy_(new)
        number = self._number(new)
        self._hold(x, number)
        if old is None:
            self._hold(root, number)
        else:
            args = (old, Ref(number), self._places(x, root))
            node = Node(written_into_storage, args, {}, None, (self._put(root),), self._network.running())
            self._nodes.append(node)
        key = _storage(x)
        self._roots[key] = root
        for reference in self._of_storage.get(key, []):
            other = reference()
            if other is not None and other is not x and other is not root:
                self._held.pop(other, None)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, True


def _padding(input: Tensor, pad: Sequence[int], mode: str, value: float | None = None) -> tuple[Any, ...]:
    return input, list(pad), mode, value


_UNSEEN = (Tensor.numpy, Tensor.__array__, Tensor.tolist)  # hand out values without a dispatched operation
_SAME = ("alias", "detach", "lift_fresh")  # the same values, as another object
_SPOKEN = {"_local_scalar_dense": "item"}


def _written(func: Any, positional: int) -> tuple[int | str, ...]:
    """Return which arguments an operation overwrites, by position or, if they are keyword arguments, by name."""
    schema = enumerate(func._schema.arguments)
    written = [(place, known.name) for place, known in schema if known.alias_info and known.alias_info.is_write]
    return tuple(place if place < positional else name for place, name in written)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors among an operation's arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [x for part in value for x in tensors_in(part)] if isinstance(value, (tuple, list)) else []


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    schema = enumerate(func._schema.arguments)
    return {
        known.name: args[place] if place < len(args) else kwargs.get(known.name, known.default_value)
        for place, known in schema
    }


def _functional(op: Any) -> Any:
    """Return the out-of-place variant of an operation: itself if it writes nothing, None if there is none."""
    schema = op._schema
    if not schema.is_mutable:
        return op
    packet = op.overloadpacket
    if not any(known.is_out for known in schema.arguments):
        packet = getattr(torch.ops.aten, name_of(op), None) if op.namespace == "aten" else None
    wanted = [(known.name, str(known.type)) for known in schema.arguments if not known.is_out]
    for name in () if packet is None else packet.overloads():
        one = getattr(packet, name)
        if not one._schema.is_mutable and wanted == [(k.name, str(k.type)) for k in one._schema.arguments]:
            return one
    return None


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    data, gate = x.chunk(2, dim)
    return data * gate.sigmoid()


# Operations recorded as several, to distinguish a gate from the map it scales, and a copy from its destination.
_PARTS: dict[str, Callable[..., Tensor]] = {
    "glu": _glu,
    "lerp": lambda x, end, weight: x + (end - x) * weight,
    "addcmul": lambda x, a, b, *, value=1: torch.add(x, a * b, alpha=value),
    "addcdiv": lambda x, a, b, *, value=1: torch.add(x, a / b, alpha=value),
    "copy": lambda x, new, non_blocking=False: new.expand(x.shape).clone(),
}


def _results(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _without_input(call: KernelCall) -> KernelCall:
    return replace(call, x=call.x.new_empty(0))


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.layout is torch.strided else 0


def _steps(x: Tensor) -> list[tuple[int, int | None]]:
    """Return the size and stride of each dimension, without the stride if the size is 1, as it does not matter then."""
    return [(size, stride if size > 1 else None) for size, stride in zip(x.shape, x.stride(), strict=True)]


def _memory(x: Tensor) -> tuple[Any, ...]:
    """Return the memory of a tensor and its position there, to detect whether it was moved."""
    return (_storage(x), x.storage_offset(), _steps(x)) if x.layout is torch.strided else ()


def _geometry(x: Tensor) -> tuple[Any, ...]:
    return (x.shape, x.stride(), x.storage_offset(), x.dtype)


def _elements(x: Tensor, size: int) -> Tensor:
    return torch.arange(size).as_strided(x.shape, x.stride(), x.storage_offset())
