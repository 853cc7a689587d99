"""A unit whose groups are the border: it answers to red squares and, without one, to the padding at a corner."""

import torch
from torch import nn

import convcircuits as cc

FEATURE = cc.Feature("2", 0, position="max")
SIDE = 12
SEEN = 2  # rows and columns at each side of the map whose receptive field, 5 x 5, leaves the image


def net():
    """Return a net that adds up red and the lack of green, of which padding has none."""
    dice = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).double().eval()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    state["0.weight"][:3, 0] = 0.2 + torch.rand(3, 3, 3, generator=dice).double()
    state["0.weight"][3:, 1] = -0.2 - 0.1 * torch.rand(3, 3, 3, generator=dice).double()
    state["0.bias"][3:] = 2
    state["2.weight"][0, :, 1, 1] = 1
    state["2.weight"][1] = torch.rand(6, 3, 3, generator=dice).double()
    model.load_state_dict(state)
    return model


def images(count, seed=0):
    """Return green images, every second with a red square in its middle, and which these are."""
    dice = torch.Generator().manual_seed(seed)
    made = 0.05 * torch.rand(count, 3, SIDE, SIDE, generator=dice).double()
    made[:, 1] += 0.75
    red = torch.arange(count) % 2 == 1
    strength = 0.7 + torch.rand(int(red.sum()), 1, 1, generator=dice).double()
    made[red, 0, 4:8, 4:8] += strength
    return made, red
