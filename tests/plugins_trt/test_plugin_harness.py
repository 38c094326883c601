"""The plugins driven without a GPU: their core alone, and, where TensorRT's headers are found, as TensorRT drives them.

The harnesses print one JSON object a check. What they must have checked is listed here, so that a check that is lost is
a failure too.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from onnx import defs

from videossm.export import schemas

VARIANTS = {
    schemas.GATED_DELTA_SCAN: ("plain", "normalized", "state-only", "in-place"),
    schemas.SELECTIVE_SCAN: ("plain", "all", "placeholders", "state-only", "in-place"),
}
TYPES = ("fp32", "fp16", "bf16")
CASES = [f"{kind}/{variant}/{t}" for kind, names in VARIANTS.items() for variant in names for t in TYPES]
STAGES = ["create", "capabilities", "types", "shapes", "formats", "configure", "workspace", "alias", "serialise"]
STAGES += ["clone", "attach", "shape-change", "enqueue", "enqueue-in-place"]
OUTPUTS = {schemas.GATED_DELTA_SCAN: ("output", "last_state"), schemas.SELECTIVE_SCAN: ("y", "last_state")}
REQUIRED_FIELDS = {
    schemas.GATED_DELTA_SCAN: {"scale"},
    schemas.SELECTIVE_SCAN: {"delta_softplus", "has_D", "has_z", "has_delta_bias"},
}
# Where a mistake in the tensors is refused.
CALLS = {
    "rank": ("shapes", "configure", "shape-change"),
    "size": ("shapes", "configure", "shape-change"),
    "type": ("types", "configure", "shape-change"),
    "format": ("configure", "shape-change"),
    "count": ("shapes", "types", "formats", "workspace", "configure", "shape-change"),
}
SCANS = sorted(VARIANTS)
ATTRIBUTE_TYPES = {defs.OpSchema.AttrType.FLOAT: "FLOAT", defs.OpSchema.AttrType.INT: "INT"}


class Checks:
    """What a harness printed."""

    def __init__(self, program: Path) -> None:
        done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{program.name}: exit code {done.returncode}\n{done.stderr}"
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.stderr = done.stderr
        self.described: list[dict[str, Any]] = [line for line in lines if "check" not in line]
        checks = [line for line in lines if "check" in line]
        self.results = {line["check"]: (line["ok"], line["detail"]) for line in checks}
        assert len(self.results) == len(checks), "two checks share a name"

    def assert_ok(self, names: Iterable[str]) -> None:
        names = list(names)
        assert names, "nothing to check"
        missing = [name for name in names if name not in self.results]
        assert not missing, f"not checked: {missing}"
        failed = [f"{name}: {self.results[name][1]}" for name in names if not self.results[name][0]]
        assert not failed, "\n".join(failed)


@pytest.fixture(scope="module")
def folder(build_target: Callable[[str], Path]) -> Path:
    return build_target("plugin_tests")


@pytest.fixture(scope="module")
def core(folder: Path) -> Checks:
    return Checks(folder / "videossm_plugin_core_harness")


@pytest.fixture(scope="module")
def tensorrt(folder: Path) -> Checks:
    """Skips where TensorRT's headers are not found, by TENSORRT_INCLUDE_DIR or TensorRT_ROOT."""
    if left_out := (folder / "plugin_tests_left_out.txt").read_text(encoding="utf-8"):
        pytest.skip(left_out)
    return Checks(folder / "videossm_plugin_harness")


def inputs_of(kind: str) -> list[tuple[str, str]]:
    """Names of the inputs of a schema, and their axes, a letter each."""
    letters = {"d_k": "K", "d_v": "V"}
    found = []
    for parameter in defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN).inputs:
        shape = re.match(r"\[(.*?)\]", parameter.description)
        assert shape, f"{parameter.name}: got no shape in its description, expected one"
        found.append((parameter.name, "".join(letters.get(axis, axis) for axis in shape[1].split(", "))))
    return found


