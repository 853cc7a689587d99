"""The table of operations: what it makes of a model's call computes what the call did."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from convcircuits.instructions import OPERATIONS, Constant, Ref, in_table, is_of_kind
from convcircuits.interpreter import _given
from convcircuits.writing import functional

torch.manual_seed(0)
X, Y, POSITIVE = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.rand(2, 4, 6, 6) + 0.1
FLAT, ROW, MANY = torch.randn(5, 4), torch.randn(4), torch.randn(2, 36, 9)
INDEX = torch.tensor([3, 0, 1])
NAMES = {"x": X, "y": Y, "p": POSITIVE, "f": FLAT, "w": ROW, "m": MANY, "i": INDEX, "torch": torch, "F": F}

CALLS = """
x.abs() torch.abs(x) x.neg() -x torch.negative(x) x.ceil() x.floor() x.round() torch.round(x,decimals=1) x.trunc()
x.frac() x.atan() x.cos() x.cosh() x.sin() x.sinh() x.tan() x.tanh() F.tanh(x) x.erf() x.exp() x.exp2() x.expm1()
p.log() p.log10() p.log1p() p.log2() p.reciprocal() p.rsqrt() p.sqrt() x.square() x.sign() x.sigmoid() F.sigmoid(x)
torch.sigmoid(x) x.logical_not() F.logsigmoid(x) F.softsign(x) F.tanhshrink(x) x.clone() x.detach() x.bfloat16()
x.double() x.float() x.half() x+1 1+x x+y torch.add(x,y,alpha=2) x.add(y) torch.add(x,other=1) x-1 1-x x-y
torch.sub(x,y,alpha=3) torch.rsub(x,1) x.subtract(y) x*2 2*x x*y x.mul(y) torch.multiply(x,y) x/2 x/y 2/p
x.div(y,rounding_mode="floor") torch.true_divide(x,y) torch.div(x,2,rounding_mode="trunc") x.divide(p) x**2 2**x p**x
torch.pow(x,3) torch.pow(2,x) x%2 x.remainder(p) torch.maximum(x,y) torch.minimum(x,y) x.logical_and(y)
torch.logical_or(x,y) x>0 0<x x>=y x<1 x<=y x==y x!=y torch.eq(x,0) torch.addcmul(x,y,p,value=2) torch.addcdiv(x,y,p)
torch.lerp(x,y,.3) torch.lerp(x,y,weight=p) x.lerp(y,.2) x.clamp(0,1) x.clamp(min=0) torch.clamp(x,max=.5) x.clip(0,1)
x.clamp_max(1) x.clamp_min(0) torch.clamp(x,y,p+y) torch.nan_to_num(x,nan=1.0) x.nan_to_num() torch.where(x>0,x,y)
torch.where(x>0,x,0.5) x.where(x>0,y) F.relu(x) x.relu() torch.relu(x) F.relu(x,inplace=False) F.relu6(x) F.celu(x)
F.elu(x,.5) F.elu(x,alpha=2.0) F.selu(x) F.silu(x) F.mish(x) F.hardswish(x) F.hardsigmoid(x) F.hardtanh(x,-2.0,1.0)
F.leaky_relu(x,.2) F.gelu(x) F.gelu(x,approximate="tanh") F.gelu(x,approximate="none") F.glu(x,1) F.glu(x,dim=1)
F.hardshrink(x,.3) F.softshrink(x,.2) F.prelu(x,w) torch.prelu(x,w) F.rrelu(x) F.softplus(x) F.softplus(x,2,10)
F.threshold(x,.1,2) F.softmax(x,1) F.softmax(x,dim=1,_stacklevel=5) x.softmax(-1)
torch.softmax(x,1,dtype=torch.float64) F.softmax(x,1,dtype=torch.float64) F.log_softmax(x,dim=1) x.log_softmax(1)
F.softmin(x,1) F.dropout(x,.5,False) F.dropout(x,training=False) F.dropout1d(x[0],.5,False) F.dropout2d(x,.5,False)
F.dropout3d(x[:,:,None],.5,False) F.alpha_dropout(x,.5,False) F.feature_alpha_dropout(x,.5,False)
F.adaptive_avg_pool1d(x[0],3) F.adaptive_avg_pool2d(x,1) F.adaptive_avg_pool2d(x,(None,2)) F.adaptive_max_pool2d(x,2)
F.avg_pool1d(x[0],2) F.avg_pool2d(x,2) F.avg_pool2d(x,3,stride=1,padding=1,count_include_pad=False)
F.avg_pool2d(x,2,divisor_override=3) F.max_pool1d(x[0],2) F.max_pool2d(x,3,2,1) F.max_pool2d(x,2,ceil_mode=True)
F.max_pool2d(x,kernel_size=3,stride=None,padding=1,return_indices=False) torch.max_pool2d(x,2) F.lp_pool2d(p,2,2)
F.interpolate(x,scale_factor=2) F.interpolate(x,size=(4,5),mode="bilinear",align_corners=False)
F.interpolate(x,(3,3),mode="area") F.interpolate(x,None,(2.0,1.5),"nearest") F.fold(m,(6,6),(2,2),stride=2)
F.unfold(x,3,padding=1) F.batch_norm(x,w,w.abs(),w,w,False,.1,1e-3)
F.batch_norm(x,running_mean=w,running_var=w.abs(),training=False) F.instance_norm(x)
F.instance_norm(x,weight=w,bias=w,eps=1e-3) F.group_norm(x,2) F.group_norm(x,2,w,w,1e-3) F.layer_norm(f,(4,))
F.layer_norm(f,(4,),w,w,1e-6) F.rms_norm(f,(4,)) F.local_response_norm(x,3) F.normalize(x) F.normalize(x,p=1,dim=2)
x.mean((2,3)) x.mean(1,True) torch.mean(x,dim=(2,3),keepdim=True) x.mean() x.sum(1) x.sum((2,3),keepdim=True)
torch.sum(x,1,dtype=torch.float64) x.amax(1) torch.amin(x,(2,3),True) x.logsumexp(1) x.all() x.any(1)
(x>0).all(1,keepdim=True) x.argmax(1) x.argmin() x.prod(1) torch.prod(x,1,keepdim=True) x.norm(dim=1)
torch.norm(x,p=2,dim=(2,3),keepdim=True) x.norm() torch.linalg.vector_norm(x,2,(2,3))
torch.linalg.vector_norm(x,dim=1,keepdim=True) x.max() x.max(1) x.max(dim=1,keepdim=True) x.max(y) torch.min(x,1)
torch.min(x,y) x.median() x.median(1) x.sort(1) torch.sort(x,dim=1,descending=True) x.topk(2,1) torch.topk(x,2,dim=1)
x.std() x.std(1) torch.std(x,(2,3),keepdim=True) x.std(1,unbiased=False) torch.std(x,1,correction=0)
x.var(1,keepdim=True) x.var(1,False) torch.var(x,dim=1,unbiased=False) torch.std_mean(x,(2,3))
torch.var_mean(x,dim=1,keepdim=True,correction=0) torch.bmm(m,m.mT) m.bmm(m.transpose(1,2)) torch.mm(f,f.mT)
f.mm(f.transpose(0,1)) f@w torch.matmul(f,w) x.matmul(y) w.expand_as(f) w[None,:,None,None].expand_as(x) x.view_as(y)
x.reshape_as(y) x.type_as(f) torch.einsum("nchw,ndhw->ncd",x,y) torch.cat([x,y],1) torch.cat((x,y),dim=1)
torch.concat([x,y]) torch.cat(tensors=[x,y],dim=2) torch.stack([x,y],1) torch.stack([x,y]) torch.hstack([x,y])
torch.vstack([x,y]) torch.dstack((x,y)) x.chunk(2,1) torch.chunk(x,2,dim=1) x.split(2,1) torch.split(x,[1,3],dim=1)
x.split([1,3],dim=1) torch.split(x,3,1) x.tensor_split(2,1) torch.tensor_split(x,(1,3),dim=1) x.unbind(1)
torch.unbind(x,dim=1) x.unsqueeze(1) x.gather(1,x.argsort(1)) torch.gather(x,1,y.argsort(1)) x.index_select(1,i)
torch.take_along_dim(x,x.argsort(1),dim=1) x.narrow(1,1,2) torch.narrow(x,1,0,2) x.select(1,0) torch.select(x,1,-1)
x[:,1:3] x[...,0] x[:,None] x[0] x[:,[0,2]] x[:,i] x[:,::2,1:-1] x.masked_fill(x>0,0.0) torch.masked_fill(x,x>0,2)
torch.broadcast_to(w,(5,4)) w.expand(5,4) w.expand((5,4)) x.view(2,-1) x.view((2,24,6)) x.repeat(1,2,1,1)
x.repeat((1,2,1,1)) x.reshape(2,-1) torch.reshape(x,(2,24,6)) x.permute(0,2,3,1) torch.permute(x,(0,2,3,1)) x.flip(1)
x.flip(1,2) torch.flip(x,[1,2]) x.tile((1,2,1,1)) torch.channel_shuffle(x,2) x.contiguous()
x.contiguous(memory_format=torch.channels_last) x.flatten(1) torch.flatten(x,1) x.flatten(start_dim=2)
torch.flatten(x,2,3) x.movedim(1,-1) torch.moveaxis(x,1,2) F.pad(x,(1,1)) F.pad(x,(1,1,1,1),"reflect")
F.pad(x,(1,0,0,1),value=2.0) F.pad(x,pad=[0,1]) F.pixel_shuffle(x,2) F.pixel_unshuffle(x,2) x.repeat_interleave(2,1)
torch.repeat_interleave(x,2,dim=1) x.roll(1,1) torch.roll(x,(1,2),(1,2)) x.roll(shifts=1,dims=2)
torch.rot90(x,1,(2,3)) x[:,:1].squeeze(1) x[:,:1].squeeze() torch.squeeze(x[:,:1],dim=1) x.transpose(1,2)
torch.swapaxes(x,1,2) x.swapdims(1,2) x.tril() torch.triu(x,1) x.unflatten(1,(2,2)) torch.unflatten(x,1,(2,2))
torch.ones_like(x) torch.zeros_like(x,dtype=torch.float64) torch.full_like(x,2.5) x.to(torch.float64)
x.to(dtype=torch.float16) x.cumsum(1) torch.cumsum(x,dim=1) x.reshape(-1) x.tile(2) x.tile(1,2) f.permute(1,0)
(x>0).where(y>0,x<0) torch.einsum('ij,j->i',[f,w]) x.view(-1)
""".split()  # noqa: SIM905 (to be read as calls)


class Recorder(TorchFunctionMode):
    """Keeps the last call that is none of a property."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") != "__get__":
            self.last = function, args, kwargs or {}, result
        return result


