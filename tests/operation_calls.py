"""Calls of every operation that a file may name: right ones, and any others of the same kinds of arguments.

As a script (FIRST and LAST number, a file to note the number in) it makes calls as a file's module would. Each has to
end in a result or an exception: one that ends the process is a defect of the table.
"""

import math
import random
import sys
import warnings
from pathlib import Path

import torch

from convcircuits.compiler.instructions import DTYPES, OPERATIONS, Constant
from convcircuits.compiler.interpreter import _EachResult, _given, _tensors

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=GENERATOR)


X, Y = drawn(2, 4, 6, 6), drawn(2, 4, 6, 6)
TENSORS = {"x": X, "y": Y, "p": drawn(2, 4, 6, 6).abs() + 0.1, "line": drawn(2, 4, 6), "block": drawn(2, 3, 4, 6, 6)}
TENSORS |= {"f": drawn(6, 4), "w": drawn(4), "six": drawn(6), "m": drawn(2, 36, 9), "one": drawn(1, 4, 1, 1)}
TENSORS |= {"number": drawn(), "grid": drawn(2, 3, 3, 2), "grid3": drawn(2, 3, 3, 3, 3), "v": drawn(4).abs()}
TENSORS |= {"c": torch.complex(X, Y), "b": X > 0, "i": torch.tensor([3, 0, 1]), "k": (X * 5).long()}
TENSORS["places"] = torch.randint(4, (2, 4, 6, 6), generator=GENERATOR)

