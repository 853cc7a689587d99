"""The one table of what each ATen operation does with channels.

Marks are tensors that are positive where a value is live, that is computed from the image by filters that are not dead.
A rule is a non-negative function of marks, and positive where a value of the result depends on a live value. Run
forwards, it finds live values; its transpose, by autograd, finds needed ones. A rule also tells whether dead values
meet live ones, in which case they must be zero. Marks may have size 1 along dimensions in which they do not vary.

An operation that is in no list is measured by trying it on random values, slice by slice. If that is impossible, an
error is raised.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError

if TYPE_CHECKING:
    from convcircuits.network.graph import Graph, Node


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Only the shape and dtype of the result depend on the inputs, not its values.
_CONSTANTS = _names("""
zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided sym_size sym_stride
sym_numel
""")
# Values are moved, repeated or omitted; the operation itself runs on the marks.
_MOVES = _names("""
view _unsafe_view reshape _reshape_alias permute transpose t slice select squeeze unsqueeze expand clone alias detach
contiguous cat stack split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind flip roll
rot90 repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d constant_pad_nd
index_select index gather index_put scatter slice_scatter select_scatter diagonal unfold im2col tril triu
lift_fresh lift_fresh_copy narrow pad part_of_storage written_into_storage
""")
# Moves that add the values that land in one place.
_GATHERS = _names("index_add scatter_add col2im")
# Moves that keep or permute dimensions, so that marks need not be expanded first.
_TURNS = _names("permute transpose t unsqueeze clone alias detach contiguous lift_fresh lift_fresh_copy")
_CASTS = _names("_to_copy to type_as")
# Element-wise operations.
EACH = _names("""
abs add sub rsub neg pow sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh asin acos
atan atan2 erf erfc erfinv reciprocal sign sgn round floor ceil trunc frac fmod remainder floor_divide maximum minimum
fmax fmin clamp clamp_min clamp_max clip where masked_fill nan_to_num relu relu6 hardtanh silu
gelu elu celu selu leaky_relu hardswish mish softplus sigmoid hardsigmoid _prelu_kernel prelu log_sigmoid_forward
threshold hardshrink softshrink xlogy hypot copysign logaddexp logaddexp2 eq ne lt le gt ge isnan isinf isfinite
logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor signbit special_logit
logit sinc deg2rad rad2deg angle conj _conj conj_physical _conj_physical resolve_conj resolve_neg complex polar
heaviside digamma lgamma special_entr special_erfcx i0 special_i0e special_i1 float_power
gcd lcm nextafter __lshift__ __rshift__ bitwise_left_shift bitwise_right_shift
""")
_PRODUCTS = _names("mul div true_divide")
_GATES = _names("sigmoid hardsigmoid _softmax")
# Each channel by itself, over its last dimensions; their number is in the name.
_AVERAGES = _names("avg_pool1d avg_pool2d avg_pool3d")
_WINDOWS = _names("""
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d
upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
""")
_BATCH_NORMS = _names("""
native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm
_batch_norm_no_update
""")
_RMS_NORMS = _names("_fused_rms_norm rms_norm")
# All values along some dimensions give one.
_REDUCTIONS = _names("""
mean sum nansum nanmean amax amin max min aminmax argmax argmin median nanmedian kthvalue mode prod norm
linalg_vector_norm var std var_mean std_mean logsumexp any all count_nonzero
""")
# Each value is computed from earlier ones along a dimension (scans), or from all of them (orders).
_SCANS = _names("cumsum cumprod cummax cummin logcumsumexp _cummax_helper _cummin_helper")
_ORDERS = _names("sort topk argsort msort")
_FOURIER = _names("_fft_r2c _fft_c2r _fft_c2c")
# Sums of products over a common dimension of two factors.
_CONTRACTIONS = _names("""
mm addmm bmm baddbmm addbmm mv addmv dot vdot matmul linear convolution _convolution convolution_overrideable
mkldnn_convolution cudnn_convolution conv2d _cdist_forward cdist _trilinear einsum _scaled_dot_product_flash_attention
_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _scaled_dot_product_attention_math
_scaled_dot_product_cudnn_attention
""")

Rule = Callable[..., Any]


def name_of(op: Any) -> str:
    """Return the name of an operation, without its overload and without the underscore of in-place variants."""
    name: str = getattr(op, "_opname", None) or op.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_constant(op: Any) -> bool:
    """Return whether the values of an operation's result do not depend on those of its inputs."""
    return name_of(op) in _CONSTANTS


