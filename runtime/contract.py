"""Checks that the parts of a manifest fit together: every input has one source, every state one writer, types agree,
and what a call reads has been written before. The first thing that does not hold is a PlanError that names its field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import (
    MANIFEST_FILE,
    SOURCES,
    TARGETS,
    TOKENIZER_FILE,
    EngineSpec,
    Input,
    Manifest,
    Output,
    State,
    state_read,
)

MOST_STATE_BYTES = 1 << 40
_SHOWN = 12
_AFTER = ("after", "after_first", "after_later")
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
_WRITTEN_KINDS = {"pass": ("ring", "carry"), "prompt": ("prompt",), "before": ("chunk",), "evict": ("carry",)}
_WRITTEN_KINDS["after"] = ("carry",)


def check_contract(manifest: Manifest) -> None:
    """Raises PlanError, naming the field, for the first part that does not fit."""
    _check_files(manifest)
    _check_window(manifest)
    _check_states(manifest)
    runs = list(_runs(manifest))
    checked = set()
    for run in runs:
        if (run.moment, run.name) not in checked:  # a plan may have thousands of passes of one engine
            checked.add((run.moment, run.name))
            _check_run(manifest, run)
        _check_scalars(run)
    _check_passes(manifest)
    _check_frames(manifest)
    _check_writers(manifest, runs)
    _check_readers(manifest)


def _fail(field: str, got: object, expected: object) -> PlanError:
    said = " ".join(str(got).split())  # what the manifest says may have line breaks
    return PlanError(f"{MANIFEST_FILE}: {field}: got {said}, expected {expected}; export the plan again")


@dataclass(frozen=True)
class _Run:
    """One engine at one moment of the program. `moment`: a key of _READABLE."""

    moment: str
    name: str
    engine: EngineSpec
    where: str  # the field that says so
    scalars: frozenset[str] = frozenset()


def _check_files(manifest: Manifest) -> None:
    needed = {TOKENIZER_FILE: "text"} if manifest.text else {}
    for name, engine in manifest.engines.items():
        needed[engine.file] = f"engines.{name}.file"
        if engine.weights is not None:
            needed[engine.weights] = f"engines.{name}.weights"
    for file, field in needed.items():
        if file not in manifest.files:
            raise _fail("files", f"no {file}", f"the file that {field} needs")
    if MANIFEST_FILE in manifest.files:
        raise _fail("files", MANIFEST_FILE, "every file but the manifest itself")
    graphs = manifest.backend == "onnxruntime"
    for name, engine in manifest.engines.items():
        if engine.file.endswith(".onnx") != graphs:
            raise _fail(f"engines.{name}.file", engine.file, f"{'an .onnx file' if graphs else 'an engine'}")
        if graphs and engine.weights is not None:
            raise _fail(f"engines.{name}.weights", engine.weights, "null for a graph, which has its own")
    if graphs != (manifest.target is None):
        raise _fail("target", "null" if manifest.target is None else "one", "one exactly if engines were built")


def _check_window(manifest: Manifest) -> None:
    window = manifest.window
    if window is not None and window.sink >= window.chunks:
        raise _fail("window.sink", window.sink, f"less than window.chunks = {window.chunks}")


def _check_states(manifest: Manifest) -> None:
    _check_unique("states", (state.name for state in manifest.states))
    total = 0
    for index, state in enumerate(manifest.states):
        where = f"states.{index}"
        if not state.shape or state.shape[0] != manifest.stream.batch:
            raise _fail(f"{where}.shape", list(state.shape), f"[batch = {manifest.stream.batch}, ..]")
        if state.kind == "ring" and manifest.window is None:
            raise _fail(f"{where}.kind", "ring", "another kind, as window is null")
        if state.kind == "ring" and len(state.shape) < 2:
            raise _fail(f"{where}.shape", list(state.shape), "[batch, N, ..]")
        if state.per_pass and state.kind != "carry":
            raise _fail(f"{where}.per_pass", "true", f"false for the kind {state.kind}")
        if state.half and state.dtype not in ("float32", "float16", "bfloat16"):
            raise _fail(f"{where}.half", "true", f"false for the dtype {state.dtype}")
        copies = len(manifest.passes) if state.per_pass else manifest.window.chunks if state.kind == "ring" else 1  # type: ignore[union-attr]
        total += state.size_bytes * copies
        if total > MOST_STATE_BYTES:
            raise _fail(f"{where}.shape", list(state.shape), f"states of at most {MOST_STATE_BYTES} bytes together")


def _runs(manifest: Manifest) -> Iterator[_Run]:
    """Every engine at every moment that it runs, in the order of a chunk."""
    used: set[str] = set()

    def spec(name: str, field: str) -> EngineSpec:
        if name not in manifest.engines:
            raise _fail(field, name, f"one of engines: {_shown(manifest.engines)}")
        used.add(name)
        return manifest.engines[name]

    _check_unique("calls", (f"{call.engine} {call.when}" for call in manifest.calls))
    for moment in ("prompt", "before"):
        for index, call in enumerate(manifest.calls):
            if call.when == moment:
                where = f"calls.{index}.engine"
                yield _Run(moment, call.engine, spec(call.engine, where), where)
    for index, each in enumerate(manifest.passes):
        where = f"passes.{index}.engine"
        yield _Run("pass", each.engine, spec(each.engine, where), where, frozenset(each.scalars))
    for index, call in enumerate(manifest.calls):
        if call.when not in ("prompt", "before"):
            where = f"calls.{index}.engine"
            moment = "after" if call.when in _AFTER else call.when
            yield _Run(moment, call.engine, spec(call.engine, where), where)
    for name in manifest.engines:
        if name not in used:
            raise _fail(f"engines.{name}", "an engine that nothing runs", "one that passes or calls name")


def _check_run(manifest: Manifest, run: _Run) -> None:
    where = f"engines.{run.name}"
    if run.moment == "prompt" and manifest.text is None:
        raise _fail(run.where, run.name, "no call at a new prompt, as text is null")
    if run.moment == "evict" and manifest.window is None:
        raise _fail(run.where, run.name, "no call at an eviction, as window is null")
    _check_unique(f"{where}.inputs", (tensor.name for tensor in run.engine.inputs))
    _check_unique(f"{where}.outputs", (tensor.name for tensor in run.engine.outputs))
    _check_unique(f"{where}.outputs", (tensor.target for tensor in run.engine.outputs))
    both = {tensor.name for tensor in run.engine.inputs} & {tensor.name for tensor in run.engine.outputs}
    if both:
        raise _fail(f"{where}.outputs", f"{min(both)} among inputs and outputs", "names of one tensor each")
    for index, tensor in enumerate(run.engine.inputs):
        _check_input(manifest, run, tensor, f"{where}.inputs.{index}")
    for index, output in enumerate(run.engine.outputs):
        _check_output(manifest, run, output, f"{where}.outputs.{index}")


def _check_scalars(run: _Run) -> None:
    for index, tensor in enumerate(run.engine.inputs):
        scalar = tensor.source.removeprefix("pass.")
        if scalar != tensor.source and scalar not in run.scalars:
            field = run.where.replace(".engine", ".scalars")
            raise _fail(field, f"no {scalar}", f"the scalar that engines.{run.name}.inputs.{index} reads")


def _check_input(manifest: Manifest, run: _Run, tensor: Input, where: str) -> None:
    source, stream = tensor.source, manifest.stream
    state = _state(manifest, source, f"{where}.source")
    if state is not None:
        evicted = source.startswith("evicted.")
        if evicted and (state.kind != "ring" or run.moment != "evict"):
            raise _fail(f"{where}.source", source, "evicted.<ring> in a call at an eviction alone")
        if not evicted and state.kind not in _READ_KINDS[run.moment]:
            raise _fail(f"{where}.source", source, f"no state of kind {state.kind} in an engine that runs {run.where}")
        if state.per_pass and run.moment != "pass":
            raise _fail(f"{where}.source", source, "a state of each pass in passes alone")
        shape = state.shape if evicted else manifest.whole_shape(state)
        _check_type(where, tensor, state.dtype, shape)
        return
    scalar = re.match(r"pass\.([A-Za-z0-9_][A-Za-z0-9_.+-]*)\Z", source)
    if scalar:
        if run.moment != "pass":
            raise _fail(f"{where}.source", source, "a scalar of a pass in passes alone")
        _check_type(where, tensor, "float32", (1,))
        return
    if source not in {s for s in SOURCES if "<" not in s}:
        raise _fail(f"{where}.source", source, f"one of {', '.join(SOURCES)}")
    if source not in _READABLE[run.moment]:
        allowed = ", ".join(sorted(_READABLE[run.moment])) or "states"
        raise _fail(f"{where}.source", source, f"one that is there when {run.where} runs: {allowed}")
    if source in ("sample", "noise", "clean"):
        if not tensor.shape or tensor.shape[0] != stream.batch:
            raise _fail(f"{where}.shape", list(tensor.shape), f"[batch = {stream.batch}, ..]")
        _check_type(where, tensor, "float32", _sample_shape(manifest))
    elif source.startswith("text."):
        assert manifest.text is not None, "a call at a new prompt has a text"
        _check_type(where, tensor, "int64", (stream.batch, manifest.text.length))
    elif manifest.window is None:
        raise _fail(f"{where}.source", source, "none of window, which is null")
    elif source == "window.rho":
        _check_type(where, tensor, "float32", (1,))
    else:
        chunks = manifest.window.chunks if source == "window.slot_position" else 1
        _check_type(where, tensor, "int64", (chunks * manifest.window.chunk_frames,))


def _check_output(manifest: Manifest, run: _Run, tensor: Output, where: str) -> None:
    target = tensor.target
    if target == "sample":
        if run.moment != "pass":
            raise _fail(f"{where}.target", target, "the sample as a target of passes alone")
        _check_type(where, tensor, "float32", _sample_shape(manifest))
    elif target == "frames":
        if run.moment != "after":
            raise _fail(f"{where}.target", target, "frames from a call after the passes alone")
    else:
        state = None if target.startswith("evicted.") else _state(manifest, target, f"{where}.target")
        if state is None:
            raise _fail(f"{where}.target", target, f"one of {', '.join(TARGETS)}")
        if state.kind not in _WRITTEN_KINDS[run.moment]:
            raise _fail(
                f"{where}.target", target, f"no state of kind {state.kind} from an engine that {run.where} runs"
            )
        if state.per_pass and run.moment != "pass":
            raise _fail(f"{where}.target", target, "a state of each pass from passes alone")
        _check_type(where, tensor, state.dtype, state.shape)


def _sample_shape(manifest: Manifest) -> tuple[int, ...]:
    for name in manifest.pass_engines:
        for tensor in manifest.engines[name].inputs:
            if tensor.source == "sample":
                return tensor.shape
    raise _fail("passes", "no engine that reads the sample", "one with an input of source sample")


def _check_passes(manifest: Manifest) -> None:
    commits = [index for index, each in enumerate(manifest.passes) if each.commits]
    if commits and commits != [len(manifest.passes) - 1]:
        raise _fail(f"passes.{commits[0]}.commits", "true", "true for the last pass alone")
    writes = False
    for index, each in enumerate(manifest.passes):
        engine = manifest.engines[each.engine]
        writes |= any(tensor.target == "sample" for tensor in engine.outputs)
        if each.noise and all(tensor.source != "noise" for tensor in engine.inputs):
            raise _fail(f"passes.{index}.noise", "true", f"false, as {each.engine} reads no noise")
    if not writes:
        raise _fail("passes", "no engine that writes the sample", "one with an output of target sample")


def _check_frames(manifest: Manifest) -> None:
    stream = manifest.stream
    for first, frames, moments in (
        (True, stream.first_frames, ("after", "after_first")),
        (False, stream.later_frames, ("after", "after_later")),
    ):
        made = [
            (f"engines.{name}.outputs.{index}", tensor)
            for name in manifest.called(*moments)
            for index, tensor in enumerate(manifest.engines[name].outputs)
            if tensor.target == "frames"
        ]
        if len(made) != 1:
            which = "the first chunk" if first else "later chunks"
            raise _fail("calls", f"{len(made)} engines that make the frames of {which}", "one")
        _check_type(*made[0], "uint8", (stream.batch, frames, stream.height, stream.width, 3))


def _check_writers(manifest: Manifest, runs: list[_Run]) -> None:
    """Each state has one writer, and is read only after it has been written."""
    writers: dict[str, list[_Run]] = {}
    for run in runs:
        for tensor in run.engine.outputs:
            writers.setdefault(tensor.target, []).append(run)
    for index, state in enumerate(manifest.states):
        where, target = f"states.{index}", f"state.{state.name}"
        writing = writers.get(target)
        if not writing:
            raise _fail(where, f"{state.name}, which nothing writes", "an output with it as target")
        moments = {run.moment for run in writing}
        if len(moments) > 1:
            raise _fail(where, f"{state.name}, which is written {' and '.join(sorted(moments))}", "one writer")
        (moment,) = moments
        if moment == "pass":
            _check_written_in_passes(manifest, state, where, writing)
        elif moment == "after":
            for chunk in ("after_first", "after_later"):
                names = [name for name in manifest.called("after", chunk) if _writes(manifest, name, target)]
                if len(names) != 1:
                    raise _fail(where, f"{state.name}, which {len(names)} engines write at {chunk}", "one writer")
        elif len(writing) != 1:
            raise _fail(where, f"{state.name}, which {len(writing)} calls write", "one writer")
    written: set[str] = set()
    for run in runs:
        if run.moment in ("prompt", "before"):
            _check_order(manifest, run, written)
            written |= {tensor.target for tensor in run.engine.outputs}


def _check_order(manifest: Manifest, run: _Run, written: set[str]) -> None:
    """Calls at a new prompt run before those before the passes; within both, in the order of the manifest."""
    kinds = {f"state.{state.name}": state.kind for state in manifest.states}
    for index, tensor in enumerate(run.engine.inputs):
        if kinds.get(tensor.source) in ("prompt", "chunk") and tensor.source not in written:
            field = f"engines.{run.name}.inputs.{index}.source"
            raise _fail(field, tensor.source, "a state that an earlier call has written")


def _check_written_in_passes(manifest: Manifest, state: State, where: str, writing: list[_Run]) -> None:
    names = {run.name for run in writing}
    if state.per_pass:
        for index, each in enumerate(manifest.passes):
            if each.engine not in names:
                raise _fail(f"passes.{index}.engine", each.engine, f"one that writes {state.name}, as it is per_pass")
        return
    last = manifest.passes[-1]
    if not last.commits:
        raise _fail(where, f"{state.name}, which passes write and none commits", "a last pass that commits")
    if last.engine not in names:
        raise _fail(where, f"{state.name}, which {last.engine} does not write", "one that the committing pass writes")


def _check_readers(manifest: Manifest) -> None:
    read = {state_read(tensor.source) for engine in manifest.engines.values() for tensor in engine.inputs}
    for index, state in enumerate(manifest.states):
        if state.name not in read:
            raise _fail(f"states.{index}", f"{state.name}, which nothing reads", "an input with it as source")
    if manifest.text is not None and not manifest.called("prompt"):
        raise _fail("calls", "none at a new prompt", "one that reads text.ids, or text null")


def _writes(manifest: Manifest, engine: str, target: str) -> bool:
    return any(tensor.target == target for tensor in manifest.engines[engine].outputs)


def _state(manifest: Manifest, source: str, where: str) -> State | None:
    """The state that a source or target names; None where it names none."""
    name = state_read(source)
    if name is None:
        return None
    if name in manifest.state:
        return manifest.state[name]
    raise _fail(where, source, f"one of states: {_shown(state.name for state in manifest.states)}")


def _check_type(where: str, tensor: Input | Output, dtype: str, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype:
        raise _fail(f"{where}.dtype", tensor.dtype, dtype)
    if tensor.shape != shape:
        raise _fail(f"{where}.shape", list(tensor.shape), list(shape))


def _check_unique(where: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise _fail(where, f"{name} {count} times", "each once")


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", .." if len(names) > _SHOWN else "") if names else "none"
