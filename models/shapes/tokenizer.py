"""The tokenizer of the shapes prompts: one id a word."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

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