def is_contraction(op: Any) -> bool:
    """Return whether an operation sums products of two tensors."""
    return name_of(op) in _CONTRACTIONS


def is_added_to(op: Any) -> bool:
    """Return whether an operation adds a product to its first argument, like ``addmm``."""
    return is_contraction(op) and name_of(op).startswith(("add", "badd"))


def is_known(op: Any) -> bool:
    """Return whether the table has a rule for an operation, so that it is not measured."""
    return name_of(op) in _KNOWN


def part_of_storage(x: Tensor, places: Tensor) -> Tensor:
    """Return the values of a tensor at indices of the flattened tensor, in the shape of ``places``."""
    return x.flatten()[places]


def written_into_storage(x: Tensor, part: Tensor, places: Tensor) -> Tensor:
    """Return a tensor with the values at indices of the flattened tensor replaced."""
    return x.flatten().index_copy(0, places.flatten(), part.flatten().to(x.dtype)).reshape(x.shape)


def is_batch_norm(node: "Node") -> bool:
    """Return whether a recorded operation is a batch norm."""
    return node.name in _BATCH_NORMS


def gives_a_list(node: "Node") -> bool:
    """Return whether a recorded operation returns a list of tensors, like ``split``, even if it has one item."""
    schema = getattr(node.op, "_schema", None)
    return schema is not None and str(schema.returns[0].type) == "List[Tensor]"


def is_padding(node: "Node") -> bool:
    """Return whether a recorded operation pads."""
    return node.name == "pad" or "_pad" in node.name


def is_constant_fill(node: "Node") -> bool:
    """Return whether a recorded operation replaces all values of its first argument."""
    return node.name in ("copy", "fill", "zero")


@dataclass(frozen=True)
class Operation:
    """What one recorded operation does with channels.

    Attributes:
        rule: Marks of the inputs, in order -> mark of the result, or one mark for each of several results.
        meets: Marks of the inputs -> whether dead values meet live ones, so that they must be zero; for a single input
            possibly a tensor that tells where.
        gate: Whether the result is a gate: the output of a sigmoid, or computed from one alone (a view, a resized gate,
            1 - gate).
        moves: Whether values are only moved, repeated or omitted.
        over: Unless ``moves``, the dimensions of the input along which values are mixed (0 is the batch; a result of
            fewer dimensions lacks them); None if unknown.
        data: Index of the input that the other one, a gate, scales; None if there is no gate.
        changes: Marks of changes in the inputs -> mark of changes in the result; None if it equals ``rule``. A dead
            value that a live gate scales stays dead but changes.
        adds: Whether the rule only adds the marks of the inputs, as for operations element by element.
    """

    rule: Rule
    meets: Callable[[Sequence[Tensor]], bool | Tensor]
    gate: bool = False
    moves: bool = False
    over: tuple[int, ...] | None = None
    data: int | None = None
    changes: Rule | None = None
    adds: bool = False

    def spared(self, marks: Sequence[Tensor]) -> list[Tensor]:
        """Return, for each input, which values need not be zeroed, bool: those that are live or meet no live one."""
        meeting = self.meets(marks)
        if isinstance(meeting, Tensor):
            return [(mark > 0) | ~meeting for mark in marks]
        return [(mark > 0) | (not meeting) for mark in marks]


@dataclass(frozen=True)
class Plan:
    """The dead values of a circuit, for a run of its graph.

    Attributes:
        reads: Index of a kernel call's node -> which channels that it reads are live, (groups, channels or blocks).
        silent: Index of a node -> number of a value -> mark, False where the value is zeroed before the node reads it.
        output: The mark of the output; None if all of it is live.
    """

    reads: Mapping[int, Tensor]
    silent: Mapping[int, Mapping[int, Tensor]]
    output: Tensor | None

    def to(self, device: torch.device) -> "Plan":
        """Move the plan to a device."""
        silent = {place: {n: mark.to(device) for n, mark in marks.items()} for place, marks in self.silent.items()}
        reads = {place: read.to(device) for place, read in self.reads.items()}
        return Plan(reads, silent, None if self.output is None else self.output.to(device))


