# %% [markdown]
# # Your first circuit
#
# Which few kernels of a network compute one of its units? Here is a network with weights and photographs that come
# with packages, so that nothing is downloaded: the convolutions of VGG16.

# %%
import convcircuits as cc
from convcircuits.zoo.images import Crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

loaded = load_model("vgg16_hed")
model = loaded.model

# %% [markdown]
# Photographs are split before crops are cut: the circuit is found on the first ones and measured on the others. A model
# of your own takes a tensor (N, C, H, W) or a `DataLoader` in their place.

# %%
train, others = split_photographs(sample_photographs())
images = Crops(train, loaded.preprocess, count=14, seed=0, size=(80, 80))
held_out = Crops(others, loaded.preprocess, count=10, seed=1, size=(80, 80))
print("found on:", ", ".join(photograph.name for photograph in train))
print("measured on:", ", ".join(photograph.name for photograph in others))

# %% [markdown]
# A **feature** names what is to be preserved: a layer, as in `model.named_modules()`, and a unit of it.

# %%
feature = cc.Feature("features.14", 166)
feature

# %% [markdown]
# A **criterion** scores every kernel that lies on a path from the image to the feature.

# %%
scores = cc.score(model, feature, images)
scores

# %% [markdown]
# **prune** keeps the best of them, here one in twenty: a **circuit**, which is only data.

# %%
circuit = cc.prune(scores, density=0.05)
circuit

# %% [markdown]
# **evaluate** runs the circuit alone on photographs that it was not found on. No figure stands alone: beside the
# circuit stand the average map of the training images, for which no network is needed, and a random circuit of equal
# size; and beside R² that on the interior, away from the padding. The verdict follows from rules that are stated.

# %%
report = cc.evaluate(model, circuit, held_out, fit=images)
report

# %% [markdown]
# How much does the circuit lose as it shrinks? Smaller circuits lie inside larger ones, so that one set of scores will
# do.

# %%
for density in (0.2, 0.1, 0.05, 0.02):
    smaller = cc.prune(scores, density=density)
    found = cc.evaluate(model, smaller, held_out, fit=images)
    figures = f"R2 {found.r2:5.2f}  on the interior {found.r2_interior:5.2f}"
    print(f"{density:4.0%}  {figures}  {found.verdict}")

# %% [markdown]
# **diagram** draws it. Its caption is measured too: only a small part of a circuit can be drawn, and the caption says
# how small. `diagram.save("circuit.html")` writes it as a page that opens offline; in a notebook it shows itself, with
# everything that can be clicked.

# %%
colors = loaded.primaries()  # how inputs become pictures again
diagram = cc.diagram(model, circuit, images=images, held_out=held_out, primaries=colors)
diagram

# %% [markdown]
# A file holds a circuit with where it came from: the model, a hash of its weights, the images, the criterion, the seed.

# %%
cc.save(circuit, "features.14-166.safetensors")
again = cc.load("features.14-166.safetensors")
print(again == circuit)
again.provenance["criterion"], again.provenance["images"]
