"""What a family of models gives, and the plain words in which it describes a deployment.

A family is one folder of `videossm.models`, or a module of the user's own. What a plan says of a deployment, and what a
runtime makes of it, is in docs/plan-format.md; these classes are its counterparts in PyTorch.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # who asks a family for its prompts or its evaluation does without torch
    from torch import Tensor, nn

# By name: the module that holds FAMILY. Adding a family is a folder and a line here. They are asked in this order
# whether a file is theirs, and the last one takes any.
FAMILIES = {"ssm_vdm": "videossm.models.ssm_vdm.family", "videossm": "videossm.models.videossm.family"}


class ModelError(ValueError):
    """A model, checkpoint or config that cannot be used; the message is one line that says how to mend it."""


@dataclass(frozen=True)
class Stream:
    """What comes out, in frames of the video. `chunks`: of a clip, which then ends; None for an endless stream."""

    batch: int
    fps: float
    height: int
    width: int
    first_frames: int  # of the first chunk
    later_frames: int  # of every later one
    chunks: int | None = None


@dataclass(frozen=True)
class Window:
    """The past chunks that `ring` states keep, `sink` of them for ever, the first ones.

    `chunk_frames`: positions that a chunk takes. `positions`: of frames within the `window`, or `absolute`.
    """

    chunks: int
    sink: int
    chunk_frames: int
    positions: str = "window"


@dataclass(frozen=True)
class Text:
    """Prompts. `tokenizer`: the JSON of a tokenizer of Hugging Face's `tokenizers`. `length`: tokens of a prompt.

    `unknown`: `refuse` words that it does not know, or `encode` them. `examples`: prompts that the model was made for;
    calibration takes its prompts from them.
    """

    tokenizer: str
    length: int
    unknown: str = "refuse"
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """What a stream keeps; dtype and shape are those of the tensors that read it.

    `kind`: prompt, chunk, ring or carry. `per_pass`: each pass has a copy of its own. `half`: fp16 and bf16 plans
    keep it in half precision.
    """

    kind: str
    per_pass: bool = False
    half: bool = False


@dataclass(frozen=True)
class Engine:
    """A module to trace, with a source for each input and a target for each output, in the order of its tensors.

    `example`: positional arguments of `module`, lists of tensors allowed. Only their shapes and dtypes count, so they
    may be left empty: pages of them cost no memory. `when`: a pass, or the moment of a call.
    """

    name: str
    module: nn.Module
    example: tuple[Any, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    when: str = "pass"


@dataclass(frozen=True)
class Pass:
    """One run of an engine over the sample; `scalars` are what its inputs of source `pass.<scalar>` read."""

    engine: str
    scalars: Mapping[str, float]
    noise: bool = False
    commits: bool = False


@dataclass(frozen=True)
class Layers:
    """The products with a weight whose modules match the regular expression `modules`; `keep`: why they stay fp32."""

    modules: str
    keep: str | None = None


@dataclass(frozen=True)
class Precision:
    """What a lower precision may touch.

    `kept_engines`: engines that int8 and fp8 leave alone, with the reason. `layers`: the first match counts; a product
    without one is kept. `fp32_modules`, regular expressions, and `fp32_engines`: what fp16 and bf16 leave in fp32.
    Export merges products of one tensor and one module that all patterns treat alike, if they treat the merged one,
    which is called as `attention.q+k+v`, alike too.
    """

    kept_engines: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layers, ...] = (Layers(".*"),)
    fp32_modules: tuple[str, ...] = ()
    fp32_engines: tuple[str, ...] = ()


# (chunk, draw) -> noise [B, ..] of the sample's shape
NoiseSource = Callable[[int, int], "Tensor"]
# (token ids, mask: int64 [B, L], or None without text; noise) -> clean sample and frames of each chunk
Reference = Callable[["Tensor | None", "Tensor | None", NoiseSource], Iterator[tuple["Tensor", "Tensor"]]]


@dataclass(frozen=True)
class Deployment:
    """A model as it is shipped: all that a plan says of it.

    `config`: what it was made from, plain JSON types. `reference`: an independent rollout in PyTorch, where there is
    one; without it, a plan is verified against its own program over these modules.
    """

    name: str
    stream: Stream
    engines: Sequence[Engine]
    passes: Sequence[Pass]
    states: Mapping[str, State] = field(default_factory=dict)
    window: Window | None = None
    text: Text | None = None
    precision: Precision = Precision()
    config: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def parameters(self) -> int:
        """How many numbers its modules hold; what two engines share counts once."""
        found = {id(p): p.numel() for engine in self.engines for p in engine.module.parameters()}
        return sum(found.values())


@dataclass(frozen=True)
class Video:
    """One video of an evaluation: `seconds` of `prompt` under `seed`."""

    prompt: str
    seed: int
    seconds: float


@dataclass(frozen=True)
class Figure:
    """Of `videos`, or clips cut from them, `percent` show `what`, looked at `at` some time."""

    at: str
    what: str
    percent: float
    videos: int


class Evaluation(Protocol):
    """What the videos of a model show."""

    def videos(self) -> Sequence[Video]: ...

    def figures(self, frames: Mapping[Video, NDArray[np.uint8]], fps: float) -> Sequence[Figure]:
        """Of the frames [T, H, W, 3] of all videos."""


@dataclass(frozen=True)
class Family:
    """`load`: from a preset or a checkpoint, with changed options, with random weights if the last argument says so.

    `takes`: is this file a checkpoint of the family? `options`: of `load`, each with what it is. `evaluation`: of a
    model by its name. `load` raises ModelError.
    """

    name: str
    presets: tuple[str, ...]
    takes: Callable[[str], bool]
    load: Callable[[str, Mapping[str, Any], bool], Deployment]
    options: Mapping[str, str] = field(default_factory=dict)
    evaluation: Callable[[str], Evaluation | None] = lambda name: None


def known_family(name: str) -> Family | None:
    """One of the repository's own families; None for another."""
    module = FAMILIES.get(name)
    return None if module is None else importlib.import_module(module).FAMILY