def wrong_tensors(kind: str) -> dict[str, list[str]]:
    """By the way in which they are wrong: each rank, type and size that a node may have and a plugin must refuse."""
    seen: set[str] = set()
    sizes = []
    inputs = inputs_of(kind)
    for name, axes in inputs:
        sizes += [f"{name}.{axis}0" for axis in axes]
        sizes += [f"{name}.{axis}" for axis in axes if axis in seen]
        seen |= set(axes)
    names = [name for name, _ in inputs]
    return {
        "rank": [name + sign for name in names for sign in ("", "+")],
        "type": names,
        "size": sizes,
        "count": ["inputs", "inputs+"],
    }


def wrong_fields(kind: str) -> list[str]:
    attributes = plugin_fields(kind)
    found = [
        f"{kind}/{what}/{name}"
        for what in ("missing-in-engine", "type", "kind", "values", "null", "twice", "range")
        for name in attributes
    ]
    found += [f"{kind}/missing/{name}" for name in REQUIRED_FIELDS[kind]]
    found += [f"{kind}/range-int64/{name}" for name, attribute_type in attributes.items() if attribute_type == "INT"]
    return [*found, f"{kind}/unknown/unknown", f"{kind}/unknown/nameless"]


def plugin_fields(kind: str) -> dict[str, str]:
    """The schema's attributes, but for those by which TensorRT's parser finds the plugin."""
    attributes = defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN).attributes
    return {
        name: ATTRIBUTE_TYPES[attribute.type]
        for name, attribute in attributes.items()
        if name not in ("plugin_version", "plugin_namespace")
    }


@pytest.mark.parametrize("kind", SCANS)
def test_core_equals_schema(core: Checks, kind: str) -> None:
    """Names, shapes and types of tensors, attributes, namespace and version."""
    (described,) = (scan for scan in core.described if scan["scan"] == kind)
    schema = defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN)
    optional = defs.OpSchema.FormalParameterOption.Optional
    assert [(i["name"], i["axes"]) for i in described["inputs"]] == inputs_of(kind)
    assert [i["optional"] for i in described["inputs"]] == [i.option == optional for i in schema.inputs]
    # T: activations; S: fp32; G: cast to what the plugin takes by the lowering.
    singles = [i["single"] for i in described["inputs"] if schema_type(kind, i["name"]) != "G"]
    assert singles == [i.type_str == "S" for i in schema.inputs if i.type_str != "G"]
    assert [o["name"] for o in described["outputs"]] == [o.name for o in schema.outputs]
    assert [o["single"] for o in described["outputs"]] == [o.type_str == "S" for o in schema.outputs]
    assert described["fields"] == plugin_fields(kind)
    assert (described["namespace"], described["version"]) == (schemas.PLUGIN_NAMESPACE, schemas.PLUGIN_VERSION)


def schema_type(kind: str, name: str) -> str:
    inputs = defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN).inputs
    return next(i.type_str for i in inputs if i.name == name)


@pytest.mark.parametrize("case", CASES)
def test_core_computes(core: Checks, case: str) -> None:
    core.assert_ok(f"{case}/{output}" for output in OUTPUTS[case.partition("/")[0]])


@pytest.mark.parametrize("kind", SCANS)
def test_core_knows_sizes_late(core: Checks, kind: str) -> None:
    core.assert_ok([f"unknown-sizes/{kind}", f"refuses/{kind}/unknown-sizes"])


@pytest.mark.parametrize("kind", SCANS)
def test_core_plans_workspace(core: Checks, kind: str) -> None:
    core.assert_ok([f"workspace/{kind}"])


@pytest.mark.parametrize("kind", SCANS)
def test_core_reads_fields(core: Checks, kind: str) -> None:
    core.assert_ok(f"{name}/{kind}" for name in ("description", "defaults", "int64"))


@pytest.mark.parametrize("kind", SCANS)
def test_core_refuses_what_the_library_does(core: Checks, kind: str) -> None:
    names = ("unsupported", "failed", f"null/{OUTPUTS[kind][0]}")
    core.assert_ok(f"refuses/{kind}/{name}" for name in names)


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("way", ["rank", "type", "size", "count"])
def test_core_refuses_tensors(core: Checks, kind: str, way: str) -> None:
    core.assert_ok(f"refuses/{kind}/{way}/{tensor}" for tensor in wrong_tensors(kind)[way])


