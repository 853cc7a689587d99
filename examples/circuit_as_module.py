# %% [markdown]
# # A circuit as a module
#
# `extract` turns a circuit into a small `torch.nn.Module` with only the filters that the circuit keeps. The module
# does not need the model that it came from.

# %%
import torch

import convcircuits as cc
from convcircuits.zoo.images import crops, sample_photographs
from convcircuits.zoo.models import load_model

loaded = load_model("vgg16_hed")
images = crops(sample_photographs(), loaded.preprocess, count=12, seed=0, size=(64, 64))
feature = cc.Feature("features.7", 54)
circuit = cc.find(loaded.model, feature, images, density=0.05)
small = cc.extract(loaded.model, circuit)
small

# %% [markdown]
# The module computes the same map as the circuit inside the model. `extract` compares the two before it returns the
# module.

# %%
with torch.no_grad():
    maps = small(images)
print(tuple(images.shape), "->", tuple(maps.shape))
inside = cc.activations(loaded.model, feature, images, circuit=circuit)
print("largest difference:", f"{float((maps - inside).abs().max() / inside.abs().max()):.0e}", "of the largest value")

# %% [markdown]
# Layers keep their names. Each layer stores the numbers of the original filters and input channels that it contains.

# %%
layer = small.get_submodule("features.5")
print(layer)
print("filters", layer.filters.tolist()[:8], "... of", loaded.model.features[5].out_channels)
print("channels", layer.channels.tolist()[:8], "... of", loaded.model.features[5].in_channels)

# %% [markdown]
# One file holds the whole module. Loading a file runs no code from it: a module is a list of operations from a closed
# table.

# %%
cc.save(small, "small.safetensors")
with torch.no_grad():
    print(torch.equal(cc.load("small.safetensors")(images), maps))
