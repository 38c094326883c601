"""What the code calls of TensorRT exists: in TensorRT-RTX, which is installed here, and in TensorRT 11.1.

The second cannot be installed here. So DOCUMENTED lists what is used of it, each name looked up in the reference of its
Python API when it was added; a new one fails here until it is listed, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# What objects of TensorRT are called in each file, and their classes.
OBJECTS = {
    "export/tensorrt/engine.py": {
        "_builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "registry": "IPluginRegistry",
    },
    "export/tensorrt/phases.py": {},
    "export/tensorrt/timing_cache.py": {"config": "IBuilderConfig", "cache": "ITimingCache"},
    "runtime/backends/tensorrt/module.py": {},
    "runtime/backends/tensorrt/network.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "layer": "IAttentionOutputLayer",
    },
    "runtime/backends/tensorrt/backend.py": {
        "_runtime": "Runtime",
        "loaded": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
    },
    "runtime/backends/tensorrt/engine.py": {"_loaded": "ICudaEngine", "_context": "IExecutionContext"},
    "runtime/backends/tensorrt/kernel_cache.py": {
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "_cache": "IRuntimeCache",
    },
    "runtime/backends/tensorrt/preflight.py": {},
}
MODULE = ("trt", "_trt")
PYTHON = ("__class__", "__init__", "__members__", "__version__")

DOCUMENTED = {
    "Builder": {"build_serialized_network", "create_builder_config", "create_network"},
    "BuilderFlag": {"REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"},
    "DataType": {"BF16", "FLOAT", "HALF", "INT32", "INT64", "UINT8"},
    "EngineStat": {"TOTAL_WEIGHTS_SIZE"},
    "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
    "IAttentionOutputLayer": {"attention", "type"},
    "IBuilderConfig": {
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "plugins_to_serialize",
        "profiling_verbosity",
        "progress_monitor",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "ICudaEngine": {
        "create_execution_context",
        "device_memory_size_v2",
        "get_engine_stat",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_shape",
        "num_io_tensors",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
    },
    "IExecutionContext": {"execute_async_v3", "set_device_memory", "set_tensor_address"},
    "ILogger": {"ERROR", "INTERNAL_ERROR"},
    "INetworkDefinition": {"get_input", "get_layer", "get_output", "num_inputs", "num_layers", "num_outputs"},
    "IPluginRegistry": {"load_library"},
    "IProgressMonitor": set(),
    "ITimingCache": {"combine", "serialize"},
    "LayerType": {"ATTENTION_OUTPUT"},
    "MemoryPoolType": {"WORKSPACE"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "OnnxParser": {"get_error", "num_errors", "parse_from_file"},
    "OnnxParserRefitter": {"refit_from_file"},
    "ParserError": {"desc", "node", "node_name", "node_operator"},
    "ProfilingVerbosity": {"DETAILED", "LAYER_NAMES_ONLY", "NONE"},
    "Refitter": {"refit_cuda_engine"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
    "TensorIOMode": {"INPUT", "OUTPUT"},
    "TensorLocation": {"DEVICE"},
    "get_plugin_registry": set[str](),  # a function of the module
}
# What is asked of TensorRT-RTX alone: only it has them, but for create_runtime_config and the strategy of a config.
RTX_ONLY = {
    "BuilderFlag": {"REQUIRE_USER_ALLOCATION"},
    "ComputeCapability": set[str](),
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "ICudaEngine": {"create_runtime_config"},
    "IExecutionContext": {"is_stream_capturable"},
    "IRuntimeCache": {"deserialize", "serialize"},
    "IRuntimeConfig": {"create_runtime_cache", "set_execution_context_allocation_strategy", "set_runtime_cache"},
}
BY_NAME = {  # what getattr is given, in export/tensorrt/engine.py
    "BuilderFlag": {"REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"},
    "ProfilingVerbosity": {"DETAILED", "LAYER_NAMES_ONLY", "NONE"},
}


def members(file: str) -> Iterator[tuple[str, str]]:
    """(class, member) for each use of one, in a file; (class, "") for a class itself."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or node.attr in PYTHON:
            continue
        owner = last_name(node.value)
        if owner in MODULE:
            yield node.attr, ""
        elif owner in OBJECTS[file]:
            yield OBJECTS[file][owner], node.attr
        elif isinstance(node.value, ast.Attribute) and last_name(node.value.value) in MODULE:
            yield node.value.attr, node.attr


def last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("file", OBJECTS)
def test_every_member_in_use_is_documented(file: str) -> None:
    for kind, member in members(file):
        known = DOCUMENTED.get(kind, set()) | RTX_ONLY.get(kind, set())
        assert kind in DOCUMENTED.keys() | RTX_ONLY.keys(), f"{kind}: look it up, and list it"
        assert not member or member in known, f"{kind}.{member}: look it up, and list it"


def test_no_other_file_uses_the_module() -> None:
    for folder in ("export/tensorrt", "runtime/backends/tensorrt"):
        for path in (ROOT / folder).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            attributes = (node for node in nodes if isinstance(node, ast.Attribute) and node.attr not in PYTHON)
            uses = any(last_name(node.value) in MODULE for node in attributes)
            file = str(path.relative_to(ROOT))
            assert file in OBJECTS or not uses, f"{file}: say in OBJECTS what it calls the objects of TensorRT"


def test_all_that_is_documented_is_in_use() -> None:
    used: dict[str, set[str]] = {kind: set(names) for kind, names in BY_NAME.items()}
    for file in OBJECTS:
        for kind, member in members(file):
            used.setdefault(kind, set()).update({member} - {""})
    for kind, names in DOCUMENTED.items():
        assert names <= used.get(kind, set()), kind


def test_tensorrt_rtx_has_them_all() -> None:
    trt: Any = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'videossm[rtx]'"
    )
    for table in (DOCUMENTED, RTX_ONLY):
        for kind, names in table.items():
            missing = [name for name in names if not hasattr(getattr(trt, kind), name)]
            assert not missing, f"{kind}: {missing}"
