"""The reference rollout's bookkeeping: every call of the step, against tables written by hand."""

from __future__ import annotations

import inspect
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from videossm.models.videossm.config import ModelConfig
from videossm.models.videossm.memory import RHO_MIN
from videossm.models.videossm.model import random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.rollout import ReferenceChunk, ReferenceRollout
from videossm.models.videossm.step import Decode, MemoryUpdate, Step, TurnKeys

CONFIG = small_preset().replace(batch=2)
CHUNKS = 6
# Of a window of three chunks, the first the sink, by chunk: what it sees, and the share of frames evicted before it.
SEEN = [[], [0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]]
RHO = [RHO_MIN, RHO_MIN, RHO_MIN, RHO_MIN, 1 / 4, 2 / 5, 3 / 6]
EVICTED = [1, 2, 3]  # in this order, each when the chunk three later enters


class Recorder:
    """Stands for the rollout's step; keeps the arguments, by name, and the results of all calls."""

    def __init__(self, step: Step) -> None:
        self.step, self.signature = step, inspect.signature(step.forward)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        arguments = self.signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        call = dict(arguments.arguments)
        call["latent_next"], call["present"], _ = result = self.step(*args, **kwargs)
        self.calls.append(call)
        return result


def noise(chunk: int, step: int) -> Tensor:
    return torch.randn(CONFIG.latent_shape, generator=torch.Generator().manual_seed(100 * chunk + step))


def prompt_ids(seed: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 28, (2, CONFIG.transformer.text_len), generator=torch.Generator().manual_seed(seed))
    return ids, (torch.arange(CONFIG.transformer.text_len) < 6).long().expand_as(ids)


class Run:
    """`CHUNKS` chunks of a rollout, its calls sorted by chunk."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.rollout = ReferenceRollout(random_model(config), *prompt_ids(1), noise)
        self.recorder = Recorder(self.rollout.step)
        self.rollout.step = self.recorder  # type: ignore[assignment]  # a stand-in
        self.chunks: list[ReferenceChunk] = list(islice(self.rollout, CHUNKS))
        self.passes = len(config.sampler.sigmas) + 1
        self.calls = [self.recorder.calls[i : i + self.passes] for i in range(0, CHUNKS * self.passes, self.passes)]
        self.commits = [calls[-1] for calls in self.calls]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(CONFIG)


def seen_past(call: dict[str, Any]) -> list[Tensor]:
    """Keys and values of the filled slots, in the order of their positions."""
    slots = call["slot_position"]
    order = torch.argsort(slots)[int((slots < 0).sum()) :]
    return [tensor.unflatten(1, (-1, CONFIG.frame_tokens))[:, order].flatten(1, 2) for tensor in call["window"]]


def assert_past(call: dict[str, Any], presents: list[list[Tensor]], stride: int = 4) -> None:
    """The call saw the keys, turned, and values of `presents`, in that order, and nothing else."""
    past = seen_past(call)
    assert len(past) == 2 * CONFIG.transformer.layers, f"past: got {len(past)} tensors"
    positions = call["slot_position"][call["slot_position"] >= 0].sort().values
    unbounded = CONFIG.replace(window={"rope_frame": "absolute"})  # no table of positions
    turn_keys = TurnKeys(random_model(unbounded).transformer)
    for i, tensor in enumerate(past):
        layer, kind = divmod(i, 2)
        parts = [present[stride * layer + kind] for present in presents]
        expected = torch.cat(parts, 1) if parts else tensor[:, :0]
        if kind == 0:
            (expected,) = turn_keys(positions, [expected])
        torch.testing.assert_close(tensor, expected, atol=0, rtol=0)


def frames_of(chunks: list[int]) -> list[int]:
    return [frame for chunk in chunks for frame in range(3 * chunk, 3 * chunk + 3)]


def positions(call: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Of the filled slots, sorted, and of the chunk's frames."""
    return sorted(p for p in call["slot_position"].tolist() if p >= 0), call["frame_position"].tolist()


def test_passes_of_a_chunk(run: Run) -> None:
    """Denoising from noise down the sampler's levels, each pass from what the last one left; then the commit."""
    levels = [*run.config.sampler.sigmas, 0.0, 0.0]
    assert len(run.recorder.calls) == CHUNKS * run.passes, f"calls: got {len(run.recorder.calls)}"
    for index, calls in enumerate(run.calls):
        latent = noise(index, 0)
        for k, call in enumerate(calls):
            torch.testing.assert_close(call["sigma"], torch.tensor([levels[k]]), msg=f"sigma of pass {k}")
            torch.testing.assert_close(call["sigma_next"], torch.tensor([levels[k + 1] if k < 3 else 0.0]))
            torch.testing.assert_close(call["latent"], latent, atol=0, rtol=0)
            if k < 3:
                torch.testing.assert_close(call["noise"], noise(index, k + 1), atol=0, rtol=0)
            latent = call["latent_next"]
        torch.testing.assert_close(run.chunks[index].latent, calls[-1]["latent"], atol=0, rtol=0)


def test_window_contents(run: Run) -> None:
    for seen, calls in zip(SEEN, run.calls, strict=False):
        for call in calls:
            assert_past(call, [run.commits[chunk]["present"] for chunk in seen])


