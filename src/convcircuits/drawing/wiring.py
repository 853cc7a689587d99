"""Which filters each kernel reads: a recorded model as a graph of filters, small enough to draw.

A *site* is a set of channels with one origin: a layer's filters, an addition, a gate. What lies between a site and the
kernels that read it (BatchNorm, ReLU, pooling, views, concatenation) is skipped. Neighbors are merged into one site
where nothing is lost: the last convolutions of a residual block with the sum that they are added to, and a layer with
the depthwise layer that is its only reader (except for the first layer, whose kernels are pictures).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor

from convcircuits.compiler.layout import Layout, Value
from convcircuits.network.calls import ConvCall, KernelCall


class SiteKind(Enum):
    """The origin of a site's channels."""

    FILTER = auto()
    IMAGE = auto()
    ADD = auto()
    GATE = auto()
    MIX = auto()
    TARGET = auto()


class LinkKind(Enum):
    """What a connection without weights does."""

    IDENTITY = auto()
    GATE = auto()
    MIX = auto()
    READOUT = auto()


@dataclass(frozen=True)
class Sources:
    """The sources of some channels, one for each channel.

    Attributes:
        site: Number of the site, int64; -1 for a zero.
        channel: Number of the channel within the site, int64.
    """

    site: Tensor
    channel: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Sources":
        return Sources(self.site[index], self.channel[index])

    def __len__(self) -> int:
        return len(self.site)

    def sites(self) -> list[int]:
        """List the sites that any of the channels come from."""
        return sorted(set(self.site.tolist()) - {-1})

    def only_site(self) -> int | None:
        """Return the one site that all channels come from, with their numbers in order from 0; None otherwise."""
        site = int(self.site[0]) if len(self.site) else -1
        same = bool((self.site == site).all()) and torch.equal(self.channel, torch.arange(len(self.channel)))
        return site if same and site >= 0 else None


@dataclass(frozen=True)
class Link:
    """A connection without weights: channels, ``sources``, that go into channels of a site, ``targets``, one each."""

    kind: LinkKind
    sources: Sources
    targets: Tensor


@dataclass
class Site:
    """A set of channels with one origin.

    Attributes:
        number: Number of the site.
        kind: Origin of its channels.
        name: Name of the module that computes them.
        channels: Number of channels.
        value: Number of the model's value that holds them; None if there is none.
        calls: Value numbers of the kernel calls whose filter c writes channel c.
        inner: Value numbers of the depthwise calls, in order, that the sum of these passes through channel by channel.
        links: Connections without weights into the site.
    """

    number: int
    kind: SiteKind
    name: str
    channels: int
    value: int | None = None
    calls: list[int] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


@dataclass(frozen=True)
class Wiring:
    """A model up to a feature as a graph of sites.

    Attributes:
        sites: Number -> site, for the sites that lead to the target.
        reads: Value number of a kernel call -> the sources of its input channels over all groups (for a linear layer
            on a flattened map, of its blocks).
        target: Number of the feature's site, and the channel.
        columns: Site -> its column, from 0; the target's is the largest, and the image is in column -1.
    """

    sites: Mapping[int, Site]
    reads: Mapping[int, Sources]
    target: tuple[int, int]
    columns: Mapping[int, int]

    def site_of_call(self) -> dict[int, Site]:
        """Return the site that each kernel call writes to, including inner calls."""
        return {call: site for site in self.sites.values() for call in (*site.calls, *site.inner)}


def call_of(layout: Layout, number: int) -> KernelCall:
    """Return the kernel call that computes a value."""
    call = layout.values[number].call
    assert call is not None
    return call


def wire(layout: Layout, layers: Collection[str], rows: Tensor, coefficients: Tensor, *, merged: bool = True) -> Wiring:
    """Find which filters each kernel reads.

    Args:
        layout: The model up to the feature.
        layers: The layers with kernels on a path to the feature; the calls of others are left out.
        rows: The channels that the feature reads, int64.
        coefficients: The coefficient of each. One channel with coefficient 1 is the target itself; otherwise the target
            is an extra site of one channel that reads them.
        merged: Whether to merge neighbors where nothing is lost; otherwise every layer is a site of its own.
    """
    wirer = _Wirer(layout)
    read = wirer.sources[layout.output.number][rows.cpu()]
    if len(rows) == 1 and float(coefficients[0]) == 1:
        target = (int(read.site[0]), int(read.channel[0]))
    else:
        site = wirer.add(SiteKind.TARGET, layout.output.layer, 1)
        site.links = [
            Link(LinkKind.READOUT, read[torch.tensor([n])], torch.zeros(1, dtype=torch.long)) for n in range(len(rows))
        ]
        target = (site.number, 0)
    if merged:
        wirer.merge_sums(target[0])
        wirer.merge_depthwise(target[0])
    wirer.leave_out_all_but(layers)
    return wirer.wiring(target)


