"""The tokenizer of the shapes prompts: one id a word."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from videossm.models.family import ModelError
from videossm.models.shapes.vocabulary import words

PAD, UNKNOWN = "[PAD]", "[UNK]"


def build_tokenizer() -> Tokenizer:
    """A WordLevel tokenizer over the vocabulary; words in any case, split at white space.

    Ids: [PAD] 0, [UNK] 1, then the words in the order of `vocabulary.words()`.
    """
    ids = {token: i for i, token in enumerate([PAD, UNKNOWN, *words()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, UNKNOWN])  # no words: a reader must not offer or accept them in a prompt
    return tokenizer


def tokenizer_beside(checkpoint: Path, vocabulary: int) -> Tokenizer:
    """`tokenizer.json` beside the checkpoint; without one, that of the shapes prompts.

    `vocabulary`: ids that the model knows. Raises ModelError for a file that is none, or has larger ids.
    """
    file = checkpoint.with_name("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else build_tokenizer()
    except Exception as error:  # what tokenizers raises
        raise ModelError(f"{file}: got no readable tokenizer ({error}), expected one; replace it") from None
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ModelError(
            f"{file}: got ids up to {largest}, expected less than the text encoder's {vocabulary}; "
            "use the checkpoint's own tokenizer"
        )
    return tokenizer
