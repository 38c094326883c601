"""Do the parts of a manifest fit together? One check a sentence; the first that fails is a PlanError.

The tensors with a fixed role have these names in every plan; all others are paired in the manifest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from videossm.runtime.errors import PlanError
from videossm.runtime.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, TensorSpec

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
LATENT = "latent"
LATENT_NEXT = "latent_next"
NOISE = "noise"
SIGMA = "sigma"
SIGMA_NEXT = "sigma_next"
RHO = "rho"
SLOT_POSITION = "slot_position"
FRAME_POSITION = "frame_position"
LATENTS = "latents"
FRAMES = "frames"

_NAMES_SHOWN = 12


def check_contract(manifest: Manifest) -> None:
    """Raises PlanError, naming the field, for the first tensor or file that is missing, left over or mis-shaped."""
    _check_stream(manifest)
    _check_files(manifest)
    _check_text_encoder(manifest)
    _check_step(manifest)
    _check_memory(manifest)
    _check_decoder(manifest)


def _fail(field: str, got: object, expected: object) -> PlanError:
    return PlanError(f"{MANIFEST_FILE}: {field}: got {got}, expected {expected}; export the plan again")


def _check_stream(manifest: Manifest) -> None:
    stream = manifest.stream
    for field in ("window_frames", "sink_frames"):
        if getattr(stream, field) % stream.chunk_frames:
            expected = f"a multiple of chunk_frames = {stream.chunk_frames}"
            raise _fail(f"stream.{field}", getattr(stream, field), expected)
    if stream.sink_frames >= stream.window_frames:
        raise _fail("stream.sink_frames", stream.sink_frames, f"less than window_frames = {stream.window_frames}")
    sigmas = manifest.sampler.sigmas
    if any(a <= b for a, b in itertools.pairwise(sigmas)) or sigmas[0] > 1:
        raise _fail("sampler.sigmas", list(sigmas), "levels that fall, from 1 at most")


def _check_files(manifest: Manifest) -> None:
    needed = {TOKENIZER_FILE: "tokenizer"}
    for name, engine in manifest.engines.items():
        needed[engine.file] = f"engines.{name}.file"
        if engine.weights is not None:
            needed[engine.weights] = f"engines.{name}.weights"
    for file, field in needed.items():
        if file not in manifest.files:
            raise _fail("files", f"no {file}", f"what {field} names")
    if MANIFEST_FILE in manifest.files:
        raise _fail("files", MANIFEST_FILE, "every file but the manifest itself")


def _check_text_encoder(manifest: Manifest) -> None:
    engine, where = manifest.engines.text_encoder, "engines.text_encoder"
    ids = (manifest.stream.batch, manifest.text.length)
    _need(engine.inputs, f"{where}.inputs", INPUT_IDS, "int64", ids)
    _need(engine.inputs, f"{where}.inputs", ATTENTION_MASK, "int64", ids)
    _need_all(engine.inputs, f"{where}.inputs", {INPUT_IDS, ATTENTION_MASK})
    for name in manifest.prompt:
        _need(engine.outputs, f"{where}.outputs", name)
    _need_all(engine.outputs, f"{where}.outputs", set(manifest.prompt))


def _check_step(manifest: Manifest) -> None:
    engine, stream, where = manifest.engines.step, manifest.stream, "engines.step"
    latent = _need(engine.inputs, f"{where}.inputs", LATENT, "float32")
    if len(latent.shape) != 5 or latent.shape[:2] != (stream.batch, stream.chunk_frames):
        expected = f"[batch = {stream.batch}, chunk_frames = {stream.chunk_frames}, C, h, w]"
        raise _fail(f"{where}.inputs.{LATENT}.shape", list(latent.shape), expected)
    _need(engine.outputs, f"{where}.outputs", LATENT_NEXT, "float32", latent.shape)
    inputs = {LATENT, SIGMA, SIGMA_NEXT, SLOT_POSITION, FRAME_POSITION, *manifest.prompt}
    for name in (SIGMA, SIGMA_NEXT):
        _need(engine.inputs, f"{where}.inputs", name, "float32", (1,))
    _need(engine.inputs, f"{where}.inputs", SLOT_POSITION, "int64", (stream.window_frames,))
    _need(engine.inputs, f"{where}.inputs", FRAME_POSITION, "int64", (stream.chunk_frames,))
    if manifest.sampler.kind == "renoise":
        _need(engine.inputs, f"{where}.inputs", NOISE, "float32", latent.shape)
        inputs.add(NOISE)
    if manifest.engines.memory is not None:
        _need(engine.inputs, f"{where}.inputs", RHO, "float32", (1,))
        inputs.add(RHO)
    encoded = manifest.engines.text_encoder.outputs
    for name in manifest.prompt:
        _same(engine.inputs, f"{where}.inputs", _need(encoded, "engines.text_encoder.outputs", name), name)
    for pair in manifest.window:
        present = _need(engine.outputs, f"{where}.outputs", pair.present)
        if len(present.shape) < 2 or present.shape[0] != stream.batch:
            raise _fail(
                f"{where}.outputs.{pair.present}.shape", list(present.shape), f"[batch = {stream.batch}, N, ..]"
            )
        if pair.past is not None:
            _need(engine.inputs, f"{where}.inputs", pair.past, present.dtype, window_shape(manifest, present.shape))
            inputs.add(pair.past)
    inputs |= {pair.read for pair in manifest.memory}
    _need_all(engine.inputs, f"{where}.inputs", inputs)
    _need_all(engine.outputs, f"{where}.outputs", {LATENT_NEXT, *(pair.present for pair in manifest.window)})


def _check_memory(manifest: Manifest) -> None:
    engine, where = manifest.engines.memory, "engines.memory"
    evicted = {pair.evicted: pair.present for pair in manifest.window if pair.evicted is not None}
    outputs = manifest.engines.step.outputs
    if engine is None:
        if manifest.memory or evicted:
            raise _fail("engines.memory", "none", "the engine that memory and window.evicted speak of")
        return
    for name, present in evicted.items():
        _same(engine.inputs, f"{where}.inputs", _need(outputs, "engines.step.outputs", present), name)
    for pair in manifest.memory:
        past = _need(engine.inputs, f"{where}.inputs", pair.past)
        _same(engine.outputs, f"{where}.outputs", past, pair.present)
        _same(manifest.engines.step.inputs, "engines.step.inputs", past, pair.read)
    _need_all(engine.inputs, f"{where}.inputs", {*evicted, *(pair.past for pair in manifest.memory)})
    _need_all(engine.outputs, f"{where}.outputs", {pair.present for pair in manifest.memory})


def _check_decoder(manifest: Manifest) -> None:
    engine, stream, where = manifest.engines.decoder, manifest.stream, "engines.decoder"
    latent = _need(manifest.engines.step.inputs, "engines.step.inputs", LATENT)
    _need(engine.inputs, f"{where}.inputs", LATENTS, "float32", latent.shape)
    frames = (stream.batch, stream.frames_per_chunk, stream.height, stream.width, 3)
    _need(engine.outputs, f"{where}.outputs", FRAMES, "uint8", frames)
    for pair in manifest.caches:
        past = _need(engine.inputs, f"{where}.inputs", pair.past)
        _same(engine.outputs, f"{where}.outputs", past, pair.present)
    _need_all(engine.inputs, f"{where}.inputs", {LATENTS, *(pair.past for pair in manifest.caches)})
    _need_all(engine.outputs, f"{where}.outputs", {FRAMES, *(pair.present for pair in manifest.caches)})


def window_shape(manifest: Manifest, present: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the ring for a chunk's [B, N, ..]: [B, N x chunks of the window, ..]."""
    chunks = manifest.stream.window_frames // manifest.stream.chunk_frames
    return (present[0], present[1] * chunks, *present[2:])