# The calls for which `plain` would be a wrong one; without "aten." and ".default".
CALLS = """
_conj(c) _unsafe_view(x,[2,-1]) clamp(x,0) clamp.Tensor(x,y) clip(x,None,1.5) clip.Tensor(x,None,y)
_upsample_bicubic2d_aa.vec(x,None,False,[.5,.5]) _upsample_bilinear2d_aa.vec(x,[4,4],False,None)
_upsample_nearest_exact1d(line,[4]) _upsample_nearest_exact1d.vec(line,None,[2.])
_upsample_nearest_exact2d.vec(x,None,[2.,1.5]) _upsample_nearest_exact3d(block,[4,4,4])
_upsample_nearest_exact3d.vec(block,None,[2.,1.,.5]) upsample_bicubic2d.vec(x,None,True,[2.,2.])
upsample_bilinear2d.vec(x,None,False,[2.,1.5]) upsample_linear1d(line,[4],True)
upsample_linear1d.vec(line,None,False,[2.]) upsample_nearest1d(line,[3]) upsample_nearest1d.vec(line,None,[2.])
upsample_nearest2d.vec(x,None,[2.,2.]) upsample_nearest3d(block,[2,2,2]) upsample_nearest3d.vec(block,None,[2.,2.,2.])
upsample_trilinear3d(block,[2,3,4],False) upsample_trilinear3d.vec(block,None,True,[2.,2.,2.])
adaptive_avg_pool1d(line,[3]) avg_pool1d(line,[2]) max_pool1d(line,[2]) avg_pool2d(x,[3,3],[2,2],[1,1],True,False)
max_pool2d(x,[3,3],[2,2],[1,1]) addmm(six,f,f2) addmv(six,f,w) baddbmm(number,m,square) bmm(m,square) mm(f,f2) mv(f,w)
linear(f,f,six) matmul(x,y) batch_norm(x,w,w,w,v,False,.1,1e-3,True) instance_norm(x,w,w,None,None,True,.1,1e-3,True)
group_norm(x,2,w,w) layer_norm(f,[4],w,w) native_layer_norm(f,[4],w,None,1e-5) rms_norm(f,[4],w)
bitwise_and.Tensor(k,k) bitwise_and.Scalar(k,3) bitwise_and.Scalar_Tensor(3,k) bitwise_not(b) bitwise_or.Tensor(k,k)
bitwise_or.Scalar(k,3) bitwise_or.Scalar_Tensor(3,k) bitwise_xor.Tensor(b,b) bitwise_xor.Scalar(k,3)
bitwise_xor.Scalar_Tensor(3,k) col2im(m,[6,6],[2,2],[1,1],[0,0],[2,2]) im2col(x,[3,3],[1,1],[1,1],[2,2])
constant_pad_nd(x,[1,0,0,1],.5) pad(x,[1,2,1,0],"circular")
div.Tensor_mode(x,y,rounding_mode="floor") div.Scalar_mode(x,2,rounding_mode="floor")
expand(one,[2,4,6,6]) fill.Tensor(x,number) gather(x,1,places) grid_sampler_2d(x,grid,0,0,False)
grid_sampler_3d(block,grid3,0,1,True) imag(c) real(c) index.Tensor(x,[None,i]) index_add(x,1,i,x3)
index_put(x,[None,i],x3) index_select(x,1,i) masked_fill.Scalar(x,b,.5) masked_fill.Tensor(x,b,number)
permute(x,[0,2,3,1]) prelu(x,w) reflection_pad1d(line,[1,2]) replication_pad1d(line,[1,2])
reflection_pad2d(x,[1,2,1,0]) repeat(x,[1,2,1,1]) reshape(x,[-1,24,6]) view(x,[2,-1]) scatter.value(x,1,places,.5)
scatter.src(x,1,places,y) scatter_add(x,1,places,y) select_scatter(x,x3[:,0],1,2) slice_scatter(x,x3,1,0,3) t(f)
unflatten.int(x,1,[2,2]) view_as_complex(grid) view_as_real(c) where.self(b,x,y) where.ScalarOther(b,x,.5)
where.ScalarSelf(b,.5,x) where.Scalar(b,.5,2) add.Tensor(x,1) sub.Tensor(x,y,alpha=2) mul.Tensor(x,2) div.Tensor(x,2)
pow.Tensor_Scalar(x,2) sum.dim_IntList(x,[2,3],True) mean.dim(x,[1],True) amax(x,[1]) softmax.int(x,1) cat([x,y],1)
split.sizes(x,[1,3],1) chunk(x,2,1) topk(x,2,1) to.dtype(x,torch.float64) _to_copy(x,dtype=torch.float16)
contiguous(x,memory_format=torch.channels_last) clone(x) zeros_like(x) full_like(x,2.5,dtype=torch.int64)
gelu(x,approximate="tanh") hardtanh(x,0.,6.) slice.Tensor(x,1,1,3) elu(x,.5) leaky_relu(x,.2) softplus(x,2.,10.)
squeeze.dims(one,[2,3]) flatten.using_ints(x,1) roll(x,[1,2],[1,2]) fft_fftn(x,None,[2,3],"ortho")
fft_irfftn(c,[6,10],[2,3]) fft_rfft(x,None,1) std.correction(x,[1],correction=0)
""".split()  # noqa: SIM905 (to be read as calls)
NAMES = TENSORS | {"torch": torch, "f2": TENSORS["f"].mT, "square": TENSORS["m"].mT, "x3": X[:, :3]}


def plain(operation):
    """Arguments of a call that most operations take."""
    tensors = iter(["x", "y", "p"])
    by_kind = {"number": 2, "float": 0.5, "int": 1, "bool": False, "ScalarType": torch.float64}
    given, values = {}, {}
    for name, known in operation.parameters.items():
        kind = operation.kind(name)
        if known.has_default_value():
            continue
        if kind == "Tensor":
            values[name] = TENSORS[next(tensors)]
            given[name] = Constant(name)
        elif kind == "List[Tensor]":
            values |= {"a": X, "b": Y}
            given[name] = [Constant("a"), Constant("b")]
        else:
            given[name] = [2] * (known.N or 1) if kind == "List[int]" else by_kind.get(kind)
    return given, values


