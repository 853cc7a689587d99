"""Random small CNNs that can also run any circuit of theirs by the letter of the definition: slow, obviously right.

A net is a list of steps. Each knows how to compute its map, and which of its channels are live, so that a circuit runs
by carrying (map, live channels) from step to step.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

KINDS = ["conv"] * 3 + ["bn", "relu", "add"] * 2 + ["cat", "part", "shuffle", "gate", "norm", "pool", "scale"]


def silence(x, live):
    """The map with exact zeros in its dead channels."""
    return x * live.to(x).reshape(1, -1, *[1] * (x.dim() - 2))


class Step(nn.Module):
    """A step that stays within channels."""

    def forward(self, x):
        raise NotImplementedError

    def circuit(self, inputs, masks, name):
        ((x, live),) = inputs
        return self(x), live


class Kernels(Step):
    """A convolution or Linear: no kernel reads a dead channel; a filter without kernels is dead."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)

    def circuit(self, inputs, masks, name):
        ((x, live),), weight = inputs, self.layer.weight
        groups = getattr(self.layer, "groups", 1)
        reads = live.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)  # (out, in per group)
        mask = masks.get(f"{name}.layer", torch.zeros(len(weight), reads.shape[1], dtype=torch.bool))
        if mask.shape[1] != reads.shape[1]:  # Linear on a flattened map: a kernel is a block
            reads = reads.reshape(*mask.shape, -1)[..., 0]
        kept = mask & reads
        spread = kept.repeat_interleave(weight.shape[1] // kept.shape[1], 1)
        weight = weight * spread.to(weight).reshape(*spread.shape, *[1] * (weight.dim() - 2))
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias), kept.any(1)
        options = (self.layer.stride, self.layer.padding, self.layer.dilation, groups)
        return F.conv2d(x, weight, self.layer.bias, *options), kept.any(1)


class Within(Step):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


class Scale(Step):
    """A learned factor and shift per channel, as parameters of the net."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(0.5 + torch.rand(channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return x * self.factor + self.shift


class Add(Step):
    def forward(self, a, b):
        return a + b

    def circuit(self, inputs, masks, name):
        (a, live_a), (b, live_b) = inputs
        return silence(a, live_a) + silence(b, live_b), live_a | live_b


class Cat(Step):
    def forward(self, a, b):
        return torch.cat([a, b], 1)

    def circuit(self, inputs, masks, name):
        (a, live_a), (b, live_b) = inputs
        return self(a, b), torch.cat([live_a, live_b])


class Part(Step):
    """One half of the channels, cut in one of the ways models cut."""

    def __init__(self, half, how):
        super().__init__()
        self.half, self.how = half, how

    def forward(self, x):
        middle = x.shape[1] // 2
        if self.how == "chunk":
            return x.chunk(2, 1)[self.half]
        if self.how == "split":
            return torch.split(x, middle, 1)[self.half]
        if self.how == "every other":
            return x[:, self.half :: 2]
        return x[:, middle:] if self.half else x[:, :middle]

    def circuit(self, inputs, masks, name):
        ((x, live),) = inputs
        return self(x), self(live[None])[0]


class Shuffle(Step):
    def forward(self, x):
        n, c, *space = x.shape
        return x.view(n, 2, c // 2, *space).transpose(1, 2).reshape(n, c, *space)

    def circuit(self, inputs, masks, name):
        ((x, live),) = inputs
        return self(x), live.reshape(2, -1).t().flatten()


class Gate(Step):
    """A gate of one value per channel: the data stays dead where it is; a dead gate is the constant it is."""

    def forward(self, x, gate):
        return x * torch.sigmoid(F.adaptive_avg_pool2d(gate, 1))

    def circuit(self, inputs, masks, name):
        (x, live), (gate, _) = inputs
        return self(x, gate), live


class LastNorm(Step):
    """LayerNorm over channels, channels last: dead channels count as zeros, and hold the mean of the live ones."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def circuit(self, inputs, masks, name):
        ((x, live),) = inputs
        return self(silence(x, live)), live.any().expand_as(live)


