# %% [markdown]
# # A criterion of your own
#
# A criterion is a function: it is given a `Trace`, the images of a feature, and returns a saliency for every kernel,
# layer by layer. Here is that of Molchanov et al. ([arXiv 1906.10771](https://arxiv.org/abs/1906.10771)), the squared
# change of a scalar L to first order when a kernel goes: the mean over images of (Σ w ∂L/∂w)².

# %%
from collections.abc import Iterator

import torch

import convcircuits as cc
from convcircuits.criteria import Batch, Trace
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model


def taylor(trace: Trace, *, power: int = 2) -> dict[str, torch.Tensor]:
    """Score |sum of w dL/dw over the kernel| to a power, L the sum of |f| over positions."""

    def contribution(batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        for layer in batch.backward(batch.maps.sign()):  # dL/df
            total = sum(products.sum(3).abs() ** power for products in layer.weight_products())
            yield layer.name, layer.per_element(total)

    return trace.mean(contribution)


# %% [markdown]
# `trace.mean` is the one loop over images; it adds up what is yielded for each batch and divides by the number of
# images, so that no result depends on batches. `batch.backward` takes a gradient with respect to the feature's maps and
# yields what each layer read and the gradient of what it wrote. `weight_products` is w ∂L/∂w of one image after
# another, laid out as (g, o, u, e): group, filter, unit of the filter, weight of the unit. The units are kernels, or
# whatever `granularity` says, so the same function scores filters and single weights.
#
# It is used like those that have a name.

# %%
loaded = load_model("vgg16_hed")
train, others = split_photographs(sample_photographs())
images = crops(train, loaded.preprocess, count=14, seed=0, size=(64, 64))
held_out = crops(others, loaded.preprocess, count=10, seed=1, size=(64, 64))
feature = cc.Feature("features.7", 54)

for criterion in (taylor, "gauss_newton", "snip", "random"):
    circuit = cc.find(loaded.model, feature, images, criterion=criterion, density=0.1)
    report = cc.evaluate(loaded.model, circuit, held_out, fit=images)
    figures = f"R2 {report.r2:5.2f}  on the interior {report.r2_interior:5.2f}"
    print(f"{circuit.provenance['criterion']:>12}  {figures}")

# %% [markdown]
# Keyword-only arguments are its options. The same criterion keeps whole filters:

# %%
cc.find(loaded.model, feature, images, criterion=taylor, power=1, granularity="filter", density=0.3)