def operation_of(graph: "Graph", node: "Node", gates: Mapping[int, bool], constants: Mapping[int, Tensor]) -> Operation:
    """Return what an operation other than a kernel call does with channels.

    Args:
        graph: The graph, for the shapes of its values.
        node: The operation.
        gates: Whether each earlier value is a gate, by number.
        constants: Which parts of each earlier value are constants, not computed from the image: bool, as marks.

    Raises:
        ConvCircuitsError: If the operation is unknown and cannot be measured.
    """
    name = node.name
    distinct = list(dict.fromkeys(node.inputs))
    shapes = [graph.shapes[n] for n in distinct]
    passing = len(distinct) == 1 and gates[distinct[0]]
    if name in _CASTS:
        return Operation(lambda x: x, _never, passing, over=(), adds=True)
    moves = not any(node.number_of(x) is not None for x in _places(node))
    if not moves and name in _CHOSEN:
        return _CHOSEN[name](graph, node, distinct, shapes)
    adds = name in _GATHERS or (name == "index_put" and argument(node, "accumulate"))
    if moves and adds:
        return Operation(_move(graph, node, distinct), _always)
    if name in _TURNS or (name in _MOVES and moves and argument(node, "reduce") is None):
        return Operation(_move(graph, node, distinct), _never, passing, moves=True, over=())
    if name in _REWRITES:
        return Operation(_REWRITES[name](graph, node), _never, passing, moves=is_constant_fill(node))
    if name in _PRODUCTS and len(distinct) == 2:
        return _product(graph, node, gates, constants)
    if name in EACH or name in _PRODUCTS:
        return Operation(_each(graph, node), _several, passing or name in _GATES, over=(), adds=True)
    if name in _RMS_NORMS:
        return _rms_norm(graph, node, constants)
    for names, make in _TABLE:
        if name in names:
            return make(graph, node, passing or name in _GATES)
    return _measured(graph, node, distinct, shapes)


def _places(node: "Node") -> list[Any]:
    """Return the arguments of an operation that are indices into other values."""
    given = [argument(node, name) for name in ("index", "indices", "repeats")]
    return [part for x in given for part in (x if isinstance(x, (tuple, list)) else [x])]


def _never(marks: Sequence[Tensor]) -> bool:
    return False


def _several(marks: Sequence[Tensor]) -> bool:
    return len(marks) > 1


def _always(marks: Sequence[Tensor]) -> bool:
    return True


