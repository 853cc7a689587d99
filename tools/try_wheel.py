"""Install a wheel with its dependencies, but no extras, in a new environment, and use it as a new user would.

``make dist`` runs ``python tools/try_wheel.py dist/convcircuits-0.1.0-py3-none-any.whl``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
TRIAL = """
from pathlib import Path

import torch
from torch import nn

import convcircuits as cc

assert "site-packages" in cc.__file__, cc.__file__
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
images = torch.randn(8, 3, 24, 24)
circuit = cc.find(model, cc.Feature("4", 1), images[:4], density=0.5)
print(cc.evaluate(model, circuit, images[4:], fit=images[:4]).summary())
small = cc.load(cc.save(cc.extract(model, circuit), "small.safetensors"))
torch.testing.assert_close(small(images), cc.activations(model, circuit.feature, images, circuit=circuit))
assert cc.iou(cc.load(cc.save(circuit, "circuit.safetensors")), circuit) == 1
cc.diagram(model, circuit, images=images[:4], held_out=images[4:]).save("circuit.html")
assert "</html>" in Path("circuit.html").read_text(encoding="utf-8")
"""


def main(wheel: str) -> None:
    """Create the environment in a temporary folder, where the repository cannot be imported, and try the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", ".venv"], cwd=folder, check=True)
        scripts = Path(folder, ".venv", "Scripts" if sys.platform == "win32" else "bin")
        python = [str(scripts / "python")]
        install = [*python, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
        subprocess.run([*install, str(Path(wheel).resolve())], check=True)
        for command in (
            [*python, "-m", "pip", "check"],
            [*python, "-c", TRIAL],
            [str(scripts / "convcircuits"), "show", "circuit.safetensors"],
            [str(scripts / "convcircuits"), "show", "small.safetensors"],
            [str(scripts / "convcircuits"), "models"],
        ):
            subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
