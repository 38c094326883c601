"""The library of plugins in TensorRT-RTX, which has TensorRT's registry and parser and needs no GPU for them.

In a child process: TensorRT-RTX runs no plugins, and aborts the process when its parser adds the layer of one. Until
then the parser has found the creator by an exported node's name, version and namespace, and made the plugin from its
attributes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from videossm.export import schemas
from videossm.export.engines import EngineSpec, engine_specs
from videossm.export.lowering import lower
from videossm.models.scans.operators import selective_scan
from videossm.models.videossm.model import random_model
from videossm.models.videossm.presets import test as small_preset

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed: pip install 'videossm[rtx]'"
)

ROOT = Path(__file__).parents[2]
OPSET = 23

# Arguments: the library, and a graph to parse. Prints JSON objects; TensorRT-RTX's messages among them.
CHILD = """
import json, resource, sys
import numpy as np
import tensorrt_rtx_bindings as trt

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it will abort

def say(**what):
    print(json.dumps(what), flush=True)

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        say(severity=severity.name, message=message)

library, graph = sys.argv[1], sys.argv[2]
logger = Logger()
builder = trt.Builder(logger)
registry = trt.get_plugin_registry()
before = {(c.name, c.plugin_namespace) for c in registry.all_creators}
say(loaded=registry.load_library(library) is not None)
for creator in registry.all_creators:
    if (creator.name, creator.plugin_namespace) not in before:
        fields = {field.name: field.type.name for field in creator.field_names}
        say(creator=[creator.name, creator.plugin_version, creator.plugin_namespace], fields=fields)

creator = registry.get_creator("GatedDeltaScan", "1", "videossm")
wrong = trt.PluginField("scale", np.array([1], np.int32), trt.PluginFieldType.INT32)
refused = creator.create_plugin("wrong", trt.PluginFieldCollection([wrong]), trt.TensorRTPhase.BUILD)
say(refused=refused is None)

network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
say(parsed=parser.parse_from_file(graph))
"""


def run_child(library: Path, graph: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", CHILD, str(library), str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"the child said nothing:\n{done.stderr}"
    return [json.loads(line) for line in lines]


def messages(said: list[dict[str, Any]], severity: str) -> list[str]:
    return [line["message"] for line in said if line.get("severity") == severity]


def exported(spec: EngineSpec, path: Path) -> Path:
    """The spec's graph, its scans lowered to plugins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own use of torch
        program = torch.onnx.export(
            spec.module.eval(),
            spec.inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=spec.input_names,
            output_names=spec.output_names,
            custom_translation_table=schemas.custom_translation_table(),
            verbose=False,
        )
    assert program is not None, "torch.onnx.export returned nothing"
    model = lower(program.model_proto, "plugin")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


class Selective(torch.nn.Module):
    """One optional input of three, between two that are left out."""

    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, z: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, state, None, z, None, True)[0]


@pytest.fixture(scope="module")
def memory_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    specs = {spec.name: spec for spec in engine_specs(random_model(small_preset(), seed=2))}
    return exported(specs["memory"], tmp_path_factory.mktemp("graphs") / "memory.onnx")


@pytest.fixture(scope="module")
def selective_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = [(1, 8, 12), (1, 8, 12), (8, 4), (1, 4, 12), (1, 4, 12), (1, 8, 4), (1, 8, 12)]
    names = ["u", "delta", "A", "B", "C", "state", "z"]
    spec = EngineSpec("selective", Selective(), tuple(torch.zeros(shape) for shape in shapes), names, ["y"])
    return exported(spec, tmp_path_factory.mktemp("graphs") / "selective.onnx")


@pytest.fixture(scope="module")
def library(build_target: Callable[[str], Path]) -> Path:
    """The plugins around the CPU's scans. Skips where TensorRT's headers are not found."""
    folder = build_target("plugin_tests")
    if left_out := (folder / "plugin_tests_left_out.txt").read_text(encoding="utf-8"):
        pytest.skip(left_out)
    return folder / "libvideossm_plugins_cpu.so"


@pytest.fixture(scope="module")
def said(library: Path, memory_graph: Path) -> list[dict[str, Any]]:
    return run_child(library, memory_graph)


def test_library_loads_and_lists_its_creators(said: list[dict[str, Any]]) -> None:
    assert {"loaded": True} in said, said
    types = {onnx.defs.OpSchema.AttrType.FLOAT: "FLOAT32", onnx.defs.OpSchema.AttrType.INT: "INT32"}
    expected = []
    for schema in schemas.SCHEMAS:
        attributes = {name: types.get(attribute.type) for name, attribute in schema.attributes.items()}
        fields = {name: kind for name, kind in attributes.items() if kind}
        creator = [schema.name, schemas.PLUGIN_VERSION, schemas.PLUGIN_NAMESPACE]
        expected.append({"creator": creator, "fields": fields})
    assert [line for line in said if "creator" in line] == expected


def test_messages_reach_its_logger(said: list[dict[str, Any]]) -> None:
    assert {"refused": True} in said, said
    assert messages(said, "ERROR") == ["GatedDeltaScan: field scale: got type int32, expected float32"]


def test_parser_creates_the_plugin_of_an_exported_memory(said: list[dict[str, Any]]) -> None:
    """From the engine that export makes, with no attribute that the parser misses."""
    assert "Successfully created plugin: GatedDeltaScan" in messages(said, "INFO"), said
    assert not [text for text in messages(said, "WARNING") if "not found in plugin node" in text]


def test_parser_creates_the_plugin_of_an_exported_selective_scan(library: Path, selective_graph: Path) -> None:
    said = run_child(library, selective_graph)
    assert "Successfully created plugin: SelectiveScan" in messages(said, "INFO"), said
    assert not [text for text in messages(said, "WARNING") if "not found in plugin node" in text]
    assert not [text for text in messages(said, "VERBOSE") if "unset input" in text], "an input is absent"


def test_library_of_cuda_loads_without_a_driver(memory_graph: Path) -> None:
    """The one to deploy, from `make plugins` or VIDEOSSM_PLUGINS: it may need no libcuda and no libcudart to load."""
    library = Path(os.environ.get("VIDEOSSM_PLUGINS", ROOT / "build" / "plugins" / "libvideossm_plugins.so"))
    if not library.exists():
        pytest.skip("libvideossm_plugins.so is not built: make plugins")
    said = run_child(library, memory_graph)
    assert {"loaded": True} in said, said
    assert "Successfully created plugin: GatedDeltaScan" in messages(said, "INFO"), said