def _varies(dims: Sequence[int]) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return a function that marks where the first input has a live value along some dimensions, to meet dead ones."""
    return lambda marks: marks[0].sum(tuple(dims), keepdim=True) > 0


def _parameters(node: "Node") -> Sequence[Any]:
    schema = getattr(node.op, "_schema", None)  # our own operations have none
    return () if schema is None else schema.arguments


def argument(node: "Node", name: str) -> Any:
    """Return an argument of a recorded operation by name; its default, or None, if it was not given."""
    for place, known in enumerate(_parameters(node)):
        if known.name == name:
            if place < len(node.args):
                return node.args[place]
            return node.kwargs.get(name, known.default_value)
    return None


# ---------------------------------------- moves


def _move(graph: "Graph", node: "Node", distinct: Sequence[int]) -> Rule:
    name = node.name
    plain = name == "cat" and not any(isinstance(x, Tensor) for x in node.args[0])
    given = zip(_parameters(node), node.args, strict=False)
    filled = [k for k, (known, x) in enumerate(given) if known.name == "value" and isinstance(x, (int, float))]

    def move(*marks: Tensor) -> Any:
        if plain:
            marks = _alike(marks, [graph.shapes[n] for n in distinct], int(argument(node, "dim") or 0))
        elif name not in _TURNS:
            marks = tuple(mark.expand(graph.shapes[n]) for mark, n in zip(marks, distinct, strict=True))
        elif name not in ("permute", "transpose", "t", "unsqueeze"):
            return marks[0]
        args, kwargs = node.arguments(dict(zip(distinct, marks, strict=True)).__getitem__, _empty_of_values)
        args = tuple(0 if k in filled else a for k, a in enumerate(args))
        kwargs |= dict.fromkeys(kwargs.keys() & {"value"}, 0) | dict.fromkeys(kwargs.keys() & {"alpha"}, 1)
        if "view" in name or name == "_reshape_alias":  # the strides of a mark may differ
            return args[0].reshape(args[1])
        return node.op(*args, **{k: v for k, v in kwargs.items() if k not in ("dtype", "memory_format")})

    return move


def _alike(marks: Sequence[Tensor], shapes: Sequence[torch.Size], dim: int) -> tuple[Tensor, ...]:
    """Expand marks along the dimension of a concatenation, and along all dimensions in which any mark varies."""
    rank = marks[0].dim()
    shape = [max(mark.shape[d] for mark in marks) for d in range(rank)]
    spread = []
    for mark, whole in zip(marks, shapes, strict=True):
        shape[dim % rank] = whole[dim]
        spread.append(mark.expand(shape))
    return tuple(spread)


def _empty_of_values(x: Tensor) -> Tensor:
    """Return zeros for a constant, as it has no live values; indices stay."""
    return torch.zeros(x.shape) if x.is_floating_point() or x.is_complex() else x.cpu()


def _emptied(graph: "Graph", node: "Node") -> Rule:
    """Return the rule for replacing all values by constants: none of them is live."""
    return lambda *marks: marks[0] * 0


def _as_complex(graph: "Graph", node: "Node") -> Rule:
    return lambda x: x.expand(*x.shape[:-1], 2).sum(-1)


_REWRITES = {
    "copy": _emptied,
    "fill": _emptied,
    "zero": _emptied,
    "view_as_real": lambda graph, node: lambda x: x.unsqueeze(-1),
    "view_as_complex": _as_complex,
}


# ---------------------------------------- indices that were computed


def _between(mark: Tensor, shape: torch.Size, wanted: torch.Size, dim: int) -> Tensor:
    """Sum a mark along the indexed dimension, and along dimensions of which only a part is used."""
    return mark.sum([d for d in range(len(shape)) if d == dim or shape[d] != wanted[d]], keepdim=True)


def _gathered(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for taking any value along a dimension at each position."""
    (shape,) = graph.shapes_of(node)
    dim, places = int(argument(node, "dim")) % len(shape), node.number_of(argument(node, "index"))

    def rule(*marks: Tensor) -> Tensor:
        known = zip(distinct, marks, shapes, strict=True)
        return _summed([mark if n == places else _between(mark, of, shape, dim) for n, mark, of in known])

    return Operation(rule, _several)


