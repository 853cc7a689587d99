"""What a call must leave as it is, of a model and of the world; and every public call."""

import io

import torch
from torch import nn

import convcircuits as cc

HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def state_of(model):
    """Everything of a model that a caller could notice, in bytes and identities."""
    raw = io.BytesIO()
    torch.save(model.state_dict(), raw)
    state = {"keys": list(model.state_dict()), "bytes": raw.getvalue()}
    for name, module in model.named_modules():
        state[f"module {name}"] = (
            id(module),
            type(module),
            module.training,
            {key: list(getattr(module, key).items()) for key in HOOKS},
            {key: id(value) for key, value in vars(module).items()},
            {key: id(value) for key, value in module._modules.items()},
            type(module).forward,
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[f"tensor {name}"] = (
            id(tensor),
            tensor.data_ptr(),
            tensor.requires_grad,
            tensor.grad,
            tensor.grad_fn,
            tensor.dtype,
            tensor._version,
            vars(tensor).copy(),
            tensor._backward_hooks,
        )
    return state


class World:
    """The global state that a call must leave as it is."""

    def __enter__(self):
        self.before = self.now()
        return self

    def now(self):
        return (
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
        )

    def __exit__(self, *_):
        assert self.now() == self.before


def everything(model, feature, images, folder):
    """Name -> call, for every public function that takes a model or what came of one."""
    circuit = cc.find(model, feature, images, criterion="snip", density=0.5)
    scores = cc.score(model, feature, images, criterion="snip")
    calls = {
        f"score {name}": lambda name=name: cc.score(model, feature, images, criterion=name)
        for name in ("snip", "actgrad", "gauss_newton", "magnitude", "random")
    }
    return calls | {
        "score layer_random": lambda: cc.score(model, feature, images, criterion="layer_random", like=circuit),
        "score centered": lambda: cc.score(model, feature, images, centered=True),
        "score inside": lambda: cc.score(model, feature, images, circuit=circuit),
        "find force": lambda: cc.find(model, feature, images, criterion="force", density=0.4),
        "refit": lambda: cc.refit(model, circuit, images),
        "prune": lambda: cc.prune(scores, kernels=3),
        "evaluate": lambda: cc.evaluate(model, circuit, images, fit=images),
        "evaluate published": lambda: cc.evaluate(model, circuit, images, effective=False),
        "activations": lambda: cc.activations(model, feature, images),
        "activations inside": lambda: cc.activations(model, feature, images, circuit=circuit),
        "from_masks": lambda: cc.Circuit.from_masks(
            model, feature, dict(circuit.elements), input_shape=tuple(images.shape[1:])
        ),
        "save": lambda: cc.load(cc.save(circuit, folder / "c.safetensors")),
    }
