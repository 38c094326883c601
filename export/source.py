"""What the user names on the command line, a preset or a checkpoint, as a model with weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from videossm.models.checkpoint import WEIGHTS, CheckpointError, load_weights, read_config
from videossm.models.config import ConfigError, ModelConfig
from videossm.models.model import VideoModel, random_model
from videossm.models.presets import PRESETS
from videossm.models.shapes.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Source:
    """A config, and where its weights come from; nothing large is loaded yet."""

    config: ModelConfig
    checkpoint: Path | None  # None: random weights
    tokenizer: Tokenizer

    def load(self, config: ModelConfig) -> VideoModel:
        """The model under `config`, which may differ from the source's in geometry. Raises CheckpointError."""
        if self.checkpoint is None:
            return random_model(config)
        model = VideoModel(config).eval()
        load_weights(model, self.checkpoint)
        return model


def find_source(name: str, random_weights: bool = False) -> Source:
    """The preset or checkpoint `name`. Raises ConfigError or CheckpointError."""
    if name in PRESETS and random_weights:
        return Source(PRESETS[name](), None, build_tokenizer())
    checkpoint = WEIGHTS / f"{name}.safetensors" if name in PRESETS else Path(name)
    if not _is_file(checkpoint):
        raise CheckpointError(_not_found(name))
    config = read_config(checkpoint)
    return Source(config, None if random_weights else checkpoint, _tokenizer(checkpoint, config))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _not_found(name: str) -> str:
    if name in PRESETS:
        with_weights = ", ".join(sorted(name for name in PRESETS if (WEIGHTS / f"{name}.safetensors").is_file()))
        return (
            f"checkpoint: got preset {name}, which ships no weights, expected one that does ({with_weights}) "
            "or a .safetensors file; pass --random-weights to measure it without"
        )
    return (
        f"checkpoint: got {name}, which is neither a file nor a preset nor a plan, expected a .safetensors "
        f"file, one of {', '.join(sorted(PRESETS))}, or the folder of a plan; check the name"
    )


def _tokenizer(checkpoint: Path, config: ModelConfig) -> Tokenizer:
    """`tokenizer.json` beside the checkpoint; without one, that of the shapes vocabulary."""
    file = checkpoint.with_name("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else build_tokenizer()
    except Exception as error:  # what tokenizers raises
        raise CheckpointError(f"{file}: got no readable tokenizer ({error}), expected one; replace it") from None
    largest, known = max(tokenizer.get_vocab().values()), config.text_encoder.vocab_size
    if largest >= known:
        raise ConfigError(
            f"{file}: got ids up to {largest}, expected less than the text encoder's {known}; "
            "use the checkpoint's own tokenizer"
        )
    return tokenizer