class Flatten(Step):
    def forward(self, x):
        return torch.flatten(x, 1)

    def circuit(self, inputs, masks, name):
        ((x, live),) = inputs
        return self(x), live.repeat_interleave(x[0, 0].numel())


class RandomNet(nn.Module):
    """Steps on maps of one size; each reads earlier maps by number. Two more steps: a head on the map, or logits."""

    def __init__(self, seed, steps=9):
        super().__init__()
        self.dice = random.Random(seed)
        self.steps, self.sources, self.channels = nn.ModuleList(), [], [3]
        self._conv(0, self.dice.choice([4, 6]))
        for _ in range(steps):
            self._grow()
        last = len(self.channels) - 1
        self.flat = self.dice.random() < 0.3
        if self.flat:
            pool = self.dice.choice([1, 2])
            self._add(Within(nn.AdaptiveAvgPool2d(pool)), [last], self.channels[last])
            self._add(Flatten(), [last + 1], self.channels[last] * pool**2)
            self._add(Kernels(nn.Linear(self.channels[last] * pool**2, 3)), [last + 2], 3)
        else:
            self._add(Kernels(nn.Conv2d(self.channels[last], 3, 3)), [last], 3)
        self.layer = f"steps.{len(self.steps) - 1}"

    def forward(self, x):
        maps = [x]
        for step, sources in zip(self.steps, self.sources, strict=True):
            maps.append(step(*(maps[n] for n in sources)))
        return maps[-1]

    @torch.no_grad()
    def circuit(self, x, masks):
        """The last map in a circuit, masks {layer: (out, in)}; dead channels zero."""
        maps = [(x, torch.ones(3, dtype=torch.bool))]
        for n, (step, sources) in enumerate(zip(self.steps, self.sources, strict=True)):
            maps.append(step.circuit([maps[k] for k in sources], masks, f"steps.{n}"))
        return silence(*maps[-1])

    def _add(self, step, sources, channels):
        self.steps.append(step)
        self.sources.append(sources)
        self.channels.append(channels)

    def _conv(self, source, channels):
        c = self.channels[source]
        groups = self.dice.choice([g for g in (1, 1, 2, c) if c % g == 0 and channels % g == 0])
        size = self.dice.choice([1, 3])
        bias = self.dice.random() < 0.7
        self._add(
            Kernels(nn.Conv2d(c, channels, size, padding=size // 2, groups=groups, bias=bias)), [source], channels
        )

    def _grow(self):
        last = len(self.channels) - 1
        source = last if self.dice.random() < 0.75 else self.dice.randrange(1, last + 1)
        c = self.channels[source]
        like = [n for n in range(1, last + 1) if self.channels[n] == c]
        kind = self.dice.choice(KINDS)
        if kind == "conv":
            self._conv(source, self.dice.choice([4, 6]))
        elif kind == "bn":
            self._add(Within(nn.BatchNorm2d(c)), [source], c)
        elif kind == "relu":
            acts = [nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.PReLU(c)]
            self._add(Within(self.dice.choice(acts)), [source], c)
        elif kind == "add":
            self._add(Add(), [source, self.dice.choice(like)], c)
        elif kind == "cat":
            other = self.dice.randrange(1, last + 1)
            if c + self.channels[other] <= 12:
                self._add(Cat(), [source, other], c + self.channels[other])
        elif kind == "part" and c % 4 == 0:
            how = self.dice.choice(["chunk", "split", "every other", "slice"])
            self._add(Part(self.dice.randrange(2), how), [source], c // 2)
        elif kind == "shuffle" and c % 2 == 0:
            self._add(Shuffle(), [source], c)
        elif kind == "gate":
            self._conv(source, c)
            self._add(Gate(), [source, len(self.channels) - 1], c)
        elif kind == "norm":
            self._add(LastNorm(c), [source], c)
        elif kind == "pool":
            self._add(Within(self.dice.choice([nn.AvgPool2d, nn.MaxPool2d])(3, 1, 1)), [source], c)
        elif kind == "scale":
            self._add(Scale(c), [source], c)
