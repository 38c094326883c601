"""Checks that the parts of a manifest fit together: every input has one source, every state one writer, types agree,
and what a call reads has been written before. The first that does not hold is a ManifestError that names its field.
"""

from __future__ import annotations

from collections.abc import Iterator

from videossm.runtime.engine_contract import (
    EngineRun,
    check_run,
    check_scalars,
    check_type,
    check_unique,
    fail,
    shown_names,
)
from videossm.runtime.manifest import MANIFEST_FILE, TOKENIZER_FILE, EngineSpec, Manifest, State, state_read

MOST_STATE_BYTES = 1 << 40
_AFTER = ("after", "after_first", "after_later")


def check_contract(manifest: Manifest) -> None:
    """Raises ManifestError, naming the field, for the first part that does not fit."""
    _check_files(manifest)
    _check_window(manifest)
    _check_states(manifest)
    runs = list(_runs(manifest))
    checked = set()
    for run in runs:
        if (run.moment, run.name) not in checked:  # a plan may have thousands of passes of one engine
            checked.add((run.moment, run.name))
            check_run(manifest, run)
        check_scalars(run)
    _check_passes(manifest)
    _check_frames(manifest)
    _check_writers(manifest, runs)
    _check_readers(manifest)


def _check_files(manifest: Manifest) -> None:
    needed = {TOKENIZER_FILE: "text"} if manifest.text else {}
    for name, engine in manifest.engines.items():
        needed[engine.file] = f"engines.{name}.file"
        if engine.weights is not None:
            needed[engine.weights] = f"engines.{name}.weights"
    for file, field in needed.items():
        if file not in manifest.files:
            raise fail("files", f"no {file}", f"the file that {field} needs")
    if MANIFEST_FILE in manifest.files:
        raise fail("files", MANIFEST_FILE, "every file but the manifest itself")
    graphs = manifest.backend == "onnxruntime"
    for name, engine in manifest.engines.items():
        if engine.file.endswith(".onnx") != graphs:
            raise fail(f"engines.{name}.file", engine.file, f"{'an .onnx file' if graphs else 'an engine'}")
        if graphs and engine.weights is not None:
            raise fail(f"engines.{name}.weights", engine.weights, "null for a graph, which has its own")
    if graphs != (manifest.target is None):
        raise fail("target", "null" if manifest.target is None else "one", "one exactly if engines were built")


def _check_window(manifest: Manifest) -> None:
    window = manifest.window
    if window is not None and window.sink >= window.chunks:
        raise fail("window.sink", window.sink, f"less than window.chunks = {window.chunks}")


def _check_states(manifest: Manifest) -> None:
    check_unique("states", (state.name for state in manifest.states))
    total = 0
    for index, state in enumerate(manifest.states):
        where = f"states.{index}"
        if not state.shape or state.shape[0] != manifest.stream.batch:
            raise fail(f"{where}.shape", list(state.shape), f"[batch = {manifest.stream.batch}, ..]")
        if state.kind == "ring" and manifest.window is None:
            raise fail(f"{where}.kind", "ring", "another kind, as window is null")
        if state.kind == "ring" and len(state.shape) < 2:
            raise fail(f"{where}.shape", list(state.shape), "[batch, N, ..]")
        if state.per_pass and state.kind != "carry":
            raise fail(f"{where}.per_pass", "true", f"false for the kind {state.kind}")
        if state.half and state.dtype not in ("float32", "float16", "bfloat16"):
            raise fail(f"{where}.half", "true", f"false for the dtype {state.dtype}")
        copies = len(manifest.passes) if state.per_pass else manifest.window.chunks if state.kind == "ring" else 1  # type: ignore[union-attr]
        total += state.size_bytes * copies
        if total > MOST_STATE_BYTES:
            raise fail(f"{where}.shape", list(state.shape), f"states of at most {MOST_STATE_BYTES} bytes together")


def _runs(manifest: Manifest) -> Iterator[EngineRun]:
    """Every engine at every moment that it runs, in the order of a chunk."""
    used: set[str] = set()

    def spec(name: str, field: str) -> EngineSpec:
        if name not in manifest.engines:
            raise fail(field, name, f"one of engines: {shown_names(manifest.engines)}")
        used.add(name)
        return manifest.engines[name]

    check_unique("calls", (f"{call.engine} {call.when}" for call in manifest.calls))
    for moment in ("prompt", "before"):
        for index, call in enumerate(manifest.calls):
            if call.when == moment:
                where = f"calls.{index}.engine"
                yield EngineRun(moment, call.engine, spec(call.engine, where), where)
    for index, each in enumerate(manifest.passes):
        where = f"passes.{index}.engine"
        yield EngineRun("pass", each.engine, spec(each.engine, where), where, frozenset(each.scalars))
    for index, call in enumerate(manifest.calls):
        if call.when not in ("prompt", "before"):
            where = f"calls.{index}.engine"
            moment = "after" if call.when in _AFTER else call.when
            yield EngineRun(moment, call.engine, spec(call.engine, where), where)
    for name in manifest.engines:
        if name not in used:
            raise fail(f"engines.{name}", "an engine that nothing runs", "one that passes or calls name")


