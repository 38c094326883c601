"""Checks for `contract.py` of single engines: each input can be read and each output written at the moment of its run,
and has the dtype and shape of what it reads or writes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from videossm.runtime.errors import ManifestError
from videossm.runtime.manifest import (
    SOURCES,
    TARGETS,
    EngineSpec,
    Input,
    Manifest,
    Output,
    State,
    state_read,
)

_SHOWN = 12
# What an engine may read beside states, by when it runs; a pass also reads its scalars.
_READABLE = {
    "pass": {"sample", "noise", "window.slot_position", "window.frame_position", "window.rho"},
    "prompt": {"text.ids", "text.mask"},
    "before": {"window.slot_position", "window.frame_position", "window.rho"},
    "evict": set[str](),
    "after": {"clean"},
}
# Kinds of states that an engine may read and write, by when it runs.
_READ_KINDS = {
    "pass": ("prompt", "chunk", "ring", "carry"),
    "prompt": ("prompt",),
    "before": ("prompt", "chunk", "ring", "carry"),
    "evict": ("prompt", "carry"),
    "after": ("prompt", "carry"),
}
_WRITTEN_KINDS = {"pass": ("chunk", "ring", "carry"), "prompt": ("prompt",), "before": ("chunk",), "evict": ("carry",)}
_WRITTEN_KINDS["after"] = ("carry",)


@dataclass(frozen=True)
class EngineRun:
    """One engine at one moment of the program. `moment`: a key of _READABLE."""

    moment: str
    name: str
    engine: EngineSpec
    where: str  # the field that says so
    scalars: frozenset[str] = frozenset()


def fail(field: str, got: object, expected: object) -> ManifestError:
    """The error of a manifest's field."""
    said = " ".join(str(got).split())  # what the manifest says may have line breaks
    return ManifestError(field, f"got {said}, expected {expected}")


def check_run(manifest: Manifest, run: EngineRun) -> None:
    """Raises ManifestError for the first tensor of the engine that does not fit."""
    where = f"engines.{run.name}"
    if run.moment == "prompt" and manifest.text is None:
        raise fail(run.where, run.name, "no call at a new prompt, as text is null")
    if run.moment == "evict" and manifest.window is None:
        raise fail(run.where, run.name, "no call at an eviction, as window is null")
    check_unique(f"{where}.inputs", (tensor.name for tensor in run.engine.inputs))
    check_unique(f"{where}.outputs", (tensor.name for tensor in run.engine.outputs))
    check_unique(f"{where}.outputs", (tensor.target for tensor in run.engine.outputs))
    both = {tensor.name for tensor in run.engine.inputs} & {tensor.name for tensor in run.engine.outputs}
    if both:
        raise fail(f"{where}.outputs", f"{min(both)} among inputs and outputs", "names of one tensor each")
    for index, tensor in enumerate(run.engine.inputs):
        _check_input(manifest, run, tensor, f"{where}.inputs.{index}")
    for index, output in enumerate(run.engine.outputs):
        _check_output(manifest, run, output, f"{where}.outputs.{index}")


def check_scalars(run: EngineRun) -> None:
    """Raises ManifestError for a scalar that a pass lacks."""
    for index, tensor in enumerate(run.engine.inputs):
        scalar = tensor.source.removeprefix("pass.")
        if scalar != tensor.source and scalar not in run.scalars:
            field = run.where.replace(".engine", ".scalars")
            raise fail(field, f"no {scalar}", f"the scalar that engines.{run.name}.inputs.{index} reads")


