"""`import stadfast` compiles nothing, loads nothing heavy, and costs little beyond torch itself."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torchvision",
    "timm",
    "PIL",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "rich",
    "typer",
    "safetensors",
)


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_costs_at_most_150_ms_beyond_torch() -> None:
    program = """
import time, torch
start = time.perf_counter()
import stadfast
stadfast.ops
print(time.perf_counter() - start)
"""
    run(program)  # byte-compiles
    assert statistics.median(float(run(program)) for _ in range(3)) < 0.150


def test_loads_nothing_heavy_and_no_library() -> None:
    program = f"""
import sys, torch
before = set(sys.modules)
import stadfast
stadfast.ops
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
loaded = hasattr(torch.ops.stadfast, "anomaly_map")
print(sorted(new & set({HEAVY!r})), loaded, "torch._dynamo" in sys.modules)
"""
    assert run(program) == "[] False False"


def test_import_alone_does_not_need_torch() -> None:
    """`stadfast --help` and `stadfast.__version__` come at once."""
    assert run("import sys, stadfast; stadfast.__version__; print('torch' in sys.modules)") == "False"


def test_the_methods_package_loads_no_method() -> None:
    """What runs a graph needs ``methods.graph`` and nothing of the training around it."""
    program = """
import sys
import stadfast.methods.graph, stadfast.methods.hardware
print(sorted(name for name in sys.modules if name.startswith("stadfast.")))
"""
    wanted = ["stadfast.errors", "stadfast.methods", "stadfast.methods.graph", "stadfast.methods.hardware"]
    assert run(program) == str(wanted)


def test_the_runtime_costs_little_more_and_loads_no_training() -> None:
    program = """
import sys, time, torch
start = time.perf_counter()
import stadfast.runtime
print(time.perf_counter() - start)
ours = {name for name in sys.modules if name.startswith("stadfast.methods.")}
assert ours <= {f"stadfast.methods.{name}" for name in ("arguments", "bundle", "graph", "hardware")}, ours
assert not {"stadfast.backbones", "stadfast.data"} & set(sys.modules)
"""
    run(program)
    assert statistics.median(float(run(program)) for _ in range(3)) < 0.150
