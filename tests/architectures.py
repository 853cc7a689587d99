"""Architectures of torchvision and timm: one table, with random weights, for tests that must hold on every one.

``from architectures import ARCHITECTURES``: name -> `Architecture`. Whatever training would leave non-trivial is made
so: BatchNorm's statistics and affine (negative gammas too), LayerNorm's affine, layer scales, skip gains.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import timm
import torch
import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """How to build a model, what it reads, and the (layer, unit) features worth testing.

    `blocks` names the channels C of every Linear that reads a flattened (C, H, W) map. `error`, where given, is what
    the library's error says: the architecture is not supported, for the features named.
    """

    name: str
    features: tuple[tuple[str, int], ...]
    side: int = 64
    options: Mapping[str, object] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    error: str | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.side, self.side)

    def images(self, n: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(1000)
        return torch.randn(n, *self.input_shape, generator=generator).to(self.dtype)

    def build(self) -> nn.Module:
        """Make the model, the same at every call, in eval mode; the global random state stays as it was."""
        library, _, kind = self.name.partition(":")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            if library == "timm":
                model = timm.create_model(kind, pretrained=False, **self.options)
            else:
                model = torchvision.models.get_model(kind, weights=None, **self.options)
            _make_nontrivial(model)
        return model.to(self.dtype).eval()


def _make_nontrivial(model: nn.Module) -> None:
    """Give every weight that is not a kernel values that matter, and every bias."""
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for parameter in model.parameters():
        if id(parameter) in kernels:
            parameter.data.normal_(0.0, (2 / parameter[0].numel()) ** 0.5)  # signals neither fade nor grow
        else:
            parameter.data.normal_(0.1, 0.3)
    for module in model.modules():
        if _is_norm(module):
            signs = torch.where(torch.rand(module.weight.shape) < 0.25, -1.0, 1.0)
            module.weight.data.copy_(signs * (0.5 + torch.rand(module.weight.shape)))
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("layer_scale", "gamma", "skipinit_gain", "gain"):
            parameter.data.uniform_(0.3, 0.7)  # 1e-6 or 0 where training begins


def _is_norm(module: nn.Module) -> bool:
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, norms) and isinstance(module.weight, Tensor)


_SEGMENTATION = {"weights_backbone": None}
_ATTENTION = "attention|mixes maps with|windows or tokens split along the batch"

_TABLE = (
    Architecture("torchvision:alexnet", (("features.8", 3), ("classifier.4", 7)), blocks={"classifier.1": 256}),
    Architecture("torchvision:vgg11", (("features.8", 3),), side=32),
    Architecture("torchvision:vgg11_bn", (("features.12", 4),), side=32),
    Architecture("torchvision:resnet18", (("layer3", 7), ("fc", 207)), dtype=torch.float64),
    Architecture("torchvision:resnet50", (("layer3", 9),)),
    Architecture("torchvision:resnext50_32x4d", (("layer3.2.conv2", 9),)),
    Architecture("torchvision:wide_resnet50_2", (("layer2", 3),)),
    Architecture("torchvision:regnet_x_400mf", (("trunk_output.block3", 9),)),
    Architecture("torchvision:regnet_y_400mf", (("trunk_output.block3", 9),)),
    Architecture(
        "torchvision:densenet121", (("features.denseblock2", 300), ("features.denseblock3.denselayer4.conv1", 5))
    ),
    Architecture(
        "torchvision:googlenet", (("inception4a", 427), ("fc", 1)), options={"init_weights": False}, dtype=torch.float64
    ),  # how much rounding adds up to depends on the processor
    Architecture(
        "torchvision:inception_v3",
        (("Mixed_5c", 100), ("Mixed_6b.branch7x7dbl_3.conv", 4)),
        side=80,
        options={"init_weights": False},
    ),
    Architecture("torchvision:squeezenet1_1", (("features.7.expand3x3", 3), ("classifier.1", 2))),
    Architecture("torchvision:mobilenet_v2", (("features.10.conv.2", 5), ("classifier.1", 1)), dtype=torch.float64),
    Architecture("torchvision:mobilenet_v3_small", (("features.5", 5), ("classifier.3", 1))),
    Architecture("torchvision:mobilenet_v3_large", (("features.12", 5),)),
    Architecture("torchvision:mnasnet0_5", (("layers.10", 5), ("classifier.1", 1))),
    Architecture("torchvision:efficientnet_b0", (("features.4", 11), ("features.5.1.block.2.fc2", 9))),
    Architecture("torchvision:efficientnet_v2_s", (("features.4", 11),), dtype=torch.float64),  # rounding grows in it
    Architecture("torchvision:shufflenet_v2_x0_5", (("stage3", 77), ("fc", 2))),
    Architecture("torchvision:convnext_tiny", (("features.3", 11),)),
    Architecture(
        "torchvision:lraspp_mobilenet_v3_large", (("classifier.cbr.0", 3), ("classifier", 2)), options=_SEGMENTATION
    ),
    Architecture(
        "torchvision:deeplabv3_mobilenet_v3_large", (("classifier.4", 2),), options=_SEGMENTATION, dtype=torch.float64
    ),
    Architecture("torchvision:fcn_resnet50", (("backbone.layer2", 7),), options=_SEGMENTATION),
    Architecture("torchvision:maxvit_t", (("classifier.5", 1),), side=224, error=_ATTENTION),
    Architecture("torchvision:swin_t", (("head", 1),), side=224, error=_ATTENTION),
    Architecture("torchvision:vit_b_16", (("heads.head", 1),), side=224, error=_ATTENTION),
    Architecture("timm:resnetv2_50", (("stages.2.blocks.2.conv2", 7),)),
    Architecture("timm:resnetv2_50x1_bit", (("stages.1", 7),)),
    Architecture("timm:hrnet_w18_small", (("incre_modules.1", 1),)),
    Architecture("timm:dla34", (("level4", 5),)),
    Architecture("timm:ghostnet_100", (("blocks.6", 5),)),
    Architecture("timm:repvgg_a0", (("stages.2", 5),)),
    Architecture("timm:darknet53", (("stages.2", 5),)),
    Architecture("timm:cspresnet50", (("stages.1", 5),)),
    Architecture("timm:cspdarknet53", (("stages.2", 5),), dtype=torch.float64),
    Architecture("timm:res2net50_26w_4s", (("layer2.1.convs.1", 5),)),
    Architecture("timm:selecsls42", (("features.3.conv6.0", 5),)),
    Architecture("timm:nf_resnet26", (("stages.1", 5), ("head.fc", 1))),
    Architecture("timm:nf_regnet_b0", (("stages.2.3.attn.fc1", 2),)),
    Architecture("timm:dm_nfnet_f0", (("stages.1.0.conv2b", 5),)),
    Architecture("timm:efficientnet_lite0", (("blocks.3.1.conv_pwl", 5), ("classifier", 3))),
    Architecture("timm:tf_efficientnet_lite0", (("blocks.3.1.conv_pwl", 5),), side=63),
    Architecture("timm:convnext_atto", (("stages.2.blocks.2.conv_dw", 5), ("stages.2", 5))),
    Architecture("timm:convnextv2_atto", (("stages.2.blocks.2.conv_dw", 5), ("stages.2", 5))),
    Architecture("timm:vovnet39a", (("stages.2.blocks.0", 5),)),
    Architecture("timm:ese_vovnet19b_slim", (("stages.2.blocks.0.conv_concat.conv", 5),)),
    Architecture("timm:mixnet_s", (("blocks.3", 5),)),
    Architecture("timm:lcnet_050", (("blocks.4", 5), ("classifier", 3)), dtype=torch.float64),
    Architecture("timm:skresnet18", (("layer3", 5),)),
    Architecture("timm:resnest14d", (("fc", 3),)),
    Architecture("timm:dpn68", (("features.conv4_3.c3x3_b.conv", 5), ("features.conv3_4.c1x1_c", 5))),
    Architecture("timm:mobileone_s0", (("stages.2.3.conv_kxk.0.conv", 6),)),
    Architecture("timm:starnet_s1", (("stages.2", 5),), dtype=torch.float64),  # products of maps reach 1e12
    Architecture("timm:inception_v4", (("features.6", 5),), side=80),
    Architecture("timm:hardcorenas_a", (("blocks.3", 5),)),
    Architecture("timm:rexnet_100", (("features.8", 5),)),
    Architecture("timm:gernet_s", (("stages.2", 5),)),
    Architecture("timm:ghostnetv2_100", (("blocks.4", 5),)),
    Architecture("timm:repvit_m0_9", (("stages.1", 5),)),
    Architecture("timm:mobilenetv4_conv_small", (("blocks.2", 5),)),
    Architecture("timm:fastvit_t8", (("stages.1", 5),)),
    Architecture("timm:xception41", (("blocks.5", 5),)),
    Architecture("timm:hgnetv2_b0", (("stages.2", 5),)),
    Architecture("timm:inception_next_atto", (("stages.1", 5),)),
    Architecture("timm:poolformer_s12", (("stages.1", 5),)),
    Architecture("timm:rdnet_tiny", (("dense_stages.1", 5),)),
    Architecture("timm:eca_nfnet_l0", (("stages.1", 5),), error="1-D convolution"),
    Architecture("timm:gcresnet33ts", (("stages.1", 5),), error=_ATTENTION),
    Architecture("timm:efficientvit_b0", (("stages.2", 5),), error=_ATTENTION),
    Architecture("timm:vit_tiny_patch16_224", (("head", 5),), side=224, error=_ATTENTION),
)

ARCHITECTURES = {architecture.name: architecture for architecture in _TABLE}

# Small ones, each with something that the others lack: `make check` runs the first feature of each.
FEW = (
    "torchvision:alexnet",
    "torchvision:vgg11",
    "torchvision:resnet18",
    "torchvision:regnet_y_400mf",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "timm:tf_efficientnet_lite0",
    "timm:convnextv2_atto",
    "timm:poolformer_s12",
)
SUPPORTED = {
    f"{a.name}-{layer}-{unit}": (a.name, layer, unit) for a in _TABLE if not a.error for layer, unit in a.features
}
UNSUPPORTED = [a.name for a in _TABLE if a.error is not None]

# A layer of each, for tests of files.
REAL = {
    "torchvision:resnet18": "layer2",
    "torchvision:densenet121": "features.denseblock2",
    "torchvision:googlenet": "inception4a",
    "torchvision:shufflenet_v2_x1_0": "stage3",
    "torchvision:mobilenet_v3_small": "features.6",
    "timm:convnextv2_atto": "stages.1",
    "timm:skresnet18": "layer2",
    "timm:resnest14d": "layer2",
    "timm:nf_resnet26": "stages.1",
    "timm:mixnet_s": "blocks.2",
    "timm:starnet_s1": "stages.1",
    "timm:hrnet_w18_small": "stage3.0.branches.0",
    "timm:ghostnet_100": "blocks.3",
}


def real(spec):
    library, _, name = spec.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            return timm.create_model(name, pretrained=False).eval()
        options = {"init_weights": False} if name == "googlenet" else {}
        return getattr(torchvision.models, name)(weights=None, **options).eval()