def _check_input(manifest: Manifest, run: EngineRun, tensor: Input, where: str) -> None:
    source, stream = tensor.source, manifest.stream
    state = _state(manifest, source, f"{where}.source")
    if state is not None:
        evicted = source.startswith("evicted.")
        if evicted and (state.kind != "ring" or run.moment != "evict"):
            raise fail(f"{where}.source", source, "evicted.<ring> in a call at an eviction alone")
        if not evicted and state.kind not in _READ_KINDS[run.moment]:
            raise fail(f"{where}.source", source, f"no state of kind {state.kind} in an engine that runs {run.where}")
        if state.per_pass and run.moment != "pass":
            raise fail(f"{where}.source", source, "a state of each pass in passes alone")
        shape = state.shape if evicted else manifest.whole_shape(state)
        check_type(where, tensor, state.dtype, shape)
        return
    scalar = re.match(r"pass\.([A-Za-z0-9_][A-Za-z0-9_.+-]*)\Z", source)
    if scalar:
        if run.moment != "pass":
            raise fail(f"{where}.source", source, "a scalar of a pass in passes alone")
        check_type(where, tensor, "float32", (1,))
        return
    if source not in {s for s in SOURCES if "<" not in s}:
        raise fail(f"{where}.source", source, f"one of {', '.join(SOURCES)}")
    if source not in _READABLE[run.moment]:
        allowed = ", ".join(sorted(_READABLE[run.moment])) or "states"
        raise fail(f"{where}.source", source, f"one that is there when {run.where} runs: {allowed}")
    if source in ("sample", "noise", "clean"):
        if not tensor.shape or tensor.shape[0] != stream.batch:
            raise fail(f"{where}.shape", list(tensor.shape), f"[batch = {stream.batch}, ..]")
        check_type(where, tensor, "float32", _sample_shape(manifest))
    elif source.startswith("text."):
        assert manifest.text is not None, "a call at a new prompt has a text"
        check_type(where, tensor, "int64", (stream.batch, manifest.text.length))
    elif manifest.window is None:
        raise fail(f"{where}.source", source, "none of window, which is null")
    elif source == "window.rho":
        check_type(where, tensor, "float32", (1,))
    else:
        chunks = manifest.window.chunks if source == "window.slot_position" else 1
        check_type(where, tensor, "int64", (chunks * manifest.window.chunk_frames,))


def _check_output(manifest: Manifest, run: EngineRun, tensor: Output, where: str) -> None:
    target = tensor.target
    if target == "sample":
        if run.moment != "pass":
            raise fail(f"{where}.target", target, "the sample as a target of passes alone")
        check_type(where, tensor, "float32", _sample_shape(manifest))
    elif target == "frames":
        if run.moment != "after":
            raise fail(f"{where}.target", target, "frames from a call after the passes alone")
    else:
        state = None if target.startswith("evicted.") else _state(manifest, target, f"{where}.target")
        if state is None:
            raise fail(f"{where}.target", target, f"one of {', '.join(TARGETS)}")
        if state.kind not in _WRITTEN_KINDS[run.moment]:
            raise fail(f"{where}.target", target, f"no state of kind {state.kind} from an engine that {run.where} runs")
        if state.per_pass and run.moment != "pass":
            raise fail(f"{where}.target", target, "a state of each pass from passes alone")
        if state.kind == "chunk" and run.moment == "pass" and not _reads(run.engine, target):
            raise fail(f"{where}.target", target, "no state of kind chunk from a pass, but one that it reads")
        check_type(where, tensor, state.dtype, state.shape)


def _reads(engine: EngineSpec, source: str) -> bool:
    return any(tensor.source == source for tensor in engine.inputs)


def _sample_shape(manifest: Manifest) -> tuple[int, ...]:
    for name in manifest.pass_engines:
        for tensor in manifest.engines[name].inputs:
            if tensor.source == "sample":
                return tensor.shape
    raise fail("passes", "no engine that reads the sample", "one with an input of source sample")


def _state(manifest: Manifest, source: str, where: str) -> State | None:
    """The state that a source or target names; None where it names none."""
    name = state_read(source)
    if name is None:
        return None
    if name in manifest.state:
        return manifest.state[name]
    raise fail(where, source, f"one of states: {shown_names(state.name for state in manifest.states)}")


def check_type(where: str, tensor: Input | Output, dtype: str, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype:
        raise fail(f"{where}.dtype", tensor.dtype, dtype)
    if tensor.shape != shape:
        raise fail(f"{where}.shape", list(tensor.shape), list(shape))


def check_unique(where: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise fail(where, f"{name} {count} times", "each once")


def shown_names(names: Iterable[str]) -> str:
    """The first of `names`, for a message."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", .." if len(names) > _SHOWN else "") if names else "none"
