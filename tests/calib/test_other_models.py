"""Models of other kinds, from calibration to report: without text and window; states of each pass, or a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from videossm.calib import assess, sensitivity
from videossm.calib.assess import full_report, report_inputs
from videossm.calib.options import CalibrationOptions, PrecisionOptions
from videossm.calib.pipeline import Lowered, lower_precision
from videossm.calib.plans import candidates
from videossm.export.build import BuildOptions, build_plan
from videossm.models.family import Deployment, Engine, Layers, Pass, Precision, State, Stream
from videossm.runtime import Plan

FRAMES, CHANNELS, SIZE = 2, 3, 4
NOT_NAMED = "not named by the family"


class Denoise(nn.Module):
    """[B, F, C, h, w] at a level to the next: a convolution over time from a state, and a product over channels."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv3d(CHANNELS, dim, 3, padding=(0, 1, 1))
        self.mix = nn.Linear(dim, dim)
        self.out = nn.Conv2d(dim, CHANNELS, 1)

    def forward(self, sample: Tensor, level: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """State [B, C, 2, h, w]: the frames before."""
        frames = torch.cat([state, sample.transpose(1, 2)], 2)
        hidden = torch.tanh(self.embed(frames)).permute(0, 2, 3, 4, 1)
        hidden = torch.tanh(self.mix(hidden)).permute(0, 1, 4, 2, 3)
        change = self.out(hidden.flatten(0, 1)).unflatten(0, sample.shape[:2])
        return sample + level * change, frames[:, :, -2:]


class Decode(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        return ((sample.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 1, 3, 4, 2)


def deployment(per_pass: bool, chunks: int | None, levels: tuple[float, ...]) -> Deployment:
    """Each pass has a state of its own, or the last one commits."""
    torch.manual_seed(0)
    sample, state = torch.empty(1, FRAMES, CHANNELS, SIZE, SIZE), torch.empty(1, CHANNELS, 2, SIZE, SIZE)
    passes = [Pass("denoise", {"level": level}) for level in levels]
    if not per_pass:
        passes[-1] = replace(passes[-1], commits=True)
    return Deployment(
        name="other",
        stream=Stream(1, 8, SIZE, SIZE, FRAMES, FRAMES, chunks),
        states={"frames": State("carry", per_pass=per_pass, half=True)},
        engines=[
            Engine(
                "denoise",
                Denoise().eval(),
                (sample, torch.ones(1), state),
                {"x": "sample", "level": "pass.level", "before": "state.frames"},
                {"y": "sample", "after": "state.frames"},
            ),
            Engine("decode", Decode(), (sample,), {"x": "clean"}, {"frames": "frames"}, when="after"),
        ],
        passes=passes,
        precision=Precision(layers=(Layers("embed"), Layers("mix"))),
    )


KINDS = {
    "each pass has a state": (True, None, (0.5, 0.25)),
    "a clip whose only pass commits": (False, 3, (1.0,)),
}


@pytest.fixture(scope="module", params=KINDS)
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folders = [tmp_path_factory.mktemp(name) for name in ("plan", "canonical")]
    return build_plan(deployment(*KINDS[request.param]), BuildOptions("own:family", "standard"), *folders).plan


@pytest.fixture
def made(
    plan: Plan, tmp_path: Path, bars: object, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Lowered]:
    """`made(precision)`: the plan in that precision, with a short report."""
    monkeypatch.setattr(assess, "SHORT_CHUNKS", 4)
    monkeypatch.setattr(assess, "TIMED_CHUNKS", 3)
    calibrating = CalibrationOptions(calibration_size=2, calibration_chunks=4)

    def make(precision: str) -> Lowered:
        return lower_precision(plan, PrecisionOptions(precision, None, calibrating), tmp_path, bars, said.append)

    return make


def test_only_what_the_family_names(plan: Plan) -> None:
    linears, products, skipped = candidates(plan)
    assert [(linear.name, linear.operator) for linear in linears] == [("embed", "Conv"), ("mix", "MatMul")]
    assert (products, [(layer.name, layer.reason) for layer in skipped]) == ([], [("out", NOT_NAMED)])


@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "bf16"])
def test_every_precision_with_its_report(plan: Plan, made: Callable[..., Lowered], precision: str) -> None:
    lowered = made(precision)
    report, manifest = lowered.report, plan.manifest
    assert lowered.plan == Plan.open(lowered.plan.path)
    assert report is not None
    assert [each.name for each in report.passes] == (
        ["commit"] if manifest.passes[0].commits else ["pass 0 (level 0.5)", "pass 1 (level 0.25)"]
    )
    assert report.guided.chunks == (manifest.stream.chunks or 4)
    assert all(error is not None and 0 < error < 0.2 for error in report.guided.relative_error)
    assert report.guided.kinds == ("frames",)
    assert report.header.prompts == () and len(report.header.seeds) == 2
    operators = Counter(node.op_type for node in onnx.load(lowered.plan.path / "denoise.onnx").graph.node)
    assert operators["QuantizeLinear"] == (2 if precision in ("int8", "fp8") else 0)
    if precision in ("fp16", "bf16"):
        assert lowered.plan.manifest.states[0].dtype == {"fp16": "float16", "bf16": "bfloat16"}[precision]


def test_a_full_report(
    plan: Plan, made: Callable[..., Lowered], bars: object, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "STARTS", (0, 2))
    other = made("int8").plan
    report = full_report(plan, other, report_inputs(plan, 6), assess.Origin(), bars, said.append)
    assert report.free_running is not None and report.evaluation == ()
    assert report.free_running.chunks == (plan.manifest.stream.chunks or 6)
    assert np.isfinite([error for error in report.free_running.relative_error if error is not None]).all()
