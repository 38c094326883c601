"""The library of plugins in TensorRT-RTX, which has TensorRT's registry and parser and needs no GPU for them.

In a child process: TensorRT-RTX runs no plugins, and aborts the process when its parser adds the layer of one. Until
then the parser has found the creator by an exported node's name, version and namespace, and made the plugin from its
attributes; by itself, and on the way that `videossm-export --plugins` goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from videossm.calib.plans import write_half
from videossm.export import schemas
from videossm.export.build import BuildOptions, Built, build_plan
from videossm.export.lowering import has_scans, lower
from videossm.export.trace import trace
from videossm.models.family import Engine, find_family
from videossm.models.scans.operators import selective_scan

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


# Arguments: the library, a plan of ONNX graphs, an engine with scans, its graph before it was lowered, and where that
# which is parsed goes. Builds the plan as videossm-export does, TensorRT-RTX in the place of TensorRT.
EXPORT = """
import json, resource, shutil, sys
from pathlib import Path
import tensorrt_rtx_bindings as trt
from videossm.export.tensorrt import build
from videossm.export.tensorrt.options import TensorRtOptions
from videossm.runtime import Plan
from videossm.runtime.cli import progress
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.machine import Machine, Package

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it will abort
library, plan, engine, canonical, copy = sys.argv[1:]

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        print(json.dumps({"severity": severity.name, "message": message}), flush=True)

Whole = trt.OnnxParser

class Parser(Whole):
    def __init__(self, network, logger):
        Whole.__init__(self, network, verbose)
    def parse_from_file(self, file):
        print(json.dumps({"parses": Path(file).stem}), flush=True)
        if Path(file).stem == engine:
            shutil.copyfile(file, copy)
        return super().parse_from_file(file)

verbose = Logger()
sys.modules["tensorrt"] = trt
gpu = Gpu(0, "RTX 4090", "sm_89", 24 << 30, None)
machine = Machine("3.11", "Linux", 2, None, None, {"tensorrt": Package(trt.__version__)}, driver=Driver(gpus=(gpu,)))
build.probe_machine = lambda *arguments: machine
trt.OnnxParser = Parser
options = TensorRtOptions(plugins=Path(library))
folder = Path(copy).with_name("engines")
folder.mkdir()
build.build_engines(Plan.open(plan), {engine: Path(canonical)}, "tensorrt", options, folder, progress)
"""


def run_child(script: str, *arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"the child said nothing:\n{done.stderr}"
    return [json.loads(line) for line in lines]


def messages(said: list[dict[str, Any]], severity: str) -> list[str]:
    return [line["message"] for line in said if line.get("severity") == severity]


def exported(engine: Engine, folder: Path) -> Path:
    """The graph of `engine`, its scans lowered to plugins."""
    model, path = trace(engine, {}, OPSET, folder)
    lower(model, "plugin")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


class Selective(torch.nn.Module):
    """One optional input of three, between two that are left out."""

    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, z: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, state, None, z, None, True)[0]


def build(preset: str, folder: Path) -> Built:
    """The plan of standard operators, and its graphs with scans."""
    plan, canonical = folder / "engine.plan", folder / "canonical"
    plan.mkdir()
    canonical.mkdir()
    family = find_family(preset)
    return build_plan(family.load(preset, {}, True), BuildOptions(family.name, "standard", OPSET), plan, canonical)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build("test", tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def built_selective(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build("ssm-vdm-test-stream", tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def memory_graph(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "memory.onnx"
    onnx.save(lower(onnx.load(built.scans["memory"]), "plugin"), path)
    return path


@pytest.fixture(scope="module")
def selective_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = [(1, 8, 12), (1, 8, 12), (8, 4), (1, 4, 12), (1, 4, 12), (1, 8, 4), (1, 8, 12)]
    inputs = dict.fromkeys(["u", "delta", "A", "B", "C", "state", "z"], "")
    engine = Engine("selective", Selective(), tuple(torch.zeros(shape) for shape in shapes), inputs, {"y": ""})
    return exported(engine, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def library(build_target: Callable[[str], Path]) -> Path:
    """The plugins around the CPU's scans. Skips where TensorRT's headers are not found."""
    folder = build_target("plugin_tests")
    if left_out := (folder / "plugin_tests_left_out.txt").read_text(encoding="utf-8"):
        pytest.skip(left_out)
    return folder / "libvideossm_plugins_cpu.so"


@pytest.fixture(scope="module")
def said(library: Path, memory_graph: Path) -> list[dict[str, Any]]:
    return run_child(CHILD, library, memory_graph)


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
    said = run_child(CHILD, library, selective_graph)
    assert "Successfully created plugin: SelectiveScan" in messages(said, "INFO"), said
    assert not [text for text in messages(said, "WARNING") if "not found in plugin node" in text]
    assert not [text for text in messages(said, "VERBOSE") if "unset input" in text], "an input is absent"


def test_library_of_cuda_loads_without_a_driver(memory_graph: Path) -> None:
    """The one to deploy, from `make plugins` or VIDEOSSM_PLUGINS: it may need no libcuda and no libcudart to load."""
    library = Path(os.environ.get("VIDEOSSM_PLUGINS", ROOT / "build" / "plugins" / "libvideossm_plugins.so"))
    if not library.exists():
        pytest.skip("libvideossm_plugins.so is not built: make plugins")
    said = run_child(CHILD, library, memory_graph)
    assert {"loaded": True} in said, said
    assert "Successfully created plugin: GatedDeltaScan" in messages(said, "INFO"), said


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("plans", "plugin"), [("built", "GatedDeltaScan"), ("built_selective", "SelectiveScan")])
def test_export_parses_the_graph_that_was_verified(
    library: Path, plans: str, plugin: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its builder and the check before the build find the plugins; the graph is the verified one, lowered otherwise."""
    built: Built = request.getfixturevalue(plans)
    plan = built.plan
    if precision != "fp32":
        (tmp_path / "half.plan").mkdir()
        plan = write_half(plan, precision, tmp_path / "half.plan")
    ((engine, canonical),) = built.scans.items()
    parsed = tmp_path / "parsed.onnx"
    said = run_child(EXPORT, library, plan.path, engine, canonical, parsed)
    assert f"Successfully created plugin: {plugin}" in messages(said, "INFO"), said
    names = list(plan.manifest.engines)
    assert [line["parses"] for line in said if "parses" in line] == names[: names.index(engine) + 1]
    graph, verified = onnx.load(parsed), onnx.load(canonical)
    assert has_scans(graph)
    if precision == "fp32":
        assert graph == lower(onnx.load(canonical), "plugin")
        assert lower(verified, "standard") == onnx.load(plan.path / plan.manifest.engines[engine].file)
    types = {value.name: value.type for value in (*graph.graph.input, *graph.graph.output)}
    shipped = onnx.load(plan.path / plan.manifest.engines[engine].file).graph
    assert types == {value.name: value.type for value in (*shipped.input, *shipped.output)}