def _shown(names: Iterable[str]) -> str:
    first = list(itertools.islice(names, _NAMES_SHOWN + 1))
    return ", ".join(first[:_NAMES_SHOWN]) + (", .." if len(first) > _NAMES_SHOWN else "")


def _need(
    tensors: tuple[TensorSpec, ...],
    where: str,
    name: str,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> TensorSpec:
    tensor = next((tensor for tensor in tensors if tensor.name == name), None)
    if tensor is None:
        raise _fail(where, f"no tensor {name}", f"it among {_shown(t.name for t in tensors)}")
    if dtype is not None and tensor.dtype != dtype:
        raise _fail(f"{where}.{name}.dtype", tensor.dtype, dtype)
    if shape is not None and tensor.shape != shape:
        raise _fail(f"{where}.{name}.shape", list(tensor.shape), list(shape))
    return tensor


def _same(tensors: tuple[TensorSpec, ...], where: str, other: TensorSpec, name: str) -> None:
    """`name` is among `tensors`, with the dtype and shape of `other`, the same tensor's other end."""
    _need(tensors, where, name, other.dtype, other.shape)


def _need_all(tensors: tuple[TensorSpec, ...], where: str, known: set[str]) -> None:
    """No tensor is left over, none stands twice."""
    names = [tensor.name for tensor in tensors]
    for name in names:
        if name not in known:
            raise _fail(where, f"a tensor {name} that nothing feeds or reads", f"only {_shown(sorted(known))}")
    if len(set(names)) != len(names):
        raise _fail(where, "a tensor twice", "each name once")
