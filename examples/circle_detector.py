# %% [markdown]
# # A circle detector, from parts
#
# A unit answers to large circles and to small ones. Does one circuit do both? Here a unit of VGG16 is chosen by its
# tuning. One circuit is found on small circles alone, another on large ones alone, and each is measured on both. (The
# paper does so for a unit of AlexNet.)
#
# First, **tune** shows lines, arcs, corners, circles, squares and gratings to every unit of three layers, placed in its
# receptive field. To save time, the strokes have one width here and three layers are searched; [The best circle
# detectors](../benchmarks/curves.md) are those of all layers of five networks.

# %%
from itertools import product
from statistics import median

import convcircuits as cc
from convcircuits.zoo.models import load_model
from convcircuits.zoo.stimuli import battery

loaded = load_model("vgg16_hed")
model = loaded.model


def shown(side):
    """Stimuli for a field: the gratings and the thick strokes."""
    return [stimulus for stimulus in battery(side) if stimulus.width in (None, side / 10)]


tunings = {
    layer: cc.tune(model, layer, shown, draw=loaded.draw) for layer in ("features.10", "features.12", "features.14")
}
for layer, tuning in tunings.items():
    print(layer, tuning.responses.shape, "field", tuning.field)

# %% [markdown]
# The rule that chooses the unit: circles of every diameter, bright and dark, excite it at least half as much as what
# excites it most. Of these units, it is the one with the highest **curve preference**: the one whose best response to
# anything straight, squares of the same circumference included, is the smallest share of that to circles and arcs.

# %%
candidates = [
    (float(tuning.curve_preference[unit]), layer, unit)
    for layer, tuning in tunings.items()
    for unit in range(len(tuning.features))
    if not tuning.weak[unit] and tuning.least("circle")[unit] >= tuning.highest()[unit] / 2
]
for preference, layer, unit in sorted(candidates, reverse=True)[:5]:
    print(f"{layer}:{unit}  curve preference {preference:.2f}")

_, layer, unit = max(candidates)
tuning = tunings[layer]
feature = tuning.features[unit]
tuning.take([unit])

# %% [markdown]
# Now small circles and large ones, in the center of its field. Circuits are found on some, and measured on circles of
# other diameters, widths, contrasts and places.

# %%


def circles(diameters, widths, contrasts, shifts):
    """Circles of all combinations."""
    return [
        cc.Stimulus("circle", diameter, width=width, contrast=contrast, offset=offset)
        for diameter, width, contrast, offset in product(diameters, widths, contrasts, product(shifts, shifts))
    ]


found_on = {
    "small": circles((6, 8), (2,), (-0.5, 0.5), (-3, 0, 3)),
    "large": circles((22, 24), (2,), (-0.5, 0.5), (-3, 0, 3)),
}
held_out = {
    "small": circles((7,), (1.5, 2.5), (-0.35, 0.35), (-1.5, 1.5)),
    "large": circles((23,), (1.5, 2.5), (-0.35, 0.35), (-1.5, 1.5)),
}
print({name: (len(some), len(held_out[name])) for name, some in found_on.items()})

# %% [markdown]
# One set of scores per group gives circuits of all sizes. **cross** measures every circuit on the held-out circles of
# both groups, at the center of the map: the mean of |response in the circuit - response in the model|, as a share of
# the mean |response in the model|. Its control deals the same circles out to two groups by chance, and does all of this
# again.

# %%
densities = (0.2, 0.1, 0.05)


def images(groups):
    """The stimuli of each group as images for the model, in the field of the unit."""
    return {name: loaded.draw(some, size=tuning.image, center=tuning.center) for name, some in groups.items()}


circuits = {}
for name, some in images(found_on).items():
    scores = cc.score(model, feature, some, criterion="snip")
    circuits[name] = [cc.prune(scores, density=density) for density in densities]

report = cc.cross(model, circuits, images(held_out), fit=images(found_on), shuffles=1)
print(report.summary())

# %% [markdown]
# The two circuits begin alike, part in the middle, and meet again at the unit. An overlap is the kernels in both as a
# share of those in either: as it is, and above what two random circuits of these sizes share.

# %%
small, large = (path[-1] for path in circuits.values())
for overlap in report.overlaps:
    if overlap.size == len(densities) - 1:
        print(f"{overlap.layer:12s} overlap {overlap.iou:.2f}  above chance {overlap.above_chance:.2f}")

# %% [markdown]
# What are the parts? The unit reads the filters of the layer before it. Their tuning is known from the beginning: here
# are the diameters of the circles that they prefer.

# %%
before = tunings["features.12"]
diameters = [stimulus.size for stimulus in before.preferred("circle")]
in_small, in_large = (circuit.kernels[layer][unit] for circuit in (small, large))
for name, kept in (
    ("small alone", in_small & ~in_large),
    ("both", in_small & in_large),
    ("large alone", in_large & ~in_small),
):
    preferred = [diameters[n] for n in kept.nonzero()[:, 0].tolist() if not before.weak[n]]
    print(f"read for {name:11s}  {len(preferred):3d} filters, which prefer circles of {median(preferred):4.1f} pixels")