@pytest.mark.parametrize("kind", SCANS)
def test_core_refuses_fields(core: Checks, kind: str) -> None:
    core.assert_ok(f"refuses/{name}" for name in wrong_fields(kind))


def test_creators_equal_schemas(tensorrt: Checks) -> None:
    """What TensorRT's parser looks for, and the attributes that it hands over."""
    expected = [
        {
            "creator": schema.name,
            "version": schemas.PLUGIN_VERSION,
            "namespace": schemas.PLUGIN_NAMESPACE,
            "kind": "PLUGIN CREATOR_V3ONE",
            "fields": plugin_fields(schema.name),
        }
        for schema in schemas.SCHEMAS
    ]
    assert tensorrt.described == expected


@pytest.mark.parametrize("case", CASES)
def test_plugin_from_fields_to_enqueue(tensorrt: Checks, case: str) -> None:
    tensorrt.assert_ok(f"{case}/{stage}" for stage in STAGES)


@pytest.mark.parametrize("kind", SCANS)
def test_plugin_knows_sizes_late(tensorrt: Checks, kind: str) -> None:
    names = [f"unknown-sizes/{kind}/{call}" for call in ("shapes", "configure")]
    tensorrt.assert_ok([*names, f"refuses/{kind}/unknown-sizes"])


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("way", ["rank", "type", "size", "count"])
def test_plugin_refuses_inputs(tensorrt: Checks, kind: str, way: str) -> None:
    """By the logger and by the error recorder, with the same message, in every call that sees the mistake."""
    tensors = wrong_tensors(kind)[way]
    tensorrt.assert_ok(f"refuses/{kind}/{way}/{t}/{call}" for t, call in itertools.product(tensors, CALLS[way]))


@pytest.mark.parametrize("kind", SCANS)
def test_plugin_refuses_formats(tensorrt: Checks, kind: str) -> None:
    names = [*(name for name, _ in inputs_of(kind)), *OUTPUTS[kind]]
    tensorrt.assert_ok(f"refuses/{kind}/format/{n}/{call}" for n, call in itertools.product(names, CALLS["format"]))


@pytest.mark.parametrize("kind", SCANS)
def test_plugin_refuses_outputs(tensorrt: Checks, kind: str) -> None:
    names = [f"type/{output}/{call}" for output in OUTPUTS[kind] for call in ("configure", "shape-change")]
    names += [f"{way}/{output}" for output in OUTPUTS[kind] for way in ("size", "rank")]
    tensorrt.assert_ok(f"refuses/{kind}/{name}" for name in [*names, "count/outputs", "count/shape-inputs"])


@pytest.mark.parametrize("kind", SCANS)
def test_plugin_refuses_enqueue(tensorrt: Checks, kind: str) -> None:
    schema = defs.get_schema(kind, schemas.VERSION, schemas.DOMAIN)
    optional = defs.OpSchema.FormalParameterOption.Optional
    required = [parameter.name for parameter in schema.inputs if parameter.option != optional]
    names = [f"null/{name}" for name in (*required, *OUTPUTS[kind])]
    tensorrt.assert_ok(f"refuses/{kind}/{name}" for name in [*names, "type/enqueue", "rank/enqueue"])


@pytest.mark.parametrize("kind", SCANS)
def test_plugin_refuses_fields(tensorrt: Checks, kind: str) -> None:
    tensorrt.assert_ok(f"refuses/{name}" for name in wrong_fields(kind))


def test_plugin_without_logger(tensorrt: Checks) -> None:
    """The message goes to stderr then."""
    tensorrt.assert_ok(["without-logger"])
    assert tensorrt.stderr.startswith("videossm: GatedDeltaScan: field scale: got none"), tensorrt.stderr


@pytest.mark.parametrize("harness", ["core", "tensorrt"])
def test_all_checks_pass(harness: str, request: pytest.FixtureRequest) -> None:
    """Those included that no other test names."""
    checks: Checks = request.getfixturevalue(harness)
    checks.assert_ok(checks.results)
