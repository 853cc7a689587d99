# %% [markdown]
# # Your first circuit
#
# Which few kernels of a network compute one of its units? This tutorial finds out for a unit of VGG16. The weights
# and the photographs come with Python packages, so nothing is downloaded.

# %%
import convcircuits as cc
from convcircuits.zoo.images import Crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

loaded = load_model("vgg16_hed")
model = loaded.model

# %% [markdown]
# First split the photographs, then cut crops. The circuit is found on crops of the first set and measured on crops of
# the second. For your own model, you can pass a tensor (N, C, H, W) or a `DataLoader` instead.

# %%
train, others = split_photographs(sample_photographs())
images = Crops(train, loaded.preprocess, count=14, seed=0, size=(64, 64))
held_out = Crops(others, loaded.preprocess, count=10, seed=1, size=(64, 64))
print("found on:", ", ".join(photograph.name for photograph in train))
print("measured on:", ", ".join(photograph.name for photograph in others))

# %% [markdown]
# A **feature** names what to preserve: a layer, as in `model.named_modules()`, and one of its units (output
# channels).

# %%
feature = cc.Feature("features.14", 166)
feature

# %% [markdown]
# A **criterion** scores every kernel on a path from the image to the feature. A kernel is the part of a convolution's
# weights by which one filter reads one channel.

# %%
scores = cc.score(model, feature, images)
scores

# %% [markdown]
# **prune** keeps the best kernels, here one in twenty. The result is a **circuit**, which is only data.

# %%
circuit = cc.prune(scores, density=0.05)
circuit

# %% [markdown]
# **evaluate** runs only the circuit, on photographs that it was not found on. R² is 1 for a perfect copy of the
# feature's map. No figure stands alone. The report compares the circuit with the average map of the training images,
# which needs no network, and with a random circuit of equal size. It also gives R² on the interior, away from the
# padding. The verdict follows from fixed rules.

# %%
report = cc.evaluate(model, circuit, held_out, fit=images)
report

# %% [markdown]
# How much does the circuit lose as it shrinks? One set of scores is enough to find out, because smaller circuits lie
# inside larger ones.

# %%
for density in (0.2, 0.1, 0.05, 0.02):
    smaller = cc.prune(scores, density=density)
    found = cc.evaluate(model, smaller, held_out, fit=images)
    figures = f"R2 {found.r2:5.2f}  on the interior {found.r2_interior:5.2f}"
    print(f"{density:4.0%}  {figures}  {found.verdict}")

# %% [markdown]
# These scores say what a kernel does in the full model. **find** goes further: it cuts step by step, and after every
# cut it refits what is left, one gain for each kept kernel and one offset for each filter. That holds the feature with
# far fewer kernels. **find_path** returns all circuits of such a descent.

# %%
for refitted in cc.find_path(model, feature, images, density=[0.1, 0.05, 0.02]):
    found = cc.evaluate(model, refitted, held_out, fit=images)
    figures = f"R2 {found.r2:5.2f}  on the interior {found.r2_interior:5.2f}"
    print(f"{refitted.density:4.0%}  {figures}  {refitted.constants:6,} constants  {found.verdict}")

# %% [markdown]
# **diagram** draws a circuit. With `drawable=True`, `find` looks for one that can be drawn whole, so the picture is the
# circuit. The caption is measured too, and compares it with wrong graphs that were fitted in the same way.
# `diagram.save("circuit.html")` writes an interactive page that opens offline. In a notebook, the diagram is
# interactive as well.

# %%
small = cc.find(model, feature, images, drawable=True)
colors = loaded.primaries()  # how to turn the model's inputs back into pictures
diagram = cc.diagram(model, small, images=images, held_out=held_out, fit=images, primaries=colors)
diagram

# %% [markdown]
# A file stores a circuit and its provenance: the model, a hash of its weights, the images, the criterion and the
# seed.

# %%
cc.save(circuit, "features.14-166.safetensors")
again = cc.load("features.14-166.safetensors")
print(again == circuit)
again.provenance["criterion"], again.provenance["images"]
