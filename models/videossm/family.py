"""VideoSSM as a family: presets, checkpoints, and a deployment from either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossm.models.family import Deployment, Evaluation, Family, ModelError
from videossm.models.shapes.world import example_prompts
from videossm.models.videossm.config import ConfigError, ModelConfig
from videossm.models.videossm.presets import PRESETS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OPTIONS = {  # of the command line -> field of the config
    "height": "height",
    "width": "width",
    "batch": "batch",
    "chunk_frames": "window.chunk_frames",
    "window_frames": "window.window_frames",
    "sink_frames": "window.sink_frames",
    "layers": "transformer.layers",
}
HELP = {
    "height": "Pixels.",
    "width": "Pixels.",
    "batch": "Streams that run together.",
    "chunk_frames": "Latent frames made at a time.",
    "window_frames": "Past latent frames that a chunk attends to, the sink included.",
    "sink_frames": "First latent frames of the video, which never leave the window.",
    "layers": "With random weights: blocks of the transformer, to measure a part of it.",
}


def load(source: str, options: Mapping[str, Any], random_weights: bool) -> Deployment:
    """The preset or checkpoint `source` as a deployment. Raises ModelError."""
    from videossm.models.videossm.checkpoint import load_weights
    from videossm.models.videossm.deployment import deployment
    from videossm.models.videossm.model import VideoModel, random_model

    config, checkpoint, tokenizer = _find(source, random_weights)
    config = _changed(config, options, random_weights)
    if checkpoint is None:
        model = random_model(config)
    else:
        model = VideoModel(config).eval()
        load_weights(model, checkpoint)
    return deployment(model, tokenizer.to_str(), example_prompts() if config.name == "shapes" else ())


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name that no file can have
        return False


def _find(source: str, random_weights: bool) -> tuple[ModelConfig, Path | None, Tokenizer]:
    """The config, where its weights come from (None: random ones), and the tokenizer."""
    from videossm.models.shapes.tokenizer import build_tokenizer, tokenizer_beside
    from videossm.models.videossm.checkpoint import WEIGHTS, CheckpointError, read_config

    if source in PRESETS and random_weights:
        return PRESETS[source](), None, build_tokenizer()
    checkpoint = WEIGHTS / f"{source}.safetensors" if source in PRESETS else Path(source)
    if source in PRESETS and not checkpoint.is_file():
        with_weights = ", ".join(sorted(name for name in PRESETS if (WEIGHTS / f"{name}.safetensors").is_file()))
        raise CheckpointError(
            f"checkpoint: got preset {source}, which ships no weights, expected one that does ({with_weights}) "
            "or a .safetensors file; pass --random-weights to measure it without"
        )
    config = read_config(checkpoint)
    tokenizer = tokenizer_beside(checkpoint, config.text_encoder.vocab_size)
    return config, None if random_weights else checkpoint, tokenizer


def _changed(config: ModelConfig, options: Mapping[str, Any], random_weights: bool) -> ModelConfig:
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise ModelError(f"--set: got {name}, expected one of {', '.join(OPTIONS)}; change it")
        if not isinstance(value, int):
            raise ConfigError(f"{name}: got {value!r}, expected a whole number; change it")
        if name == "layers" and not random_weights:
            raise ConfigError("layers: got it with a checkpoint's weights, expected --random-weights beside it; add it")
        part, dot, field = OPTIONS[name].rpartition(".")
        if dot:
            changes.setdefault(part, {})[field] = value
        else:
            changes[field] = value
    return config.replace(**changes)


def _evaluation(name: str) -> Evaluation | None:
    """Of the demo, which was trained on a world that a detector knows."""
    from videossm.models.shapes.figures import ShapesEvaluation

    return ShapesEvaluation() if name == "shapes" else None


FAMILY = Family(
    name="videossm",
    presets=tuple(PRESETS),
    takes=_is_file,
    load=load,
    options=HELP,
    evaluation=_evaluation,
)