def right_calls():
    """Every operation's right calls: lists of arguments by name, with the constants that they name."""
    calls = {}

    def taken(function):
        def take(*args, **kwargs):
            values = {}

            def stand(value):
                if isinstance(value, torch.Tensor):
                    values[f"t{len(values)}"] = value
                    return Constant(f"t{len(values) - 1}")
                return [stand(part) for part in value] if isinstance(value, list) else value

            given = operation.given([stand(value) for value in args], {k: stand(v) for k, v in kwargs.items()})
            calls.setdefault(operation.name, []).append((given, values))

        operation = OPERATIONS[function]
        return take

    for text in CALLS:
        name, _, arguments = text.partition("(")
        full = f"aten.{name}" if "." in name else f"aten.{name}.default"
        eval(f"take({arguments}", {**NAMES, "take": taken(full)})
    for name, operation in OPERATIONS.items():
        if name not in calls:
            calls[name] = [plain(operation)]
    return calls


RIGHT = right_calls()


def call(operation, given, values):
    args, kwargs = operation.call(given)
    args = [_given(value, {}, values) for value in args]
    return operation.function(*args, **{name: _given(value, {}, values) for name, value in kwargs.items()})


# ---------------------------------------- any calls

LIMIT = 1 << 22  # values
SHAPES = [(2, 4, 6, 6)] * 4 + [(2, 4, 6), (2, 36, 9), (4,), (6,), (6, 4), (4, 6), (), (1,), (0, 4), (2, 4, 0, 6)]
SHAPES += [(1, 1, 1, 1), (2, 3, 4, 4, 4), (2, 3, 3, 2), (2, 6, 6, 2)]
INTS = [-(1 << 53) + 1, -(1 << 31) - 1, -7, -2, -1, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 8, 9, 12, 64, 1000, 1 << 20]
INTS += [(1 << 31) - 1, 1 << 31, 1 << 32, (1 << 53) - 1]
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    1e-5,
    3.7,
    -2.5,
    1e-45,
    1e-30,
    1e-300,
    1e30,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
]
FORMATS = [torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format]


def any_tensor(draw, generator):
    shape = draw.choice(SHAPES)
    dtype = draw.choice([torch.float32] * 6 + [torch.int64] * 3 + [*DTYPES])
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * draw.choice([1, 1, 1, 3, 1e3, 1e10])
    if dtype.is_floating_point or dtype.is_complex:
        x = x.to(dtype)
    elif dtype is torch.bool:
        x = x > 0
    else:
        low, high = draw.choice([(0, 3), (0, 3), (-2, 10), (torch.iinfo(dtype).min, torch.iinfo(dtype).max)])
        x = torch.randint(low, high, shape, generator=generator, dtype=torch.int64).to(dtype)
    return x


def changed(x, draw):
    """The same tensor with some values, the dtype, the strides or the shape changed."""
    way = draw.randrange(8)
    if way < 3 and x.numel() and x.dtype is not torch.bool:
        x = x.clone(memory_format=torch.contiguous_format)
        wild = draw.choice(FLOATS)
        if not (x.is_floating_point() or x.is_complex()):
            info = torch.iinfo(x.dtype)
            wild = draw.choice([info.min, info.max, max(-1, info.min), 0, 1, 100])
            x.view(-1)[draw.randrange(x.numel())] = wild
            if draw.random() < 0.5:
                x.fill_(wild)
        else:
            x.view(-1)[:: draw.choice([1, 3])] = torch.tensor(wild, dtype=torch.float64).to(x.dtype)
    elif way == 3:
        x = x.to(draw.choice(DTYPES))
    elif way == 4 and x.dim() > 1:
        x = x.transpose(draw.randrange(x.dim()), draw.randrange(x.dim()))
    elif way == 5 and x.dim() and x.shape[0]:
        x = x[:1].expand(x.shape) if draw.random() < 0.5 else x[: draw.randrange(len(x) + 1)]
    elif way == 6 and x.dim():
        x = x[..., draw.randrange(2) :: draw.choice([1, 2])]
    elif way == 7:
        x = draw.choice([x[None], x.flatten(), x.reshape(-1, 1), x.contiguous()])
    return x


