"""SSM video diffusion models as a family: presets, checkpoints, public ones too, and a deployment from either."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossm.models.family import Deployment, Evaluation, Family, ModelError
from videossm.models.shapes.world import example_prompts
from videossm.models.ssm_vdm.config import CONFIG_KEY, DiffusionConfig, SsmVdmConfig
from videossm.models.ssm_vdm.presets import PRESETS

if TYPE_CHECKING:
    from videossm.models.ssm_vdm.model import SsmVdm

TRAINED = ("ssm-vdm-shapes", "ssm-vdm-shapes-stream")  # presets with weights
STREAM_S = 5.0  # of a short video of a stream that is evaluated
MOST_HEADER = 1 << 20  # bytes of a checkpoint's header that are read to see whose it is
OPTIONS = {
    "height": "Pixels.",
    "width": "Pixels.",
    "batch": "Videos that are made together.",
    "mode": "clip: `frames` frames at once; stream: endless, in chunks of `frames`.",
    "frames": "Of a clip, or of a chunk of a stream.",
    "sampler": "ddpm: fresh noise at every step; ddim: none.",
    "steps": "Of the sampler; of another sampler than the model's all of the training, if not given.",
    "version": "Of the temporal layers, --ssm_version of the public code; a public checkpoint needs it.",
    "fps": "Frames a second.",
}


def load(source: str, options: Mapping[str, Any], random_weights: bool) -> Deployment:
    """The preset or checkpoint `source` as a deployment. Raises ModelError."""
    from videossm.models.shapes.tokenizer import tokenizer_beside
    from videossm.models.ssm_vdm.deployment import deployment

    for name in options:
        if name not in OPTIONS:
            raise ModelError(f"--set: got {name}, expected one of {', '.join(OPTIONS)}; change it")
    model = _model(source, options, random_weights)
    config = model.config
    tokenizer = tokenizer_beside(Path(source), config.vocab_size).to_str() if config.vocab_size else ""
    return deployment(model, tokenizer, example_prompts() if config.vocab_size else ())


def _model(source: str, options: Mapping[str, Any], random_weights: bool) -> SsmVdm:
    from videossm.models.ssm_vdm.model import load_checkpoint, random_model
    from videossm.models.videossm.checkpoint import WEIGHTS, CheckpointError

    if source in PRESETS and random_weights:
        return random_model(_changed(PRESETS[source](), options))
    checkpoint = WEIGHTS / f"{source}.safetensors" if source in PRESETS else Path(source)
    if source in PRESETS and not checkpoint.is_file():
        raise CheckpointError(
            f"checkpoint: got preset {source}, which ships no weights, expected one that does; "
            "pass --random-weights to measure it without"
        )
    model = _public(checkpoint, options) if zipfile.is_zipfile(checkpoint) else load_checkpoint(checkpoint)
    config = _changed(model.config, options)
    if random_weights:
        return random_model(config)
    model.config = config
    return model


def _public(checkpoint: Path, options: Mapping[str, Any]) -> SsmVdm:
    from videossm.models.ssm_vdm.public import PublicSetting, load_public

    names = [field.name for field in fields(PublicSetting)]  # that it does not hold
    missing = [name for name in names if name not in options]
    if missing:
        raise ModelError(
            f"--set: got no {missing[0]}, expected {', '.join(names)} of a public checkpoint, which does not hold "
            "them; give what it was trained with"
        )
    for name in names:
        if not isinstance(options[name], int | float):
            raise ModelError(f"{name}: got {options[name]!r}, expected a number; change it")
    return load_public(checkpoint, PublicSetting(**{name: options[name] for name in names}))


def _changed(config: SsmVdmConfig, options: Mapping[str, Any]) -> SsmVdmConfig:
    """`config` with the options that are fields of it, or of its diffusion. Raises ModelError."""
    version = config.unet.temporal.version
    if options.get("version", version) != version:
        raise ModelError(f"version: got {options['version']}, expected the model's {version}; change it")
    values = config.to_dict()
    of_diffusion = {field.name for field in fields(DiffusionConfig)}
    diffusion = {name: value for name, value in options.items() if name in of_diffusion}
    if diffusion.get("sampler", config.diffusion.sampler) != config.diffusion.sampler:
        diffusion = {"steps": config.diffusion.timesteps, "shift": 1.0} | diffusion
    values["diffusion"] |= diffusion
    values |= {name: value for name, value in options.items() if name in values and name not in of_diffusion}
    return SsmVdmConfig.from_dict(values)


def takes(source: str) -> bool:
    """Is this file a checkpoint of the public code, or one that `save_checkpoint` wrote?"""
    try:
        if zipfile.is_zipfile(source):
            return True
        with Path(source).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MOST_HEADER)))
        return CONFIG_KEY in header.get("__metadata__", {})
    except (OSError, ValueError, struct.error, AttributeError, RecursionError):
        return False  # no such file, or none of safetensors: its reader says what is wrong


def _evaluation(name: str) -> Evaluation | None:
    """Of the small models, which were trained on a world that a detector knows."""
    from videossm.models.ssm_vdm.figures import ObjectEvaluation

    if name not in TRAINED:
        return None
    config = PRESETS[name]()
    if config.streams:
        return ObjectEvaluation(STREAM_S, chunk=config.frames)
    return ObjectEvaluation(config.frames / config.fps)


FAMILY = Family(
    name="ssm_vdm",
    presets=tuple(PRESETS),
    takes=takes,
    load=load,
    options=OPTIONS,
    evaluation=_evaluation,
)
