"""The lowering `native`: the scans as operators of our own library, in ONNX Runtime's sessions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from videossm.export.schemas import DOMAIN
from videossm.runtime import Plan, Rollout
from videossm.runtime.backends.session import session_options
from videossm.runtime.errors import BackendError, UserError
from videossm.runtime.machine import probe_machine
from videossm.runtime.preflight import check_run

PROMPT = "a red circle moves left on gray"
CHUNKS = 12  # the window is full after 4; then the memory takes what leaves it
GATED = {
    "query": (1, 6, 2, 4),
    "key": (1, 6, 2, 4),
    "value": (1, 6, 2, 3),
    "decay": (1, 6, 2),
    "beta": (1, 6, 2),
    "state": (1, 2, 4, 3),
}
SELECTIVE = {
    "u": (1, 8, 6),
    "delta": (1, 8, 6),
    "A": (8, 4),
    "B": (1, 4, 6),
    "C": (1, 4, 6),
    "state": (1, 8, 4),
    "D": (8,),
    "z": (1, 8, 6),
    "delta_bias": (8,),
}


@pytest.fixture(scope="module")
def plan(small_plan_in: Callable[..., Plan]) -> Plan:
    return small_plan_in("native")


@pytest.mark.usefixtures("native_scans")
def test_the_frames_are_those_of_the_lowering_contrib(plan: Plan, small_plan_in: Callable[..., Plan]) -> None:
    mine, other = (Rollout(each, PROMPT, 3, threads=1) for each in (plan, small_plan_in("contrib")))
    for _ in range(CHUNKS):
        next(mine), next(other)
        error = np.linalg.norm(mine.sample - other.sample) / np.linalg.norm(other.sample)
        assert error <= 1e-4


@pytest.mark.usefixtures("native_scans")
def test_threads_of_a_program_share_the_library(plan: Plan) -> None:
    def frames(_: int) -> np.ndarray:
        return np.concatenate([chunk.frames for chunk in islice(Rollout(plan, PROMPT, 3, threads=2), CHUNKS)], 1)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(frames, range(4))
    assert all(np.array_equal(each, first) for each in others)


def test_without_the_library(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOSSM_SCANS", raising=False)
    (problem,) = check_run(plan, probe_machine(["onnxruntime"]))
    assert str(problem) == (
        "VIDEOSSM_SCANS: got none, expected the path of libvideossm_onnxruntime for a plan of lowering native; "
        "make native, or export with another --lowering"
    )
    with pytest.raises(BackendError, match=r"^memory.onnx: has scans of the lowering native, expected VIDEOSSM_SCANS"):
        next(Rollout(plan, PROMPT, 3))


@pytest.mark.parametrize("content", [None, b"\x7fELF"])
def test_what_is_no_library(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    if content:
        (tmp_path / "scans.so").write_bytes(content)
    monkeypatch.setenv("VIDEOSSM_SCANS", str(tmp_path / "scans.so"))
    with pytest.raises(BackendError, match=r"^VIDEOSSM_SCANS: got .*scans.so, which ONNX Runtime cannot load") as got:
        next(Rollout(plan, PROMPT, 3))
    assert "\n" not in str(got.value)


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "GatedDeltaScan": {"scale": 1.0, "normalize_key": 0, "normalize_query": 1},
    "SelectiveScan": {"delta_softplus": 1},
}


def run(
    kind: str, shapes: dict[str, tuple[int, ...]], attributes: dict[str, Any] | None = None, **elements: int
) -> list[np.ndarray]:
    """One scan of inputs of these shapes, whatever its schema says; `elements`: types that are not fp32."""
    types = {name: elements.get(name, TensorProto.FLOAT) for name in shapes}
    inputs = [helper.make_tensor_value_info(name, types[name], shape) for name, shape in shapes.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("output", "last")]
    given = attributes or ATTRIBUTES[kind]
    scan = helper.make_node(kind, list(shapes), ["output", "last"], domain=DOMAIN, **given)
    graph = helper.make_graph([scan], "scan", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = ort.InferenceSession(content, session_options("fp32", 1), providers=["CPUExecutionProvider"])
    feeds = {name: np.full(shape, 0.1, helper.tensor_dtype_to_np_dtype(types[name])) for name, shape in shapes.items()}
    return session.run(["output", "last"], feeds)


@pytest.mark.usefixtures("native_scans")
@pytest.mark.parametrize(("kind", "shapes"), [("GatedDeltaScan", GATED), ("SelectiveScan", SELECTIVE)])
def test_tensors_that_do_not_fit_are_refused(kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A plan is never trusted: each tensor in turn has one place less, one dimension less, or another type."""
    output, last = run(kind, shapes)
    assert output.shape == next(iter(shapes.values()))[:3] + output.shape[3:] and last.shape == shapes["state"]
    for name, shape in shapes.items():
        for wrong in ((*shape[:-1], shape[-1] - 1), (1, *shape), (0, *shape[1:])):
            with pytest.raises(Exception, match=rf"{kind}: \w+: got .*expected "):
                run(kind, {**shapes, name: wrong})
        with pytest.raises(Exception, match=rf"{kind}: \w+: got .*expected "):
            run(kind, shapes, **{name: TensorProto.INT32})


@pytest.mark.usefixtures("native_scans")
@pytest.mark.parametrize(("kind", "shapes"), [("GatedDeltaScan", GATED), ("SelectiveScan", SELECTIVE)])
def test_attributes_that_do_not_fit_are_refused(kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    for name in ATTRIBUTES[kind]:
        for wrong in (2 if name != "scale" else float("nan"), "1", [1]):
            with pytest.raises(Exception, match=name):
                run(kind, shapes, {**ATTRIBUTES[kind], name: wrong})
        with pytest.raises(Exception, match=name):
            run(kind, shapes, {key: value for key, value in ATTRIBUTES[kind].items() if key != name} or {"other": 1})


@pytest.mark.usefixtures("native_scans")
def test_bf16_runs_nowhere() -> None:
    from videossm.export.target import ExportTarget
    from videossm.export.tensorrt.options import TensorRtOptions

    with pytest.raises(UserError, match=r"^--precision: got bf16 with --lowering native, expected another"):
        ExportTarget("bf16", "onnxruntime", "native", TensorRtOptions()).check()


def test_export_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from videossm.export.target import ExportTarget
    from videossm.export.tensorrt.options import TensorRtOptions

    monkeypatch.delenv("VIDEOSSM_SCANS", raising=False)
    with pytest.raises(UserError, match=r"^--lowering: got native without VIDEOSSM_SCANS in the environment, expected"):
        ExportTarget("fp32", "onnxruntime", "native", TensorRtOptions()).check()
