"""What `import convcircuits` loads and touches: the standard library alone, then what is asked for, and no setting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import convcircuits as cc

LOADED = "sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
EVERY = "[getattr(convcircuits, name) for name in convcircuits.__all__]"  # each is imported when it is asked for


def said_by(*lines):
    """What a new Python prints as JSON; whatever it prints besides is a failure."""
    path = f"import sys; sys.path.insert(0, {str(Path(cc.__file__).parents[1])!r})"
    program = "\n".join((path, "import json", *lines))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=600
    )
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_the_import_loads_the_standard_library_alone():
    loaded = said_by("before = set(sys.modules)", "import convcircuits", f"print(json.dumps({LOADED}))")
    assert loaded == ["convcircuits"]


def test_every_public_name_is_there_and_loads_no_more_than_every_installation_has():
    loaded = said_by(
        "import torch; before = set(sys.modules)",
        f"import convcircuits; assert None not in {EVERY}; assert set(convcircuits.__all__) <= set(dir(convcircuits))",
        f"print(json.dumps({LOADED}))",
    )
    assert set(loaded) <= {"convcircuits", "PIL", "jaxtyping", "numpy", "safetensors"}


def test_a_name_that_is_not_public_is_an_error_that_names_it():
    with pytest.raises(AttributeError, match="has no attribute 'fnid'"):
        _ = cc.fnid


def test_importing_changes_no_setting_of_torch_or_python():
    state = (
        "def state(): return [torch.get_rng_state().tolist(), torch.get_num_threads(), str(torch.get_default_dtype()),"
        " torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), str(warnings.filters),"
        " dict(os.environ), sys.path[:], str(signal.getsignal(signal.SIGINT)), logging.root.level,"
        " len(logging.root.handlers), sys.getrecursionlimit()]"
    )
    before, after = said_by(
        "import logging, os, signal, warnings, numpy, torch",
        state,
        "before = state(); import convcircuits",
        EVERY,
        "print(json.dumps([before, state()]))",
    )
    assert after == before
