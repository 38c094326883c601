"""Dependencies between the folders point one way: nothing imports the exporter, the runtime and models import none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {  # folder -> what none of its modules may import, wherever in the file
    "runtime": ("torch", "onnx", "onnxscript", "transformers", "diffusers", "ray", "starlette", "videossm"),
    "models": ("onnx", "onnxscript", "onnxruntime", "videossm"),
    "export": ("videossm",),
    "calib": ("torch", "videossm"),
    "plugins_trt": ("torch", "onnx", "videossm"),
    "serve": ("torch", "onnx", "ray", "videossm"),
    "batch": ("torch", "onnx", "starlette", "uvicorn", "videossm"),
    "commands": ("torch", "onnx", "videossm"),  # what it starts, it names
    "cost": ("torch", "videossm"),
}
ALLOWED = {  # of the project's own packages
    "runtime": ("videossm.runtime",),
    "models": ("videossm.models",),
    "export": ("videossm.calib", "videossm.export", "videossm.models", "videossm.runtime"),
    "calib": ("videossm.calib", "videossm.models", "videossm.runtime"),
    "plugins_trt": ("videossm.plugins_trt",),
    "serve": ("videossm.runtime", "videossm.serve"),
    "batch": ("videossm.batch", "videossm.runtime"),
    "commands": ("videossm.commands",),
    "cost": ("videossm.calib", "videossm.cost", "videossm.runtime"),
}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all modules that `source` may import, lazily too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: got a relative import, expected from videossm.x.y import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_only_what_its_layer_may(folder: str) -> None:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules, f"{folder}: got no modules, expected some"
    wrong = [
        f"{module.relative_to(ROOT)}: {name}"
        for module in modules
        for name in imported(module.read_text(encoding="utf-8"))
        if within(name, FORBIDDEN[folder]) and not within(name, ALLOWED[folder])
    ]
    assert not wrong, f"imports against the layering: {wrong}"


def test_lazy_and_plain_imports_are_seen() -> None:
    source = "import onnx.helper\ndef f():\n    from videossm import export\n    from torch import nn"
    assert list(imported(source)) == ["onnx.helper", "videossm.export", "torch.nn"]