class _Wirer:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.sites: dict[int, Site] = {}
        self.reads: dict[int, Sources] = {}
        self.sources: dict[int, Sources] = {}
        for number, value in layout.values.items():
            self.sources[number] = self._sources(value)

    def add(self, kind: SiteKind, name: str, channels: int, value: int | None = None) -> Site:
        site = Site(len(self.sites), kind, name, channels, value)
        self.sites[site.number] = site
        return site

    def _sources(self, value: Value) -> Sources:
        """Return the source of each channel of a value; a value without a channel axis counts as one channel."""
        if value.number == 0:
            return _own(self.add(SiteKind.IMAGE, "image", value.channels, value.number))
        if value.call is not None:
            return self._of_call(value)
        inputs = [self.sources[n] for n in value.inputs]
        if value.move is not None:
            laid = [self.sources[s] for s in value.move.sources]
            if value.move.channels is None or value.axis is None:
                return self._mixed(value, laid)
            joined = Sources(torch.cat([s.site for s in laid]), torch.cat([s.channel for s in laid]))
            taken = joined[value.move.channels.clamp_min(0)]
            return Sources(taken.site.masked_fill(value.move.channels < 0, -1), taken.channel)
        operation = value.operation
        assert operation is not None
        if value.axis is None or operation.over is None or any(len(s) not in (1, value.channels) for s in inputs):
            return self._mixed(value, inputs)
        if len(value.node.inputs if value.node else ()) == 1:
            return inputs[0]
        if all(read.sites() == [0] for read in inputs):  # computed from the image alone
            return self._mixed(value, inputs)
        inputs = [self.sources[n] for n in (value.node.inputs if value.node else ())]
        kind = SiteKind.ADD if operation.data is None else SiteKind.GATE
        site, every = self.add(kind, value.layer, value.channels, value.number), torch.arange(value.channels)
        for n, read in enumerate(inputs):
            gates = kind is SiteKind.GATE and n != operation.data
            spread = read if len(read) == value.channels else read[torch.zeros_like(every)]
            link = Link(LinkKind.GATE if gates else LinkKind.IDENTITY, spread, every)
            site.links.append(link)
        return _own(site)

    def _of_call(self, value: Value) -> Sources:
        call, source = call_of(self.layout, value.number), self.layout.values[value.inputs[0]]
        read = self.sources[source.number]
        count = call.groups * call.weight.shape[1] if isinstance(call, ConvCall) else call.blocks
        if source.axis is None or source.axis != (0 if isinstance(call, ConvCall) else len(source.shape) - 1):
            read = read if len(read) == 1 else self._mixed(value, [read])
            read = read[torch.zeros(count, dtype=torch.long)]
        elif len(read) != count:  # all positions of a flattened map's block belong to one channel
            read = read[torch.arange(count) * (len(read) // count)]
        self.reads[value.number] = read
        site = self.add(SiteKind.FILTER, call.layer, value.channels, value.number)
        site.calls.append(value.number)
        return _own(site)

    def _mixed(self, value: Value, inputs: list[Sources]) -> Sources:
        """Return one channel that stands for all sources, which are mixed beyond distinction."""
        pairs = torch.cat([torch.stack([s.site, s.channel], 1) for s in inputs])
        pairs = torch.unique(pairs[pairs[:, 0] >= 0], dim=0)
        if len(pairs) == 1:
            return Sources(pairs[:1, 0], pairs[:1, 1])[torch.zeros(value.channels, dtype=torch.long)]
        if bool((pairs[:, 0] == 0).all()):  # a prepared image is still the image
            same = value.channels == self.sites[0].channels
            return _own(self.sites[0]) if same else _own(self.sites[0])[torch.zeros(value.channels, dtype=torch.long)]
        site = self.add(SiteKind.MIX, value.layer, 1, value.number)
        zeros = torch.zeros(len(pairs), dtype=torch.long)
        site.links = [Link(LinkKind.MIX, Sources(pairs[:, 0], pairs[:, 1]), zeros)]
        return _own(site)[torch.zeros(value.channels, dtype=torch.long)]

    # ---------------------------------------- fewer sites

    def _readers(self, target: int) -> dict[int, set[tuple[str, int]]]:
        """Return the readers of each site: kernel calls, sites with links, and a reader of the target."""
        readers: dict[int, set[tuple[str, int]]] = {number: set() for number in self.sites}
        for call, read in self.reads.items():
            for site in read.sites():
                readers[site].add(("call", call))
        for site, links in ((s.number, s.links) for s in self.sites.values()):
            for link in links:
                for source in link.sources.sites():
                    readers[source].add(("link", site))
        readers[target].add(("target", 0))
        return readers

    def merge_sums(self, target: int) -> None:
        """Merge filters into a sum if nothing else reads them."""
        for site in list(self.sites.values()):
            if site.kind is not SiteKind.ADD:
                continue
            readers, links = self._readers(target), []
            named = Counter(source for link in site.links for source in link.sources.sites())
            for link in site.links:
                source = link.sources.only_site()
                other = None if source is None or named[source] > 1 else self.sites[source]
                alone = other is not None and other.channels == site.channels and len(readers[other.number]) == 1
                if other is None or not alone or other.kind not in (SiteKind.FILTER, SiteKind.ADD) or other.inner:
                    links.append(link)
                    continue
                site.calls += other.calls
                links += other.links
                del self.sites[other.number]
            site.links = links

    def merge_depthwise(self, target: int) -> None:
        """Merge a layer with the depthwise layer that is its only reader, unless the layer reads the image.

        Filters that read the image are best shown as their kernels.
        """
        readers = self._readers(target)
        for site in list(self.sites.values()):
            if site.kind is not SiteKind.FILTER or len(site.calls) != 1 or site.inner or site.links:
                continue
            number = site.calls[0]
            call, source = call_of(self.layout, number), self.reads[number].only_site()
            depthwise = call.groups == len(call.weight) and call.weight.shape[1] == 1 and call.groups > 1
            if source is None or not depthwise or len(readers[source]) > 1:
                continue
            before = self.sites[source]
            if before.kind not in (SiteKind.FILTER, SiteKind.ADD) or before.channels != site.channels:
                continue
            if any(self.sites[n].kind is SiteKind.IMAGE for c in before.calls for n in self.reads[c].sites()):
                continue
            site.kind, site.calls, site.links = before.kind, before.calls, before.links
            site.inner = [*before.inner, number]
            del self.sites[source], self.reads[number]

    def leave_out_all_but(self, layers: Collection[str]) -> None:
        """Remove the calls of all other layers."""
        for site in self.sites.values():
            site.calls = [number for number in site.calls if call_of(self.layout, number).layer in layers]

    # ---------------------------------------- columns

    def wiring(self, target: tuple[int, int]) -> Wiring:
        """Keep what leads to the target, and number the columns by steps back from it."""
        depth: dict[int, int] = {}
        order = self._order(target[0])
        for number in order:
            later = [depth[n] + 1 for n in order if number in self._inputs(n) and n in depth]
            depth[number] = max(later, default=0)
        kept = {number: self.sites[number] for number in sorted(depth)}
        image = next(n for n, site in kept.items() if site.kind is SiteKind.IMAGE)
        deepest = max((d for n, d in depth.items() if n != image), default=0)
        columns = {n: -1 if n == image else deepest - d for n, d in depth.items()}
        calls = {call for site in kept.values() for call in site.calls}
        reads = {call: read for call, read in self.reads.items() if call in calls}
        return Wiring(kept, reads, target, columns)

    def _inputs(self, number: int) -> set[int]:
        site = self.sites[number]
        reads = [self.reads[call] for call in site.calls] + [link.sources for link in site.links]
        return {n for read in reads for n in read.sites()}

    def _order(self, target: int) -> list[int]:
        """List the sites that lead to the target, each after all sites that read it."""
        order: list[int] = []
        seen: set[int] = set()
        stack: list[tuple[int, Iterator[int]]] = [(target, iter(sorted(self._inputs(target))))]
        seen.add(target)
        while stack:
            number, rest = stack[-1]
            following = next((n for n in rest if n not in seen), None)
            if following is None:
                order.append(number)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(self._inputs(following)))))
        return order[::-1]


def _own(site: Site) -> Sources:
    channels = torch.arange(site.channels)
    return Sources(torch.full_like(channels, site.number), channels)