def find_family(source: str, named: str | None = None) -> Family:
    """The family of a preset or checkpoint. `named`: one of FAMILIES, or the user's own as package.module:name.

    What `package.module:name` holds is a Family, a Deployment, a function without arguments that makes one, or a
    function as `Family.load`. Scans of known libraries are captured while it is imported and called. Raises ModelError.
    """
    if named is not None:
        return known_family(named) or _imported(named)
    families = [family for name in FAMILIES if (family := known_family(name))]
    for family in families:
        if source in family.presets or family.takes(source):
            return family
    presets = ", ".join(sorted(preset for family in families for preset in family.presets))
    raise ModelError(
        f"checkpoint: got {source}, which is neither a checkpoint nor a preset nor a plan, expected a checkpoint file, "
        f"one of {presets}, or the folder of a plan; check the name, or name the model's --family"
    )


def _imported(named: str) -> Family:
    module, colon, attribute = named.partition(":")
    known = ", ".join(FAMILIES)
    if not colon:
        raise ModelError(f"--family: got {named}, expected one of {known} or package.module:name; change it")
    try:
        from videossm.models.scans.capture import captured_scans

        with captured_scans():
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's own may raise any
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        own = missing is None or missing.partition(".")[0] == module.partition(".")[0]
        remedy = "check the name, and that Python finds the module (PYTHONPATH)" if own else f"install {missing}"
        raise ModelError(
            f"--family: got {named}, which cannot be imported ({_told(error)}), expected one of {known} or "
            f"package.module:name; {remedy}"
        ) from error
    if isinstance(found, Family):
        return replace(found, load=_guarded(named, found.load))
    if not (callable(found) or isinstance(found, Deployment)):
        raise ModelError(
            f"--family: got {named}, a {type(found).__name__}, expected a Family, a Deployment or a function; name one"
        )
    load = found if callable(found) and _has_parameters(found) else lambda *given: _unchanged(found, *given)
    return Family(named, (), lambda source: True, _guarded(named, load))


def _has_parameters(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except ValueError:  # one of Python's own, which does not tell
        return True


def _unchanged(found: Any, source: str, options: Mapping[str, Any], random_weights: bool) -> Any:
    """A Deployment, or what a function without arguments makes."""
    for option in [*options, *["random-weights"] * random_weights]:
        raise ModelError(f"{option}: got it with a Deployment, expected none, as it is exported as it is; leave it out")
    return found() if callable(found) else found


def _guarded(
    named: str, load: Callable[[str, Mapping[str, Any], bool], Any]
) -> Callable[[str, Mapping[str, Any], bool], Deployment]:
    """`load` of the user's own family, which raises ModelError for whatever it raises or wrongly returns."""

    def loaded(source: str, options: Mapping[str, Any], random_weights: bool) -> Deployment:
        from videossm.models.scans.capture import captured_scans

        try:
            with captured_scans():
                found = load(source, options, random_weights)
        except (ModelError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"--family: {named} failed ({_told(error)}), expected a Deployment from it; mend it"
            ) from error
        if not isinstance(found, Deployment):
            raise ModelError(f"--family: got a {type(found).__name__} from {named}, expected a Deployment; return one")
        return found

    return loaded


def _told(error: Exception) -> str:
    """What was raised, and where in the user's own file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames[1:] else ""
    return f"{type(error).__name__}: {error}{where}"
