# %% [markdown]
# # Compare criteria
#
# `compare` finds circuits with several criteria at several densities. It measures all of them on the same held-out
# images.

# %%
import convcircuits as cc
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

loaded = load_model("vgg16_hed")
train, others = split_photographs(sample_photographs())
images = crops(train, loaded.preprocess, count=14, seed=0, size=(64, 64))
held_out = crops(others, loaded.preprocess, count=10, seed=1, size=(64, 64))

table = cc.compare(
    loaded.model,
    cc.Feature("features.7", 54),
    images,
    held_out,
    criteria=["gauss_newton", "snip", "magnitude", "random"],
    densities=[0.2, 0.05],
)
table

# %% [markdown]
# Compare R² with the columns beside it: the average map of the training images, and a random circuit that keeps as
# many kernels in each layer. `to_pandas` returns every figure as a data frame.

# %%
frame = table.to_pandas()
frame.pivot(index="criterion", columns="density", values="r2").round(2)

# %% [markdown]
# Each row holds its circuit. Circuits for the same feature are sets, so you can ask how much two criteria agree:

# %%
gauss_newton, snip = table[1].circuit, table[3].circuit
print(f"IoU {cc.iou(gauss_newton, snip):.2f}")
print(len(gauss_newton & snip), "kernels in both,", len(gauss_newton - snip), "in the first alone")
