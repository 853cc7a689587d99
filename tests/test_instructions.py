"""The table of operations: what is in it, what it may be given, and that no call of it does harm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convcircuits.compiler import module_json as graphs
from convcircuits.compiler.instructions import (
    DTYPES,
    OPERATIONS,
    Constant,
    Result,
    is_of_kind,
    operation_of,
    repeat_for,
)
from convcircuits.compiler.interpreter import _EachResult, _tensors
from operation_calls import LIMIT, RIGHT, call

aten = torch.ops.aten
CASES = [(name, k) for name, calls in RIGHT.items() for k in range(len(calls))]


@pytest.mark.parametrize(("name", "k"), CASES)
def test_a_right_call_is_taken_comes_back_from_json_and_has_its_shape_on_tensors_without_memory(name, k):
    operation, (given, tensors) = OPERATIONS[name], RIGHT[name][k]
    assert operation.wrong(given) is None
    before = {key: x.clone() for key, x in tensors.items()}
    expected = _tensors(call(operation, given, tensors))
    assert all(torch.equal(x, before[key]) for key, x in tensors.items())
    again = graphs._decoded(json.loads(json.dumps({"x": [graphs._encoded(v) for v in given.values()]}))["x"])
    assert operation.wrong(dict(zip(given, again, strict=True))) is None
    args, kwargs = operation.call(dict(zip(given, again, strict=True)))
    assert operation.given(args, kwargs) == dict(zip(given, again, strict=True))
    made = _tensors(call(operation, operation.given(args, kwargs), tensors))
    with _EachResult(LIMIT):
        shapes = _tensors(call(operation, given, {key: x.to("meta") for key, x in tensors.items()}))
    for one, other, known in zip(made, expected, shapes, strict=True):
        assert torch.equal(one, other) or bool(one.isnan().any())
        assert (one.shape, one.dtype) == (known.shape, known.dtype)


def test_the_table_makes_tensors_alone_writes_to_nothing_and_draws_and_decides_nothing():
    assert len(OPERATIONS) > 350
    for name, operation in OPERATIONS.items():
        assert operation_of(operation.function) is operation
        if operation.function is repeat_for:
            continue
        schema = operation.function._schema
        assert str(operation.function) == name
        assert not schema.is_mutable, name
        assert not any(known.alias_info is not None and known.alias_info.is_write for known in schema.arguments), name
        assert {str(known.type) for known in schema.returns} <= {"Tensor", "List[Tensor]"}, name
        assert torch.Tag.nondeterministic_seeded not in operation.function.tags, name
        assert torch.Tag.data_dependent_output not in operation.function.tags, name
        assert torch.Tag.dynamic_output_shape not in operation.function.tags or name == "aten.index.Tensor"
        for parameter, known in operation.parameters.items():
            kind = operation.kind(parameter)
            assert str(known.type) not in ("str", "Optional[str]") or "|" in kind, (name, parameter)
            if parameter in ("device", "layout", "generator", "pin_memory"):
                assert kind == "None", (name, parameter)


def test_what_harms_is_not_in_the_table():
    names = {name.split(".")[1] for name in OPERATIONS if name != "repeat_for"}
    harmful = """
        as_strided _reshape_alias set_ set resize resize_ from_file empty empty_like new_empty new_empty_strided item
        _local_scalar_dense nonzero masked_select unique bernoulli rand_like randn_like dropout rrelu data_ptr numpy
        as_strided_scatter native_batch_norm _batch_norm_no_update _native_batch_norm_legit native_group_norm
        _fft_r2c _fft_c2r _fft_c2c _fused_rms_norm _embedding_bag put take sparse_coo_tensor to_sparse
        """.split()  # noqa: SIM905
    assert not names & {*harmful}
    assert not {name for name in names if name.endswith("_")}
    overloads = (
        "view.dtype",
        "repeat_interleave.Tensor",
        "narrow.Tensor",
        "to.device",
        "to.prim_dtype",
        "where.default",
    )
    assert not {f"aten.{name}" for name in overloads} & OPERATIONS.keys()


def wrong(name, **given):
    return OPERATIONS[name].wrong(given)


X = Result(0)
NORM = {"momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True, "weight": None, "bias": None, "input": X}


def test_what_is_wrong_with_a_call_is_said():
    assert wrong("aten.add.Tensor", self=X, other=1) is None
    assert wrong("aten.add.Tensor", self=X, other=Constant("a"), alpha=2) is None
    assert wrong("aten.add.Tensor", self=X) == "its other is missing"
    assert wrong("aten.add.Tensor", self=X, other=X, out=X) == "it has no parameter 'out'"
    assert wrong("aten.add.Tensor", self=X, other="x") == "its other is 'x'; expected Tensor"
    assert wrong("aten.add.Tensor", self=1, other=1) == "it reads no tensor"
    assert wrong("aten.zeros_like.default", self=X, device=torch.device("cpu")).startswith("its device is device(")
    assert wrong("aten.zeros_like.default", self=X, device=None, dtype=torch.float64) is None
    for name, statistics in (
        ("aten.batch_norm.default", "training"),
        ("aten.instance_norm.default", "use_input_stats"),
    ):
        assert wrong(name, **NORM, running_mean=X, running_var=X, **{statistics: False}) is None
        assert wrong(name, **NORM, running_mean=None, running_var=None, **{statistics: True}) is None
        for one in ("running_mean", "running_var"):
            given = NORM | {"running_mean": None, "running_var": None, statistics: True, one: X}
            assert wrong(name, **given) == "it would write to its running_mean"


def test_a_call_is_ordered_by_place_up_to_the_first_gap():
    operation = OPERATIONS["aten.add.Tensor"]
    assert operation.call({"alpha": 2, "other": 1, "self": X}) == ((X, 1), {"alpha": 2})
    assert operation.call({"other": 1, "self": X}) == ((X, 1), {})
    operation = OPERATIONS["aten.hardtanh.default"]
    assert operation.call({"max_val": 6.0, "self": X}) == ((X,), {"max_val": 6.0})


def test_one_value_is_repeated_for_every_image():
    x = torch.rand(1, 3, 2)
    assert torch.equal(repeat_for(x, torch.zeros(5, 1)), x.repeat(5, 1, 1))


@pytest.mark.slow
def test_no_call_ends_the_process_or_makes_what_tensors_without_memory_do_not_say(tmp_path):
    script, log = Path(__file__).with_name("operation_calls.py"), tmp_path / "number"
    done = subprocess.run(
        [sys.executable, script, "0", str(20 * len(OPERATIONS)), log], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"call {log.read_text()} ended with {done.returncode}: {done.stderr[-2000:]}"
    assert "WRONG" not in done.stdout, done.stdout
    never = done.stdout.partition("NEVER")[2].split()
    assert len(never) < 0.02 * len(OPERATIONS), never


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            "Tensor",
            [Result(0), Result(1, 2), Constant("a"), 1, 0.5, True],
            [None, [Result(0)], "a", torch.ones(1), 1j, 1 << 60],
        ),
        ("Optional[Tensor]", [None, Result(0)], ["a", [None]]),
        (
            "List[Tensor]",
            [[Result(0)], (Result(0), Constant("a"))],
            [[], Result(0), [1], [[Result(0)]], [Result(0)] * 5000, [None]],
        ),
        ("List[Optional[Tensor]]", [[None, Result(0)]], [None, [1], [[Result(0)]]]),
        ("int", [0, -3], [True, 1.0, None, "1", 1 << 53]),
        ("Optional[int]", [None, 1], [1.0]),
        ("bool", [True, False], [0, 1, None]),
        ("number", [1, 0.5, True, float("inf")], [None, "1", 1j, 1 << 60, [1], Result(0)]),
        ("float", [1, 0.5], ["1", None]),
        ("List[int]", [1, [1, 2], (3,), []], [[1.0], [[1]], [True], "11", {1}, [1] * 5000, [None], [Result(0)]]),
        ("Optional[List[float]]", [None, [1, 0.5], 2.0], [["1"], [[1.0]]]),
        ("none|tanh", ["none"], [None, "x", "none|tanh", 0]),
        ("floor|None", ["floor", None], ["trunc", "None", 0]),
        ("List[int]|same", [1, "same", (1, 1)], ["valid", None]),
        ("ScalarType", [*DTYPES], ["torch.float32", torch.channels_last, torch.qint8, torch.float8_e5m2, 6, None]),
        ("MemoryFormat", [torch.channels_last], [0, None, "torch.channels_last"]),
        ("None", [None], [False, 0, ""]),
        ("False", [False], [0, None, True]),
        ("0..2", [0, 1, 2], [3, -1, True, 1.0]),
    ],
)
def test_kinds_of_arguments(kind, good, bad):
    assert [value for value in good if not is_of_kind(kind, value)] == []
    assert [value for value in bad if is_of_kind(kind, value)] == []