def _check_passes(manifest: Manifest) -> None:
    commits = [index for index, each in enumerate(manifest.passes) if each.commits]
    if commits and commits != [len(manifest.passes) - 1]:
        raise fail(f"passes.{commits[0]}.commits", "true", "true for the last pass alone")
    if commits and manifest.passes[-1].noise:  # made again for a new prompt it must leave the same
        raise fail(f"passes.{commits[0]}.noise", "true", "false for the pass that commits")
    writes = False
    for index, each in enumerate(manifest.passes):
        engine = manifest.engines[each.engine]
        writes |= any(tensor.target == "sample" for tensor in engine.outputs)
        if each.noise and all(tensor.source != "noise" for tensor in engine.inputs):
            raise fail(f"passes.{index}.noise", "true", f"false, as {each.engine} reads no noise")
    if not writes:
        raise fail("passes", "no engine that writes the sample", "one with an output of target sample")


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
            raise fail("calls", f"{len(made)} engines that make the frames of {which}", "one")
        check_type(*made[0], "uint8", (stream.batch, frames, stream.height, stream.width, 3))


def _check_writers(manifest: Manifest, runs: list[EngineRun]) -> None:
    """Each state has one writer, and is read only after it has been written."""
    writers: dict[str, list[EngineRun]] = {}
    for run in runs:
        for tensor in run.engine.outputs:
            writers.setdefault(tensor.target, []).append(run)
    for index, state in enumerate(manifest.states):
        where, target = f"states.{index}", f"state.{state.name}"
        writing = writers.get(target, [])
        if state.kind == "chunk":  # a pass changes a part of it, in its place
            writing = [run for run in writing if run.moment != "pass"]
        if not writing:
            raise fail(where, f"{state.name}, which nothing writes", "an output with it as target")
        moments = {run.moment for run in writing}
        if len(moments) > 1:
            raise fail(where, f"{state.name}, which is written {' and '.join(sorted(moments))}", "one writer")
        (moment,) = moments
        if moment == "pass":
            _check_written_in_passes(manifest, state, where, writing)
        elif moment == "after":
            for chunk in ("after_first", "after_later"):
                names = [name for name in manifest.called("after", chunk) if _writes(manifest, name, target)]
                if len(names) != 1:
                    raise fail(where, f"{state.name}, which {len(names)} engines write at {chunk}", "one writer")
        elif len(writing) != 1:
            raise fail(where, f"{state.name}, which {len(writing)} calls write", "one writer")
    written: set[str] = set()
    for run in runs:
        if run.moment in ("prompt", "before"):
            _check_order(manifest, run, written)
            written |= {tensor.target for tensor in run.engine.outputs}


def _check_order(manifest: Manifest, run: EngineRun, written: set[str]) -> None:
    """Calls at a new prompt run before those before the passes; within both, in the order of the manifest."""
    kinds = {f"state.{state.name}": state.kind for state in manifest.states}
    for index, tensor in enumerate(run.engine.inputs):
        if kinds.get(tensor.source) in ("prompt", "chunk") and tensor.source not in written:
            field = f"engines.{run.name}.inputs.{index}.source"
            raise fail(field, tensor.source, "a state that an earlier call has written")


def _check_written_in_passes(manifest: Manifest, state: State, where: str, writing: list[EngineRun]) -> None:
    names = {run.name for run in writing}
    if state.per_pass:
        for index, each in enumerate(manifest.passes):
            if each.engine not in names:
                raise fail(f"passes.{index}.engine", each.engine, f"one that writes {state.name}, as it is per_pass")
        return
    last = manifest.passes[-1]
    if not last.commits:
        raise fail(where, f"{state.name}, which passes write and none commits", "a last pass that commits")
    if last.engine not in names:
        raise fail(where, f"{state.name}, which {last.engine} does not write", "one that the committing pass writes")


def _check_readers(manifest: Manifest) -> None:
    read = {state_read(tensor.source) for engine in manifest.engines.values() for tensor in engine.inputs}
    for index, state in enumerate(manifest.states):
        if state.name not in read:
            raise fail(f"states.{index}", f"{state.name}, which nothing reads", "an input with it as source")
    if manifest.text is not None and not manifest.called("prompt"):
        raise fail("calls", "none at a new prompt", "one that reads text.ids, or text null")


def _writes(manifest: Manifest, engine: str, target: str) -> bool:
    return any(tensor.target == target for tensor in manifest.engines[engine].outputs)
