"""`linear_video` goes all the way of the project's own models, found by its name alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracle import Oracle
from torch import Tensor

from videossm.models.family import find_family
from videossm.runtime import Plan, Rollout
from videossm.runtime.noise import noise

HERE = Path(__file__).parent
SEED = "7"  # of the weights
OWN = (SEED, "--family", "linear_video:load")
CHUNKS = 5
TOLERANCE = 1e-5  # relative, of what chunks in fp32 and the whole video in float64 make
RTX = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="needs pip install 'videossm[rtx]'")


def command(name: str, *arguments: object) -> bytes:
    """What a command of the project writes on stdout, called as by a user who has the family in a folder of his own."""
    words = [sys.executable, "-m", f"videossm.{name}", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def export(out: Path, *options: object) -> Plan:
    report = json.loads(command("export.cli", *OWN, "-o", out, "--json", *options))
    if "--no-verify" not in options:
        assert max(report["chunk_errors"]) <= report["tolerance"]
    return Plan.open(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return export(folder / "fp32.plan")


@pytest.fixture(scope="module")
def int8(folder: Path) -> Plan:
    quick = ("--calibration-size", 1, "--calibration-chunks", 3, "--report", "none")
    return export(folder / "int8.plan", "--precision", "int8", "--no-verify", *quick)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """q, k, v [B, H, N, d], allowed [N, N]: the same attention, token by token. Returns [B, N, D]."""
    weights = (q @ k.mT) * allowed
    return (weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)


def denoised_whole(clean: Tensor, start: Tensor) -> Tensor:
    """The passes over all chunks [N, F, C, h, w] at once in float64, from their noise `start`.

    Tokens of a chunk that is denoised see themselves and the clean ones of all chunks before; clean ones see the clean
    ones up to their own chunk.
    """
    deployment = find_family(SEED, "linear_video:load").load(SEED, {}, False)
    model = deployment.engines[0].module.double()
    chunk = torch.arange(len(clean)).repeat_interleave(model.place.shape[0])
    before, own = chunk[:, None] > chunk, chunk[:, None] == chunk
    allowed = torch.cat([torch.cat([before | own, torch.zeros_like(own)], 1), torch.cat([before, own], 1)])
    sample, still = start.double(), torch.zeros(1).double()
    for each in deployment.passes[:-1]:
        levels = [torch.tensor([each.scalars[name]]).double() for name in ("t", "t_next")]
        parts = [model.tokens(clean.double(), still), model.tokens(sample, levels[0])]
        tokens = torch.cat([part.flatten(0, 1) for part in parts])[None]
        for block in model.blocks:
            tokens = tokens + block.out(masked_attention(*block.heads(tokens), allowed))
            tokens = tokens + block.ffn(tokens)
        velocity = model.velocity(tokens[0, len(chunk) :])
        frames, _, height, width = sample.shape[1:]
        velocity = velocity.unflatten(0, (len(clean), frames, height, width)).permute(0, 1, 4, 2, 3)
        sample = sample + (levels[1] - levels[0]) * velocity
    return sample


def samples(rollout: Rollout, chunks: int = CHUNKS) -> NDArray[np.float32]:
    return np.concatenate([rollout.sample for _ in islice(rollout, chunks)])


def test_without_scans_any_runtime_takes_its_graphs(plan: Plan) -> None:
    assert plan.manifest.lowering == "standard"


@torch.no_grad()
def test_chunks_are_the_whole_video(plan: Plan) -> None:
    """States carry all that is to be known of earlier chunks."""
    made = torch.from_numpy(samples(Rollout(plan, seed=3)))
    start = np.stack([noise(3, chunk, 0, made.shape[1:]) for chunk in range(CHUNKS)])
    whole = denoised_whole(made, torch.from_numpy(start))
    assert torch.linalg.norm(made - whole) <= TOLERANCE * torch.linalg.norm(whole)


def test_the_oracle_plays_it_alike(plan: Plan) -> None:
    oracle, rollout = Oracle(plan.path, None, [3]), Rollout(plan, seed=3, threads=1)
    for chunk in rollout.play(CHUNKS):
        sample, frames = oracle.next()
        assert np.array_equal(sample, rollout.sample) and np.array_equal(frames, chunk.frames), chunk.index


def test_the_options_of_its_family_reach_it(folder: Path) -> None:
    plan = export(folder / "deep.plan", "--set", "layers=3", "--verify-chunks", 1)
    assert plan.manifest.model == {"layers": 3}
    assert [state.name for state in plan.manifest.states] == ["0.S", "0.z", "1.S", "1.z", "2.S", "2.z"]
    assert plan.manifest.family == "linear_video:load"


def test_in_int8(plan: Plan, int8: Plan) -> None:
    graph = (int8.path / int8.manifest.engines["denoiser"].file).read_bytes()
    assert b"QuantizeLinear" in graph
    assert int8.manifest.stream_identity == plan.manifest.stream_identity
    made, expected = samples(Rollout(int8, seed=3)), samples(Rollout(plan, seed=3))
    assert 0 < np.linalg.norm(made - expected) / np.linalg.norm(expected) < 0.1


def test_a_stream_goes_on_in_another_plan_and_precision(plan: Plan, int8: Plan, tmp_path: Path) -> None:
    """Run by `videossm-run`, saved, and resumed by other plans of the same model."""
    state, rollout = tmp_path / "state.safetensors", Rollout(plan, seed=3)
    run = ("runtime.cli.run", plan.path, "--seed", 3, "--chunks", CHUNKS)
    video = np.frombuffer(command(*run, "-o", "-", "--save-state", state), np.uint8)
    assert np.array_equal(video, np.concatenate([chunk.frames for chunk in islice(rollout, CHUNKS)]).ravel())
    following = samples(rollout, 2)
    later = export(tmp_path / "later.plan", "--opset", 24, "--no-verify")
    assert later.manifest.stream_identity == plan.manifest.stream_identity
    assert np.allclose(samples(Rollout.resume(later, state), 2), following, rtol=1e-5, atol=1e-5)
    resumed = samples(Rollout.resume(int8, state), 2)
    assert np.linalg.norm(resumed - following) / np.linalg.norm(following) < 0.1
    command("runtime.cli.run", int8.path, "--resume", state, "--chunks", 1, "-o", tmp_path / "more.png")


@RTX
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tensorrt_rtx_builds_it(precision: str, plan: Plan, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = plan if precision == "fp32" else request.getfixturevalue("int8")
    out = tmp_path / "engine.plan"
    command("export.cli", source.path, "--backend", "tensorrt-rtx", "--gpu-arch", "sm_89", "-o", out)
    manifest = Plan.open(out).manifest
    assert manifest.stream_identity == plan.manifest.stream_identity
    assert manifest.target is not None and manifest.target.architectures == ("sm_89",)