class Call:
    """One call, drawn from its number."""

    def __init__(self, number):
        names = sorted(OPERATIONS)
        self.operation = OPERATIONS[names[number % len(names)]]
        self.draw, self.generator = random.Random(number), torch.Generator().manual_seed(number)
        right, tensors = self.draw.choice(RIGHT[self.operation.name])
        wild, self.tensors = self.draw.choice([0.1, 0.1, 0.3, 1]), dict(tensors)
        self.given = {}
        for name, known in self.operation.parameters.items():
            kind = self.operation.kind(name)
            if name in right and self.draw.random() > wild:
                self.given[name] = right[name]
            elif not known.has_default_value() or self.draw.random() < 0.5:
                self.given[name] = self.value(kind, known.N)
        for name, x in self.tensors.items():
            while self.draw.random() < 0.3:
                x = changed(x, self.draw)
            self.tensors[name] = x

    def value(self, kind, length=None):
        draw = self.draw
        if kind.startswith("Optional["):
            return None if draw.random() < 0.3 else self.value(kind[len("Optional[") : -1], length)
        if kind.startswith("List["):
            if kind[5:-1] in ("int", "float") and draw.random() < 0.2:
                return self.value(kind[5:-1])
            size = draw.choice([length or 1] * 8 + [0, 1, 1, 2, 2, 3, 4, 4, 5, 6])
            same = draw.random() < 0.3
            return [self.value(kind[5:-1])] * size if same else [self.value(kind[5:-1]) for _ in range(size)]
        if kind == "Tensor" and draw.random() < 0.9:
            if not self.tensors or draw.random() < 0.6:
                self.tensors[f"t{len(self.tensors)}"] = any_tensor(draw, self.generator)
            return Constant(draw.choice([*self.tensors]))
        if kind in ("Tensor", "number", "float"):
            return draw.choice([*FLOATS, *INTS, True])
        if kind in ("ScalarType", "MemoryFormat"):
            return draw.choice(DTYPES if kind == "ScalarType" else FORMATS)
        if kind in ("int", "bool"):
            return draw.choice(INTS) if kind == "int" else draw.random() < 0.5
        word = draw.choice(kind.replace("..", "|").split("|"))
        return int(word) if word.isdigit() else {"None": None, "True": True, "False": False}.get(word, word)


def check(number):
    """Make a call, and return whether it had a result; raise if it did what no operation of the table may do."""
    one = Call(number)
    if one.operation.wrong(one.given) is not None:
        return False
    try:
        with torch.no_grad(), _EachResult(LIMIT):
            made = call(one.operation, one.given, {name: x.to("meta") for name, x in one.tensors.items()})
            expected = _tensors(made)
    except Exception:
        return False
    tensors = one.tensors
    if one.draw.random() < 0.2:  # a module that was brought into another dtype
        other = one.draw.choice([torch.float16, torch.bfloat16, torch.float32, torch.float64])
        tensors = {name: x.to(other) if x.is_floating_point() else x for name, x in tensors.items()}
    before = {name: x.clone() for name, x in tensors.items()}
    try:
        with torch.no_grad():
            made = _tensors(call(one.operation, one.given, tensors))
    except Exception:
        return False
    assert len(made) == len(expected)
    for x, known in zip(made, expected, strict=True):
        assert x.shape == known.shape or x.numel() == known.numel() == 0, (x.shape, known.shape)
    for name, x in tensors.items():
        assert bool(((x == before[name]) | (x != x) & (before[name] != before[name])).all()), f"it writes to {name}"
    return True


def main(first, last, log):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = dict.fromkeys(OPERATIONS, 0)
    with Path(log).open("w") as file:
        for number in range(first, last):
            file.seek(0)
            file.write(f"{number:012}")
            file.flush()
            name = Call(number).operation.name
            try:
                counts[name] += check(number)
            except AssertionError as error:
                sys.stdout.write(f"WRONG {number} {name} {error}\n")
    sys.stdout.write(" ".join(["NEVER", *(name for name, count in counts.items() if not count)]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