def stood_for(value, tensors):
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return Ref(len(tensors) - 1)
    if isinstance(value, (tuple, list)):
        return type(value)(stood_for(part, tensors) for part in value)
    return {k: stood_for(v, tensors) for k, v in value.items()} if isinstance(value, dict) else value


REACHED = set()


@pytest.mark.parametrize("call", CALLS)
def test_what_the_table_makes_of_a_call_computes_the_same(call):
    with Recorder() as recorder:
        eval(call, dict(NAMES))
    function, args, kwargs, expected = recorder.last
    tensors = []
    function, args, kwargs = functional(function, stood_for(args, tensors), stood_for(kwargs, tensors))
    if isinstance(function, str):
        function = getattr(torch.Tensor, function)
    found = in_table(function, args, kwargs)
    assert found is not None, (function, args, kwargs)
    operation, given = found
    assert operation.wrong(given) is None
    args, kwargs = operation.call(given)
    results = dict(enumerate(tensors))
    args = [_given(value, results, {}) for value in args]
    got = operation.function(*args, **{name: _given(value, results, {}) for name, value in kwargs.items()})
    assert type(got) is type(expected) or isinstance(got, tuple)
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, expected)), strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    REACHED.add(operation.name)


def test_the_calls_reach_every_operation():
    if len(REACHED) > 1:  # not where a single case was chosen
        assert OPERATIONS.keys() - REACHED == {"repeat_for"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("tensor", [Ref(0), Ref(1, 2), Constant("a")], [None, 0, [Ref(0)], "a", X]),
        ("tensor?", [None, Ref(0)], [0]),
        ("value", [Ref(0), 1, 0.5, True, float("inf")], [None, "1", 1j, 1 << 60, [1]]),
        ("tensors", [[Ref(0)], (Ref(0), Constant("a"))], [[], Ref(0), [1], [[Ref(0)]], [Ref(0)] * 5000]),
        ("int", [0, -3], [True, 1.0, None, "1", 1 << 53]),
        ("bool", [True, False], [0, 1, None]),
        ("ints", [1, [1, 2], (3,)], [[1.0], [[1]], [True], "11", {1}, [1] * 5000]),
        ("index", [0, None, Ellipsis, slice(1, None, 2), (slice(None), [0, 1], Ref(0))], ["x", 1.0, (("a",),), [[0]]]),
        ("index", [slice(0, 2)], [slice("a"), slice(Ref(0)), True, (0,) * 17, [0] * 100_000]),
        ("constant|reflect", ["constant"], ["x", "constant|reflect", None, 0]),
        ("none|tanh", ["none"], [None]),
        ("ints|same", [1, "same"], ["valid", None]),
        ("equation", ["nchw,ndhw->ncd", "ij,jk"], ["__import__('os')", "a" * 300, 3]),
        ("dtype", [torch.float32], ["torch.float32", torch.channels_last]),
        ("true", [True], [False, 1]),
    ],
)
def test_kinds_of_arguments(kind, good, bad):
    assert [value for value in good if not is_of_kind(kind, value)] == []
    assert [value for value in bad if is_of_kind(kind, value)] == []
