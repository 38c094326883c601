"""manifest.json as validated models: what a plan contains, which tensors its engines have, what forms a state.

Unknown fields are refused. That the parts fit together is `contract.py`'s affair.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
REPORT_FILE = "report.json"
REPORT_FOLDER = "report"  # of its pictures and page; the only folder in a plan

# A bare file name: no separators, no drive, not hidden, not "..".
_BARE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
FileName = Annotated[str, Field(pattern=rf"^{_BARE}$", max_length=200)]
ListedFile = Annotated[str, Field(pattern=rf"^({REPORT_FOLDER}/)?{_BARE}$", max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Architecture = Annotated[str, Field(pattern=r"^sm_[1-9][0-9]+$")]  # compute capability 8.9 is sm_89
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "uint8"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class TensorSpec(_Part):
    """One input or output of an engine; shapes are static."""

    name: Name
    dtype: DType
    shape: tuple[PositiveInt, ...]

    @property
    def host_dtype(self) -> np.dtype[Any]:
        """That of its buffers: NumPy has no bfloat16, so its bits are uint16 there."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.host_dtype.itemsize


class EngineSpec(_Part):
    """One graph of the plan. `weights`: the ONNX file with the weights of an engine that was built without its own."""

    file: FileName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: FileName | None = None


class Stream(_Part):
    """What comes out. `*_frames` count latent frames, `frames_per_chunk`, `height`, `width` are of the video."""

    batch: PositiveInt
    fps: Annotated[float, Field(ge=0.01, le=1000)]
    height: PositiveInt
    width: PositiveInt
    frames_per_chunk: PositiveInt
    chunk_frames: PositiveInt
    window_frames: PositiveInt
    sink_frames: Annotated[int, Field(ge=0)]
    rope_frame: Literal["window", "absolute"]


class Sampler(_Part):
    """`sigmas`: noise level of each step, falling; the end, 0, is implied."""

    kind: Literal["euler", "renoise"]
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class Text(_Part):
    length: PositiveInt  # tokens, padding included


class WindowPair(_Part):
    """What a commit leaves and the ring keeps, under three names.

    `present`: step's output for one chunk; `past`: step's input, the ring; `evicted`: the memory engine's input.
    `past` is null for what the step never reads (gates), `evicted` for what the memory does not take.
    """

    present: Name
    past: Name | None
    evicted: Name | None


class MemoryPair(_Part):
    """`read`: step's input; `past`, `present`: the memory engine's input and output."""

    read: Name
    past: Name
    present: Name


class CachePair(_Part):
    """The decoder's input and output of one causal cache."""

    past: Name
    present: Name


class File(_Part):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class Engines(_Part):
    text_encoder: EngineSpec
    step: EngineSpec
    memory: EngineSpec | None = None
    decoder: EngineSpec

    def items(self) -> list[tuple[str, EngineSpec]]:
        """The engines that the plan has, by name."""
        return [(name, engine) for name in type(self).model_fields if (engine := getattr(self, name)) is not None]


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
    """The whole of manifest.json. `target` is null for ONNX graphs, which go wherever their backend does."""

    schema_version: Literal[1]
    name: Name
    precision: Name
    backend: Name
    lowering: Name
    target: Target | None = None
    model: dict[str, Any]  # the model's config; the runtime does not read it
    stream: Stream
    sampler: Sampler
    text: Text
    engines: Engines
    window: tuple[WindowPair, ...]
    memory: tuple[MemoryPair, ...]
    prompt: tuple[Name, ...]
    caches: tuple[CachePair, ...]
    files: dict[ListedFile, File]
    versions: dict[str, str]