def _scattered(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for writing values to any position along a dimension."""
    (shape,) = graph.shapes_of(node)
    dim, into = int(argument(node, "dim")) % len(shape), node.number_of(node.args[0])

    def rule(*marks: Tensor) -> Tensor:
        known = zip(distinct, marks, shapes, strict=True)
        return _summed([_between(mark, of, shape, dim) + (mark if n == into else 0) for n, mark, of in known])

    return Operation(rule, _always)


def _masked(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for writing one number where a mask is True."""
    given = [(place, node.number_of(x)) for place, x in enumerate(argument(node, "indices")) if x is not None]
    value = node.number_of(argument(node, "values"))
    size = argument(node, "values").numel() if value is None else graph.shapes[value].numel()
    (first, mask), rank = given[0], len(graph.shapes_of(node)[0])
    if len(given) > 1 or mask is None or graph.dtypes[mask] != torch.bool or size != 1:
        return _measured(graph, node, distinct, shapes)

    def rule(*marks: Tensor) -> Tensor:
        spread = [
            mark.reshape(*mark.shape, *[1] * (rank - first - mark.dim())) if n == mask else mark
            for n, mark in zip(distinct, marks, strict=True)
        ]
        return _summed([_of_rank(mark, rank) for mark in spread])

    return Operation(rule, _several)


def _unpooled(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for writing values to any position of their channel."""
    dims = (-2, -1) if "2d" in node.name else (-3, -2, -1)
    return Operation(lambda *marks: _summed([mark.sum(dims, keepdim=True) for mark in marks]), _several)


def _looked_up(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for taking rows of a constant table."""
    return Operation(lambda mark: mark.unsqueeze(-1), _never)


def _indexed(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Return the rule for taking any value along the dimensions with computed indices."""
    indices, whole = argument(node, "indices"), node.number_of(node.args[0])
    if any(
        isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in indices
    ):  # a mask may span several dimensions
        return _measured(graph, node, distinct, shapes)
    numbers = [None if x is None else node.number_of(x) for x in indices]
    first: list[Any] = [
        (None if x is None else x.cpu()) if n is None else torch.zeros(graph.shapes[n], dtype=torch.long)
        for x, n in zip(indices, numbers, strict=True)
    ]
    along = [dim for dim, n in enumerate(numbers) if n is not None]
    given = [dim for dim, x in enumerate(first) if x is not None]
    adjacent = given == list(range(given[0], given[-1] + 1))
    start, wide = given[0] if adjacent else 0, max(first[dim].dim() for dim in given)
    rank = len(graph.shapes_of(node)[0])

    def rule(*marks: Tensor) -> Tensor:
        parts = []
        for n, mark, shape in zip(distinct, marks, shapes, strict=True):
            if n == whole:
                spread = [1 if dim in along else size for dim, size in enumerate(shape)]
                parts.append(node.op(mark.sum(along, keepdim=True).expand(spread), first))
            else:
                mark = _of_rank(mark, wide)
                parts.append(mark.reshape(*[1] * start, *mark.shape, *[1] * (rank - start - wide)))
        return _summed(parts)

    return Operation(rule, _several)


_CHOSEN = {
    "index": _indexed,
    "embedding": _looked_up,
    "gather": _gathered,
    "scatter": _scattered,
    "scatter_add": _scattered,
    "index_put": _masked,
    "max_unpool2d": _unpooled,
    "max_unpool3d": _unpooled,
}


# ---------------------------------------- element by element


def _summed(marks: Sequence[Tensor]) -> Tensor:
    total = marks[0]
    for mark in marks[1:]:
        total = total + mark
    return total


def _each(graph: "Graph", node: "Node") -> Rule:
    rank = len(graph.shapes_of(node)[0])
    return lambda *marks: _of_rank(_summed(marks), rank)


def _of_rank(mark: Tensor, rank: int) -> Tensor:
    return mark.reshape((1,) * (rank - mark.dim()) + mark.shape)


def _product(graph: "Graph", node: "Node", gates: Mapping[int, bool], constants: Mapping[int, Tensor]) -> Operation:
    """Return the rule for a product of two maps, or of a map and a gate (a sigmoid, a divisor or the smaller factor).

    A constant times a live value is live. If a dead product is needed because it is a gate itself, its dead gate is
    needed too: ``by <= 0`` adds nothing to the mark but counts in its transpose.
    """
    a, b = dict.fromkeys(node.inputs)
    sizes = [math.prod(graph.shapes[n]) for n in (a, b)]
    rank = len(graph.shapes_of(node)[0])
    of_a, of_b = constants[a].float(), constants[b].float()

    def changes(x: Tensor, y: Tensor) -> Tensor:
        return _of_rank(x + y, rank)

    if node.name != "mul":
        scaled = a if node.number_of(node.args[0]) == a else b
    elif gates[a] != gates[b]:
        scaled = b if gates[a] else a
    elif sizes[0] == sizes[1]:
        return Operation(lambda x, y: _of_rank(x * y + x * of_b + of_a * y, rank), _several, over=(), changes=changes)
    else:
        scaled = a if sizes[0] > sizes[1] else b
    gate = gates[a] and gates[b]
    if scaled == a:
        rule: Rule = lambda x, by: _of_rank(x + (x + of_a + (by <= 0)) * by, rank)  # noqa: E731
    else:
        rule = lambda by, x: _of_rank(x + (x + of_b + (by <= 0)) * by, rank)  # noqa: E731
    return Operation(rule, _never, gate, over=(), data=int(scaled != a), changes=changes)


# ---------------------------------------- along some dimensions


def _dims(value: Any, rank: int) -> tuple[int, ...]:
    if value is None or value == []:
        return tuple(range(rank))
    return tuple(int(d) % rank for d in (value if isinstance(value, (tuple, list)) else (value,)))


def _window_dims(graph: "Graph", node: "Node") -> tuple[int, ...]:
    rank = len(graph.shapes[node.inputs[0]])
    return tuple(range(rank - int(next(c for c in node.name if c in "123")), rank))


def _window(graph: "Graph", node: "Node", gate: bool) -> Operation:
    dims = _window_dims(graph, node)
    return Operation(lambda x: x.sum(dims, keepdim=True), _varies(dims), gate, over=dims)


def _average(graph: "Graph", node: "Node", gate: bool) -> Operation:
    """Return the rule for averages over windows: live exactly if there is a live value in the window."""
    shape, dims = graph.shapes[node.inputs[0]], _window_dims(graph, node)

    def average(x: Tensor) -> Tensor:
        if all(x.shape[dim] == 1 for dim in dims):
            return x
        result: Tensor = node.op(x.expand(shape).contiguous(), *node.args[1:], **node.kwargs)
        return result

    return Operation(average, _varies(dims), gate, over=dims)


def _reduction(graph: "Graph", node: "Node", gate: bool) -> Operation:
    rank, shapes = len(graph.shapes[node.inputs[0]]), graph.shapes_of(node)
    if len(set(node.inputs)) > 1:  # the maximum of two maps
        return Operation(_each(graph, node), _several, over=(), adds=True)
    if node.name in ("max", "min") and len(node.args) > 1 and isinstance(node.args[1], Tensor):
        return Operation(_each(graph, node), _several, gate, over=(), adds=True)
    dims = _dims(argument(node, "dim"), rank)
    keeps = all(len(shape) == rank for shape in shapes)

    def reduce(x: Tensor) -> Tensor:
        total = x.sum(dims, keepdim=True)
        return total if keeps else total.reshape([n for d, n in enumerate(total.shape) if d not in dims])

    return Operation(reduce, _varies(dims), over=dims)


def _scan(graph: "Graph", node: "Node", gate: bool) -> Operation:
    shape = graph.shapes[node.inputs[0]]
    dim = int(argument(node, "dim")) % len(shape)

    def scan(x: Tensor) -> Tensor:
        spread = list(x.shape)
        spread[dim] = shape[dim]
        return x.expand(spread).cumsum(dim)

    return Operation(scan, _varies((dim,)), over=(dim,))


def _mixture(graph: "Graph", node: "Node", gate: bool) -> Operation:
    dim = argument(node, "dim")
    dims = _dims(-1 if dim is None else dim, len(graph.shapes[node.inputs[0]]))
    return Operation(lambda x: x.sum(dims, keepdim=True), _varies(dims), over=dims)


def _softmax(graph: "Graph", node: "Node", gate: bool) -> Operation:
    dims = _dims(argument(node, "dim"), len(graph.shapes[node.inputs[0]]))
    return Operation(lambda x: x + x.sum(dims, keepdim=True), _varies(dims), gate, over=dims)


def _layer_norm(graph: "Graph", node: "Node", gate: bool) -> Operation:
    rank = len(graph.shapes[node.inputs[0]])
    dims = tuple(range(rank - len(node.args[1]), rank))
    return Operation(lambda x: x + x.sum(dims, keepdim=True), _always, over=dims)


def _rms_norm(graph: "Graph", node: "Node", constants: Mapping[int, Tensor]) -> Operation:
    """Return the rule for division by a norm: zeros stay zero, and a constant beside live values becomes live."""
    (number,) = set(node.inputs)
    rank, constant = len(graph.shapes[number]), constants[number].float()
    dims = tuple(range(rank - len(node.args[1]), rank))
    return Operation(lambda x: x + (x + constant) * x.sum(dims, keepdim=True), _always, over=dims)


def _group_norm(graph: "Graph", node: "Node", gate: bool) -> Operation:
    shape, groups = graph.shapes[node.inputs[0]], int(argument(node, "group"))

    def norm(x: Tensor) -> Tensor:
        channels = x.expand(x.shape[0], shape[1], *x.shape[2:])
        sums = channels.reshape(len(x), groups, -1).sum(2)
        spread = sums.repeat_interleave(shape[1] // groups, 1)
        return x + spread.reshape(*spread.shape, *[1] * (len(shape) - 2))

    return Operation(norm, _always, over=tuple(range(1, len(shape))))


def _batch_norm(graph: "Graph", node: "Node", gate: bool) -> Operation:
    if not argument(node, "training"):
        return Operation(lambda x: x, _never, gate, over=(), adds=True)
    dims = (0, *range(2, len(graph.shapes[node.inputs[0]])))  # instance norm, with images laid out as channels
    return Operation(lambda x: x + x.sum(dims, keepdim=True), _varies(dims), over=dims)


def _instance_norm(graph: "Graph", node: "Node", gate: bool) -> Operation:
    dims = tuple(range(2, len(graph.shapes[node.inputs[0]])))
    return Operation(lambda x: x + x.sum(dims, keepdim=True), _varies(dims), gate, over=dims)


def _sampled(graph: "Graph", node: "Node", gate: bool) -> Operation:
    """Return the rule for sampling a map at the positions of a grid."""
    distinct = list(dict.fromkeys(node.inputs))
    kinds = [n == node.number_of(node.args[0]) for n in distinct]
    rank = len(graph.shapes_of(node)[0])
    over = [tuple(range(2, rank)) if is_map else tuple(range(1, rank)) for is_map in kinds]
    return Operation(
        lambda *marks: _summed([m.sum(dims, keepdim=True) for m, dims in zip(marks, over, strict=True)]),
        _several,
    )


def _contraction(graph: "Graph", node: "Node", gate: bool) -> Operation:
    """Return the rule for sums of products with constants, which use all values along the summed dimension."""
    added = node.number_of(node.args[0]) if is_added_to(node.op) else None
    places = [node.number_of(x) for x in node.args[is_added_to(node.op) :][:2]]
    if node.name not in ("mm", "bmm", "mv", "addmm", "baddbmm", "addmv") or None not in places:
        raise ConvCircuitsError(
            f"{node.layer or 'The model'} computes {node.name} of maps, which is not supported. Choose a feature "
            "before it."
        )
    distinct, rank = list(dict.fromkeys(node.inputs)), len(graph.shapes_of(node)[0])
    dim = -1 if node.name.endswith("mv") or places[1] is None else -2

    def rule(*marks: Tensor) -> Tensor:
        parts = [_of_rank(mark, rank) for n, mark in zip(distinct, marks, strict=True) if n == added]
        parts += [m.sum(dim, keepdim=rank > 1) for n, m in zip(distinct, marks, strict=True) if n in places]
        return _summed(parts)

    return Operation(rule, _always)


_TABLE: tuple[tuple[Collection[str], Callable[["Graph", "Node", bool], Operation]], ...] = (
    (_AVERAGES, _average),
    (_WINDOWS, _window),
    (_BATCH_NORMS, _batch_norm),
    (_REDUCTIONS, _reduction),
    (_SCANS, _scan),
    (_ORDERS | _FOURIER, _mixture),
    (("_softmax", "_log_softmax"), _softmax),
    (("native_layer_norm",), _layer_norm),
    (("native_group_norm",), _group_norm),
    (("instance_norm",), _instance_norm),
    (("grid_sampler_2d", "grid_sampler_3d"), _sampled),
    (_CONTRACTIONS, _contraction),
)
_KNOWN = _CONSTANTS | _MOVES | _GATHERS | _CASTS | EACH | _PRODUCTS | _RMS_NORMS | _REWRITES.keys() | _CHOSEN.keys()
_KNOWN |= {name for names, _ in _TABLE for name in names}


# ---------------------------------------- unknown operations


_DRAWS = 2


def _measured(graph: "Graph", node: "Node", distinct: Sequence[int], shapes: Sequence[torch.Size]) -> Operation:
    """Measure on random values which slices of an unknown operation's result change with each slice of its inputs.

    Slices are taken along dimension 1 and the last one, where channels may lie; a mark that varies along another
    dimension counts as live everywhere if any of it is. Slices along dimension 0 show whether images stay separate.
    """
    patterns = [
        {dim: _pattern(graph, node, distinct, k, dim) for dim in {0, 1, len(shape) - 1} if dim < len(shape)}
        for k, shape in enumerate(shapes)
    ]
    results = graph.shapes_of(node)

    def spread(*marks: Tensor) -> Any:
        parts: list[list[Tensor]] = [[] for _ in results]
        for mark, known in zip(marks, patterns, strict=True):
            varying = [d for d in range(1, mark.dim()) if mark.shape[d] > 1]
            dim = varying[0] if len(varying) == 1 and varying[0] in known else 1
            for place, shape in enumerate(results):
                by_image = _through(mark, known[0][place], 0, shape)
                by_channel = _through(mark, known[dim][place], dim, shape) if dim in known else by_image
                parts[place].append((by_image.detach() if dim in known else 1) * by_channel)
        return tuple(_summed(part) for part in parts)

    return Operation(spread, _always)


def _through(mark: Tensor, pattern: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Apply a measured pattern (slices of the result, slices of the input) to a mark along one dimension."""
    slices = mark.movedim(dim, 0).reshape(mark.shape[dim], -1).sum(1).expand(pattern.shape[1])
    reached = pattern.to(mark.dtype) @ slices
    form = [1] * len(shape)
    if dim < len(shape):
        form[dim] = -1
    return reached.reshape(form)


def _pattern(graph: "Graph", node: "Node", distinct: Sequence[int], which: int, dim: int) -> list[Tensor]:
    """Return, for each result, which of its slices change with which slices of an input, bool (result's, input's)."""
    generator = torch.Generator().manual_seed(0)
    count = graph.shapes[distinct[which]][dim]
    found: list[Tensor] | None = None
    for draw in range(_DRAWS):
        given = {n: _drawn(graph, node, n, generator, positive=draw % 2 == 1) for n in distinct}
        base = _tried(node, given)
        if not all(_same(a, b) for a, b in zip(base, _tried(node, given), strict=True)):
            raise _untried(node, "it returns different values each time")
        for c in range(count):
            changed = given[distinct[which]].clone()
            fresh = _drawn(graph, node, distinct[which], generator, positive=draw % 2 == 1)
            changed.select(dim, c).copy_(fresh.select(dim, c))
            results = _tried(node, given | {distinct[which]: changed})
            moved = [_changed(a, b, dim) for a, b in zip(base, results, strict=True)]
            if found is None:
                found = [torch.zeros(len(m), count, dtype=torch.bool) for m in moved]
            for table, column in zip(found, moved, strict=True):
                table[:, c] |= column
    assert found is not None
    return found


def _drawn(graph: "Graph", node: "Node", number: int, generator: torch.Generator, *, positive: bool) -> Tensor:
    if not graph.dtypes[number].is_floating_point:
        raise _untried(node, f"it reads values of type {graph.dtypes[number]}, which may be indices or counts")
    values = torch.randn(graph.shapes[number], generator=generator, dtype=torch.float64)
    return (values.abs() if positive else values).to(graph.dtypes[number])


def _tried(node: "Node", given: Mapping[int, Tensor]) -> list[Tensor]:
    try:
        results = node.compute({n: x.clone() for n, x in given.items()}.__getitem__)
    except Exception as error:
        raise _untried(node, str(error)) from error
    tensors = [result for result in results if isinstance(result, Tensor)]
    for result in tensors:
        if result.layout is not torch.strided:
            raise _untried(node, f"it returns a tensor of layout {result.layout}")
    return tensors


def _untried(node: "Node", why: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"{node.layer or 'The model'} computes {node.op}, which convcircuits does not know and could not measure "
        f"({why}). Choose a feature before it, or report the operation."
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a.to(torch.complex128)), torch.nan_to_num(b.to(torch.complex128)))


def _changed(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return which slices of a result differ along ``dim``, or whether any value does if it has no such dimension."""
    different = (a != b) & ~((a != a) & (b != b))
    if dim >= a.dim():
        return different.any().reshape(1)
    return different.movedim(dim, 0).reshape(a.shape[dim], -1).any(1)


# ---------------------------------------- files


# Variants of the above that a module uses instead, because they do not depend on the size of a batch or a map.
_SPELLINGS = _names("""
batch_norm instance_norm group_norm layer_norm softmax log_softmax log_sigmoid matmul linear flatten unflatten movedim
swapaxes expand_as view_as_real view_as_complex real imag square fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2
fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn
""")
# Uninitialized memory, and operations that do not check the sizes given to them but have a variant that does.
_LEFT_OUT = _names("""
empty_like new_empty new_empty_strided _reshape_alias native_group_norm _fused_rms_norm
part_of_storage written_into_storage __lshift__ __rshift__ bitwise_left_shift bitwise_right_shift gcd lcm embedding
max_unpool2d max_unpool3d
""")
_LEFT_OUT |= _BATCH_NORMS | _FOURIER | _CONTRACTIONS - _names("mm addmm bmm baddbmm mv addmv matmul linear")
IN_FILES = (_KNOWN | _SPELLINGS) - _LEFT_OUT
"""Names of the operations that a file may contain, if the overload returns only tensors and writes to none."""
NOT_IN_FILES = _names("""
view.dtype repeat_interleave.Tensor repeat_interleave.self_Tensor where.default index.Tensor_hacked_twin
index_put.hacked_twin narrow.Tensor to.prim_dtype to.prim_other mm.dtype bmm.dtype addmm.dtype baddbmm.dtype
""")
"""Overloads that no file may contain: bit casts, shapes that depend on values, and support on one device only."""
