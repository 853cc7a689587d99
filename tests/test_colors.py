"""Colours of a model's inputs, against preparations that are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convcircuits as cc
from convcircuits.maps import colors as colours
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.preprocessing import Preprocess

IMAGENET, CAFFE = Preprocess(), Preprocess(mean=(104.0, 116.7, 122.7), std=(1.0, 1.0, 1.0), bgr=True)


@pytest.mark.parametrize("preprocess", [IMAGENET, CAFFE], ids=["rgb", "bgr"])
def test_known_preparations_are_inverted(preprocess):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (224, 224, 3), generator=generator, dtype=torch.uint8)
    # A picture of the very size that is cut out: no resizing.
    plain = Preprocess(preprocess.mean, preprocess.std, resize=(224, 224), bgr=preprocess.bgr)
    image = plain(Image.fromarray(pixels.numpy()))[None]
    loaded = LoadedModel("x", nn.Identity(), plain, (224, 224), None)
    shown = colours.displayable(image, loaded.primaries())
    torch.testing.assert_close(shown[0], pixels / 255, rtol=0, atol=2e-6)


def test_a_preparation_without_colour_is_shown_as_grey():
    def grey(image):
        return torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[None] / 255 * 2 - 1

    loaded = LoadedModel("x", nn.Identity(), grey, (8, 8), None)
    levels = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    shown = colours.displayable(levels * 2 - 1, loaded.primaries())
    torch.testing.assert_close(shown, levels.movedim(1, -1).expand(-1, -1, -1, 3), rtol=0, atol=0.01)


def made_up(images):
    return colours.displayable(images, colours.primaries_of(images.split(2)))


def test_without_a_known_preparation_each_channel_fills_its_range():
    images = (
        torch.randn(3, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 9, 0])[:, None, None]
    )
    shown = made_up(images)
    assert shown.shape == (3, 5, 4, 3)
    for channel in (0, 1):
        values = images[:, channel]
        expected = (values - values.min()) / (values.max() - values.min())
        torch.testing.assert_close(shown[..., channel], expected)
    assert (shown[..., 2] == 0.5).all()
    assert (made_up(images[:, :1]) == shown[..., :1]).all()
    torch.testing.assert_close(made_up(images[:, :2]), shown[..., :2].mean(-1, keepdim=True).expand(-1, -1, -1, 3))
    with pytest.raises(cc.ConvCircuitsError, match="primaries"):
        colours.displayable(images[:, :1], torch.zeros(4, 3))
