"""Tiny networks, one for each thing that real networks do; seeded, float64, in eval mode."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetCase:
    """How to build a net, what it reads, and the (layer, unit) features worth testing.

    `blocks` names the channels C of every Linear that reads a flattened (C, H, W) map.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    features: tuple[tuple[str, int], ...]
    notes: str = ""
    blocks: Mapping[str, int] = field(default_factory=dict)

    def images(self, n: int = 3, seed: int = 0) -> Tensor:
        """Normal float64 images (n, C, H, W), the same at every call."""
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randn(n, *self.input_shape, generator=generator, dtype=torch.float64)


def seeded(make: Callable[[], nn.Module], seed: int) -> Callable[[], nn.Module]:
    """A builder that leaves the global random state as it found it."""

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = make().double().eval()
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    signs = torch.where(torch.rand(module.num_features) < 0.25, -1.0, 1.0)
                    module.weight.data.copy_(signs * (0.5 + torch.rand(module.num_features)))
                    module.bias.data.normal_(0.1, 0.3)
                    module.running_mean.normal_(0.0, 0.3)
                    module.running_var.uniform_(0.3, 2.0)
        return net

    return build


class WithConstant(nn.Module):
    """A map of ones among those that the last layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.head(torch.cat([y, torch.ones_like(y[:, :1])], 1))


class StandardisedConv2d(nn.Conv2d):
    """Standardises every filter inside `forward`; the stored weight is never used as it is."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        var = self.weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SamePadConv2d(nn.Conv2d):
    """TensorFlow's SAME: pads inside `forward`, the odd row or column at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s, d in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((-(-int(size) // s) - 1) * s + (k - 1) * d + 1 - int(size), 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Plain(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=bias),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1, bias=bias),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 4, 3, bias=bias),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.down = None
        if stride != 1 or c_in != c_out:
            self.down = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = BasicBlock(4, 4)
        self.block2 = BasicBlock(4, 5, stride=2)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        return self.head(self.block2(self.block1(x)))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 2, 1)
        self.reduce = nn.Conv2d(4, 3, 1)
        self.three = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = nn.Conv2d(4, 2, 1)
        self.last = nn.Conv2d(7, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        one = F.relu(self.one(x), inplace=True)
        three = F.relu(self.three(F.relu(self.reduce(x), inplace=True)), inplace=True)
        pool = F.relu(self.project(self.pool(x)), inplace=True)
        return self.last(torch.cat([one, three, pool], 1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.conv3 = nn.Conv2d(6, 4, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True)
        )
        self.expand = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.multiply = nn.Conv2d(4, 8, 3, groups=4)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(F.relu6(self.multiply(x)))


class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(2, 1), dilation=2)
        self.conv2 = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.conv3 = nn.Conv2d(4, 5, (1, 5), stride=(1, 2), padding=(0, 3), dilation=(1, 2))
        self.conv4 = nn.Conv2d(5, 3, (2, 1), dilation=(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.conv4(F.relu(self.conv3(x)))


class Padded(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode)
        self.conv2 = nn.Conv2d(4, 3, (3, 5), stride=2, padding=(1, 2), padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


class SameValid(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, (4, 2), padding="same", padding_mode=mode)
        self.conv2 = nn.Conv2d(4, 4, 2, dilation=3, padding="same", padding_mode=mode)
        self.conv3 = nn.Conv2d(4, 3, 3, padding="valid", padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch warns that unequal padding costs a copy
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
            return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.shared(x))
        x = self.relu(self.shared(x))
        return self.head(x)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = StandardisedConv2d(3, 4, 3, padding=1)
        self.conv2 = StandardisedConv2d(4, 4, 3, stride=2, groups=2)
        self.conv3 = StandardisedConv2d(4, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class SamePad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = SamePadConv2d(3, 4, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = SamePadConv2d(4, 4, (4, 2), dilation=(1, 2), groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = SamePadConv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu6(self.bn2(self.conv2(x)), inplace=True)
        return self.conv3(x)


class FlatHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d((2, 4)))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(4 * 4 * 2, 5),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(5, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class PooledHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(self.flat(self.pool(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int, linear: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = linear
        self.fc1 = nn.Linear(channels, hidden) if linear else nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden, channels) if linear else nn.Conv2d(hidden, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.pool(x)
        if self.linear:
            gate = gate.view(x.size(0), -1)
        gate = self.sigmoid(self.fc2(self.relu(self.fc1(gate))))
        if self.linear:
            gate = gate.view(x.size(0), x.size(1), 1, 1)
        return x * gate


class Excited(nn.Module):
    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.se = SqueezeExcite(4, 3, linear)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(x + self.conv2(self.se(x))))


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3)
        self.layer1 = DenseLayer(3, 2)
        self.layer2 = DenseLayer(5, 2)
        self.norm = nn.BatchNorm2d(7)
        self.transition = nn.Conv2d(7, 4, 1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        x = self.pool(self.transition(F.relu(self.norm(x))))
        return self.head(x)


class Inner(nn.Module):
    def __init__(self, channels: int, relu: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"first": nn.Conv2d(channels, 4, 3, padding=1), "second": nn.Conv2d(4, 4, 3, padding=1)}
        )
        self.act = relu

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body["second"](self.act(self.body["first"](x))))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.ModuleList([Inner(3, self.relu), Inner(4, self.relu)])
        self.head = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for inner in self.stage:
            x = inner(x)
        return self.head(x)


NETS: dict[str, NetCase] = {
    "plain": NetCase(
        seeded(Plain, 0),
        (3, 8, 8),
        (("features.3", 1), ("features.5", 2)),
        "in-place ReLU, max-pooling; features.3 has a 4x4 map and features.5 a 2x2 map",
    ),
    "no_bias": NetCase(
        seeded(lambda: Plain(bias=False), 1),
        (3, 10, 10),
        (("features.5", 0),),
        "dead filters are exactly zero",
    ),
    "residual": NetCase(
        seeded(Residual, 2),
        (3, 10, 10),
        (("block1.conv2", 1), ("block2.conv2", 3), ("block2.down.0", 2), ("head", 0)),
        "BatchNorm, `out += identity`, downsample; down.0 runs before conv1 of its block",
    ),
    "inception": NetCase(
        seeded(Inception, 3),
        (3, 9, 9),
        (("three", 1), ("last", 2)),
        "concatenation of branches; `one` runs before `three` and does not lead to it",
    ),
    "grouped": NetCase(seeded(Grouped, 4), (3, 10, 10), (("conv2", 4), ("conv3", 3)), "unit 3 sees the 2nd group only"),
    "mobile": NetCase(
        seeded(Mobile, 5),
        (3, 10, 10),
        (("project.0", 2), ("multiply", 3), ("head", 1)),
        "depthwise, pointwise, channel multiplier 2, ReLU6, residual without activation",
    ),
    "dilated": NetCase(
        seeded(Dilated, 6),
        (3, 11, 10),
        (("conv3", 2), ("conv4", 1)),
        "dilation, unequal strides and paddings, 3x1, 1x5 and 2x1 kernels",
    ),
    "pad_zeros": NetCase(seeded(lambda: Padded("zeros"), 7), (3, 9, 10), (("conv2", 0),)),
    "pad_reflect": NetCase(seeded(lambda: Padded("reflect"), 8), (3, 9, 10), (("conv2", 1),)),
    "pad_replicate": NetCase(seeded(lambda: Padded("replicate"), 9), (3, 9, 10), (("conv2", 2),)),
    "pad_circular": NetCase(seeded(lambda: Padded("circular"), 10), (3, 9, 10), (("conv2", 0),)),
    "same_zeros": NetCase(
        seeded(lambda: SameValid("zeros"), 11), (3, 10, 9), (("conv3", 1),), "even kernels: unequal padding"
    ),
    "same_circular": NetCase(seeded(lambda: SameValid("circular"), 12), (3, 10, 9), (("conv3", 2),)),
    "twice": NetCase(seeded(Twice, 13), (3, 10, 10), (("head", 1),), "`shared` runs twice on maps of the same size"),
    "standardised": NetCase(
        seeded(Standardised, 14), (3, 9, 9), (("conv2", 3), ("conv3", 0)), "weights standardised in forward"
    ),
    "same_pad": NetCase(
        seeded(SamePad, 15), (3, 10, 9), (("conv2", 1), ("conv3", 2)), "a subclass that pads in forward"
    ),
    "flat_head": NetCase(
        seeded(FlatHead, 16),
        (3, 10, 10),
        (("features.0", 2), ("classifier.1", 3), ("classifier.4", 1)),
        "classifier.1 reads a flattened 4x4x2 map: its kernels are 4x2 blocks",
        {"classifier.1": 4},
    ),
    "pooled_head": NetCase(seeded(PooledHead, 17), (3, 10, 10), (("conv2", 1), ("fc", 2))),
    "se_conv": NetCase(
        seeded(lambda: Excited(linear=False), 18),
        (3, 9, 9),
        (("conv2", 1), ("head", 2)),
        "the gate is se.fc2; x reaches the head on a skip path too",
    ),
    "se_linear": NetCase(seeded(lambda: Excited(linear=True), 19), (3, 9, 9), (("conv2", 0), ("head", 1))),
    "dense": NetCase(
        seeded(Dense, 20),
        (3, 10, 10),
        (("layer2.conv", 1), ("transition", 2), ("head", 0)),
        "BatchNorm-ReLU-conv on concatenations; average pooling",
    ),
    "nested": NetCase(
        seeded(Nested, 21), (3, 8, 8), (("stage.1.body.second", 2), ("head", 1)), "one ReLU shared by all"
    ),
}


# ---------------------------------------- to be made as a test needs them


class Net(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self, between=None):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
        self.between = (between or nn.Identity)()

    def forward(self, x):
        return self.head(F.relu(self.between(self.conv(x))))


def net(between=None, kind=Net):
    """Make a net of one kind; nets of all kinds have the same weights in conv and head."""
    model = seeded(lambda: Net(between), 0)()
    model.__class__ = kind
    return model


class Named(nn.Module):
    """A net with layers of one name, at the top and further down."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(3, 4, 3))
        self.inner = nn.ModuleDict({name: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))})
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self._modules[self.name](x))
        return self.last(F.relu(self.inner[self.name](x)))
