"""A unit of two mechanisms, written by hand: it answers to red squares and, by other kernels, to blue ones."""

import torch
from torch import nn

import convcircuits as cc

FEATURE = cc.Feature("2", 0, position="max")
OWN = {"red": (0, 1, 2), "blue": (3, 4, 5)}  # the filters of the first layer that read one color


def net(leak=0.0):
    """Return a net whose first layer has three filters for each color, and one unit that adds them up."""
    dice = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).double().eval()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for color, channel in (("red", 0), ("blue", 2)):
        for filter_ in OWN[color]:
            state["0.weight"][filter_, channel] = 0.2 + torch.rand(3, 3, generator=dice).double()
            state["0.weight"][filter_, 2 - channel] = leak * torch.rand(3, 3, generator=dice).double()
    state["0.bias"] -= 1  # below the threshold without a color
    state["2.weight"] += 0.5 + torch.rand(2, 6, 3, 3, generator=dice).double()
    model.load_state_dict(state)
    return model


def images(count, seed=0):
    """Return red and blue squares of different sizes and places, by turns, and which are blue."""
    dice = torch.Generator().manual_seed(seed)
    made = 0.1 * torch.rand(count, 3, 12, 12, generator=dice).double()
    blue = torch.arange(count) % 2 == 1
    for image, is_blue in zip(made, blue, strict=True):
        top, left, side = (int(torch.randint(low, high, (), generator=dice)) for low, high in ((0, 6), (0, 6), (3, 7)))
        image[2 * int(is_blue), top : top + side, left : left + side] += 0.5 + float(torch.rand((), generator=dice))
    return made, blue


def circuit(color):
    """Return the kernels that answer to one color."""
    first, second = torch.zeros(6, 3, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    first[list(OWN[color]), 0 if color == "red" else 2] = True
    second[0, list(OWN[color])] = True
    return cc.Circuit.from_masks(net(), FEATURE, {"0": first, "2": second})
