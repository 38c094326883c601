"""manifest.json as validated models: the whole program of a stream, in closed lists of words.

Unknown fields are refused. `contract.py` checks that the parts fit together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
REPORT_FILE = "report.json"
SAMPLE = ":sample"  # of the window's clean samples in a state file: no state can have that name
REPORT_FOLDER = "report"  # of its pictures and page; the only folder in a plan

_MOST_FRAMES = 2.0**48  # of a stream; a longer time counts as this
# A bare file name: no separators, no drive, not hidden, not "..".
_BARE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
FileName = Annotated[str, Field(pattern=rf"^{_BARE}$", max_length=200)]
ListedFile = Annotated[str, Field(pattern=rf"^({REPORT_FOLDER}/)?{_BARE}$", max_length=200)]
Text200 = Annotated[str, Field(min_length=1, max_length=200)]
# Of engines, states and tensors: no control characters, no spaces.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Architecture = Annotated[str, Field(pattern=r"^sm_[1-9][0-9]{1,3}$")]  # compute capability 8.9 is sm_89
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "uint8"]
Side = Annotated[int, Field(ge=1, lt=2**40)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

SOURCES = (
    "sample",
    "noise",
    "clean",
    "pass.<scalar>",
    "state.<name>",
    "evicted.<name>",
    "window.slot_position",
    "window.frame_position",
    "window.rho",
    "text.ids",
    "text.mask",
)
TARGETS = ("sample", "state.<name>", "frames")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class TensorSpec(_Part):
    """A tensor with a static shape."""

    name: Name
    dtype: DType
    shape: Annotated[tuple[Side, ...], Field(max_length=8)]

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """The dtype of its buffers: NumPy has no bfloat16, so its bits are uint16 there."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def size_bytes(self) -> int:
        size = self.host_dtype.itemsize
        for side in self.shape:
            size *= side
        return size


class Input(TensorSpec):
    """An engine's input. `source`: one of SOURCES."""

    source: Annotated[str, Field(max_length=220)]


class Output(TensorSpec):
    """An engine's output. `target`: one of TARGETS."""

    target: Annotated[str, Field(max_length=220)]


class EngineSpec(_Part):
    """One graph of the plan. `weights`: the ONNX file with the weights of an engine that was built without its own."""

    file: FileName
    weights: FileName | None = None
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]


class State(TensorSpec):
    """What a stream keeps.

    `prompt`: written when the prompt changes. `chunk`: written before the passes of each chunk, which may change a part
    of it in place. `ring`: `shape` [B, N, ..] is that of one chunk's part; the committing pass writes it, and it is
    read whole, as [B, N x window.chunks, ..]. `carry`: read and rewritten; with `per_pass` one copy for each pass.
    `half`: fp16 and bf16 plans may keep it in half precision.
    """

    kind: Literal["prompt", "chunk", "ring", "carry"]
    per_pass: bool = False
    half: bool = False


class Pass(_Part):
    """One run of an engine over the sample.

    `noise`: fresh noise is drawn for it; without, its engine reads zeros. `commits`: what it writes to states counts.
    """

    engine: Name
    scalars: dict[Name, Annotated[float, Field(ge=-1e30, le=1e30)]]
    noise: bool = False
    commits: bool = False


class Call(_Part):
    """When another engine runs: see `docs/plan-format.md`."""

    engine: Name
    when: Literal["prompt", "before", "evict", "after", "after_first", "after_later"]


class Stream(_Part):
    """What comes out, in frames of the video. `chunks`: of a clip, which then ends; null for an endless stream."""

    batch: Annotated[int, Field(ge=1, le=4096)]
    fps: Annotated[float, Field(ge=0.01, le=1000)]
    height: Annotated[int, Field(ge=1, le=65536)]
    width: Annotated[int, Field(ge=1, le=65536)]
    first_frames: Annotated[int, Field(ge=1, le=65536)]
    later_frames: Annotated[int, Field(ge=1, le=65536)]
    chunks: Count | None

    def frames_before(self, chunk: int) -> int:
        """Frames of all chunks before `chunk`."""
        return self.first_frames + (chunk - 1) * self.later_frames if chunk else 0

    def start_s(self, chunk: int) -> float:
        """When chunk `chunk` starts in the video."""
        return self.frames_before(chunk) / self.fps

    def chunk_at(self, seconds: float) -> int:
        """The first chunk that starts at `seconds` or later."""
        frames = min(seconds * self.fps, _MOST_FRAMES) - 1e-6
        if frames <= 0:
            return 0
        return 1 + max(0, -int(-(frames - self.first_frames) // self.later_frames))

    def chunks_in(self, seconds: float, first: int = 0) -> int:
        """Chunks that `seconds` of video take from chunk `first` on, rounded up to whole ones; at least one."""
        return max(1, self.chunk_at(self.start_s(first) + seconds) - first)


class Window(_Part):
    """What a chunk sees of those before it. `chunks`: how many are kept, `sink` of them for ever, the first ones.

    `positions`: of frames, in the `window` or in the video (`absolute`). `chunk_frames`: positions that a chunk takes.
    """

    chunks: Annotated[int, Field(ge=1, le=4096)]
    sink: Annotated[int, Field(ge=0, le=4096)]
    chunk_frames: Annotated[int, Field(ge=1, le=4096)]
    positions: Literal["window", "absolute"]


class Text(_Part):
    """`length`: tokens of a prompt, padding included. `unknown`: whether a word without an id is refused.

    `examples`: prompts that the model was made for; for `videossm.calib`.
    """

    length: Annotated[int, Field(ge=1, le=65536)]
    padding_id: Annotated[int, Field(ge=0, lt=2**31)]
    unknown: Literal["refuse", "encode"]
    examples: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...], Field(max_length=1000)]