def test_rho(run: Run) -> None:
    got = [[call["rho"] for call in calls] for calls in run.calls]
    for index, rhos in enumerate(got):
        for rho in rhos:
            torch.testing.assert_close(rho, torch.tensor([RHO[index]]), msg=f"rho of chunk {index}: got {rho}")


def test_memory_takes_what_leaves_in_order(run: Run) -> None:
    """And only after the chunk that pushes it out was committed."""
    layers, update = CONFIG.transformer.layers, MemoryUpdate()
    state = [torch.zeros_like(x) for x in run.calls[0][0]["memory"]]
    assert len(state) == layers, f"memories: got {len(state)}, expected {layers}"
    for index, calls in enumerate(run.calls):
        if index >= 4:
            state = update(run.commits[EVICTED[index - 4]]["present"], state)
        for call in calls:
            torch.testing.assert_close(call["memory"], state, atol=0, rtol=0)
    torch.testing.assert_close(run.rollout.memory, update(run.commits[3]["present"], state), atol=0, rtol=0)


@pytest.mark.parametrize("rope_frame", ["window", "absolute"])
def test_positions(rope_frame: str, run: Run) -> None:
    calls = (run if rope_frame == "window" else Run(CONFIG.replace(window={"rope_frame": "absolute"}))).calls
    for index, (seen, passes) in enumerate(zip(SEEN, calls, strict=False)):
        if rope_frame == "window":
            expected = list(range(3 * len(seen))), list(range(3 * len(seen), 3 * len(seen) + 3))
        else:
            expected = frames_of(seen), frames_of([index])
        for call in passes:
            assert positions(call) == expected, f"positions of chunk {index}: got {positions(call)}"


def test_frames_are_decoded_in_order(run: Run) -> None:
    decoder = random_model(CONFIG).autoencoder.decoder
    caches = decoder.empty_caches(2, CONFIG.latent_height, CONFIG.latent_width)
    for index, chunk in enumerate(run.chunks):
        with torch.no_grad():
            frames, caches = Decode(decoder, first=index == 0)(chunk.latent, caches)
        assert frames.shape[1] == (6 if index else 5), "the video's first latent is one frame"
        torch.testing.assert_close(chunk.frames, frames, atol=0, rtol=0)


def test_without_memory() -> None:
    """An `euler` sampler gets no noise and a model without a memory no rho."""
    run = Run(CONFIG.replace(transformer={"memory": False}, sampler={"kind": "euler"}))
    for seen, calls in zip(SEEN, run.calls, strict=False):
        for call in calls:
            assert call["memory"] == [], f"memory: got {len(call['memory'])} tensors, expected none"
            assert call["rho"] is None, f"rho: got {call['rho']}, expected none"
            assert call["noise"] is None, "noise: got some, expected none"
            assert_past(call, [run.commits[chunk]["present"] for chunk in seen], stride=2)


@pytest.mark.parametrize("rope_frame", ["window", "absolute"])
def test_prompt_switch(rope_frame: str) -> None:
    run = Run(CONFIG.replace(window={"rope_frame": rope_frame}))
    rollout, recorder = run.rollout, run.recorder
    old_prompt, memory = rollout.prompt, [state.clone() for state in rollout.memory]
    recorder.calls.clear()
    rollout.set_prompt(*prompt_ids(2))
    torch.testing.assert_close(rollout.memory, memory, atol=0, rtol=0)
    assert not torch.equal(rollout.prompt[0], old_prompt[0]), "prompt: got the old one"

    recomputed, kept = list(recorder.calls), SEEN[CHUNKS]
    assert len(recomputed) == len(kept), f"passes: got {len(recomputed)}, expected one a chunk of the window"
    for rank, (chunk, call) in enumerate(zip(kept, recomputed, strict=True)):
        assert call["sigma"].item() == call["sigma_next"].item() == 0, "a commit pass is at sigma 0"
        torch.testing.assert_close(call["latent"], run.chunks[chunk].latent, atol=0, rtol=0)
        torch.testing.assert_close(call["prompt"], rollout.prompt, atol=0, rtol=0)
        torch.testing.assert_close(call["memory"], memory, atol=0, rtol=0)
        torch.testing.assert_close(call["rho"], torch.tensor([RHO[CHUNKS]]))
        assert_past(call, [earlier["present"] for earlier in recomputed[:rank]])
        before = list(range(rank)) if rope_frame == "window" else kept[:rank]
        at = rank if rope_frame == "window" else chunk
        assert positions(call) == (frames_of(before), frames_of([at])), f"positions of chunk {chunk}"

    recorder.calls.clear()
    next(iter(rollout))
    assert len(recorder.calls) == run.passes, f"passes of the next chunk: got {len(recorder.calls)}"
    for call in recorder.calls:
        assert_past(call, [window_chunk["present"] for window_chunk in recomputed])
        torch.testing.assert_close(call["prompt"], rollout.prompt, atol=0, rtol=0)
        torch.testing.assert_close(call["rho"], torch.tensor([RHO[CHUNKS]]))
    # What leaves next is chunk 4 as the new prompt sees it.
    torch.testing.assert_close(rollout.memory, MemoryUpdate()(recomputed[1]["present"], memory), atol=0, rtol=0)
