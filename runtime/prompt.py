"""Prompts to token ids, by the plan's own tokenizer (a Hugging Face `tokenizers` file)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import PlanError, PromptError

_WORDS_SHOWN = 64


class PromptTokenizer:
    """Turns a prompt into `length` ids; an unknown word is an error wherever the tokenizer has a closed vocabulary."""

    def __init__(self, file: Path, length: int) -> None:
        from tokenizers import Tokenizer  # 40 ms: only where a prompt is read

        self.length = length
        try:
            text = file.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise PlanError(f"{file.name}: got no tokenizer ({error}); export the plan again") from error
        padding = self._tokenizer.padding or {}
        pad = padding.get("pad_id", self._tokenizer.token_to_id("[PAD]"))
        if pad is None:
            raise PlanError(f"{file.name}: got no padding and no [PAD] token, expected one; export the plan again")
        self._pad = int(pad)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        model = json.loads(text)["model"]
        self._closed = model.get("type") == "WordLevel"
        self._reserved = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        unknown = self._tokenizer.token_to_id(model.get("unk_token") or "[UNK]")
        self._reserved |= {self._pad} if unknown is None else {self._pad, unknown}

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids, without the special tokens."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        return [word for word, i in sorted(vocabulary.items(), key=lambda item: item[1]) if i not in self._reserved]

    def encode(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`prompts` (B of them) to ids and attention mask, both [B, length] int64; raises PromptError."""
        ids = np.full((len(prompts), self.length), self._pad, np.int64)
        mask = np.zeros((len(prompts), self.length), np.int64)
        for row, prompt in enumerate(prompts):
            tokens = self._tokens(prompt)
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _tokens(self, prompt: str) -> list[int]:
        if not prompt.strip():
            raise PromptError("prompt: got an empty text, expected words; describe the video")
        encoding = self._tokenizer.encode(prompt)
        if self._closed:
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                if token in self._reserved and stop > start:
                    raise PromptError(self._unknown(prompt[start:stop]))
        if len(encoding.ids) > self.length:
            got = f"{len(encoding.ids)} tokens"
            raise PromptError(f"prompt: got {got}, expected at most {self.length}; shorten it")
        return list(encoding.ids)

    def _unknown(self, word: str) -> str:
        words = self.words()
        shown = " ".join(words[:_WORDS_SHOWN]) + (" .." if len(words) > _WORDS_SHOWN else "")
        return f"prompt: got the unknown word {word!r}, expected words among: {shown}; replace it"