class Layers(_Part):
    """Layers whose modules match the regular expression `modules`. `keep`: why they stay as they are, null if not."""

    modules: Text200
    keep: Text200 | None


class Precision(_Part):
    """What a lower precision may touch; for `videossm.calib`, a runtime does not read it.

    `kept_engines`: engines that no scale is computed for, with the reason. `layers`: products with a weight; the first
    match counts, and one without is kept. `fp32_modules`, `fp32_engines`: what fp16 and bf16 leave in fp32.
    """

    kept_engines: dict[Name, Text200] = {}
    layers: tuple[Layers, ...] = ()
    fp32_modules: tuple[Text200, ...] = ()
    fp32_engines: tuple[Name, ...] = ()


class SelfTest(_Part):
    """Known answers: the first numbers of the noise that chunk 0 of seed 0 starts from, as fp32."""

    noise: Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]


class File(_Part):
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Target(_Part):
    """The devices that TensorRT's engines were built for: `architectures`, and with `later` those that came after them.

    `version_compatible`: later versions of TensorRT take the engines too, which bring code for that (and plugins).
    `weight_streaming`: weights may stay in the host's memory.
    """

    architectures: Annotated[tuple[Architecture, ...], Field(min_length=1)]
    later: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False


class Manifest(_Part):
    """The whole of manifest.json. `target` is null for ONNX graphs, which go wherever their backend does.

    `family`, `model`: what it was exported from, for the reader. `stream_identity`: of what a state depends on.
    `checksum`: SHA-256 of all that comes before its digits in the file.
    """

    schema_version: Literal[2]
    name: Name
    family: Text200
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"]
    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    lowering: Literal["standard", "contrib", "native", "plugin"]
    target: Target | None
    stream_identity: Sha256
    stream: Stream
    window: Window | None
    text: Text | None
    states: Annotated[tuple[State, ...], Field(max_length=100_000)]
    engines: dict[Name, EngineSpec]
    passes: Annotated[tuple[Pass, ...], Field(min_length=1, max_length=4096)]
    calls: tuple[Call, ...]
    lower_precision: Precision
    self_test: SelfTest
    model: dict[str, Any]
    files: dict[ListedFile, File]
    versions: dict[Name, Text200]
    checksum: Sha256

    @property
    def pass_engines(self) -> list[str]:
        """The engines that passes run, each once."""
        return list(dict.fromkeys(each.engine for each in self.passes))

    @property
    def sample(self) -> TensorSpec:
        """What the passes denoise, [B, ..]."""
        tensors = self.engines[self.passes[0].engine].inputs
        return next(tensor for tensor in tensors if tensor.source == "sample")

    def called(self, *when: str) -> list[str]:
        """The engines that run then, in the order of the manifest."""
        return [call.engine for call in self.calls if call.when in when]

    def runs_per_chunk(self) -> Counter[str]:
        """How often each engine runs in a chunk; calls at a new prompt do not count."""
        runs = Counter(each.engine for each in self.passes)
        runs.update(call.engine for call in self.calls if call.when != "prompt")
        return runs

    @cached_property
    def state(self) -> dict[str, State]:
        """The states by name."""
        return {state.name: state for state in self.states}

    def whole_shape(self, state: State) -> tuple[int, ...]:
        """The shape of a state as engines read it: a ring has the parts of all chunks of the window."""
        if state.kind != "ring" or self.window is None:
            return state.shape
        return (state.shape[0], state.shape[1] * self.window.chunks, *state.shape[2:])

    def takes_tf32(self, engine: str) -> bool:
        """Whether the fp32 products of an engine, those that a lower precision has left, may be TF32's in TensorRT.

        In the passes of a lower precision, where they are few and narrow, and all else is coarser. Not in a plan in
        fp32, and not in other engines: a memory adds up its errors over a whole video.
        """
        return self.precision != "fp32" and engine in self.pass_engines

    def in_place(self, engine: str) -> dict[str, str]:
        """Outputs of a pass's engine that change a part of an input, and that input: both are one `chunk` state, in one
        buffer.
        """
        spec = self.engines[engine]
        read = {tensor.source: tensor.name for tensor in spec.inputs}
        chunk = {f"state.{state.name}" for state in self.states if state.kind == "chunk"}
        return {out.name: read[out.target] for out in spec.outputs if out.target in chunk and out.target in read}

    def kept(self) -> dict[str, TensorSpec]:
        """The tensors of a state file, by name: what a stream keeps from chunk to chunk beside the prompt."""
        tensors = []
        rings = [state for state in self.states if state.kind == "ring"]
        for state in rings:
            tensors.append(TensorSpec(name=state.name, dtype=state.dtype, shape=self.whole_shape(state)))
        if rings and self.text is not None and self.window is not None:  # a new prompt needs the clean samples again
            batch, frames, *rest = self.sample.shape
            shape = (batch, frames * self.window.chunks, *rest)
            tensors.append(TensorSpec.model_construct(name=SAMPLE, dtype="float32", shape=shape))
        for state in self.states:
            if state.kind == "carry":
                names = [f"{state.name}@{i}" for i in range(len(self.passes))] if state.per_pass else [state.name]
                tensors += [TensorSpec.model_construct(name=n, dtype=state.dtype, shape=state.shape) for n in names]
        return {tensor.name: tensor for tensor in tensors}

    def tensors(self) -> Iterator[TensorSpec]:
        """Inputs and outputs of all engines."""
        for engine in self.engines.values():
            yield from engine.inputs
            yield from engine.outputs


def state_read(source: str) -> str | None:
    """`state.x` and `evicted.x` -> x; None for another source or target."""
    found = re.match(r"(?:state|evicted)\.(.+)\Z", source)
    return found[1] if found else None
