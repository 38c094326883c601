"""Prompts to token ids, by the plan's own tokenizer: a tokenizer.json of Hugging Face's package `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.errors import PlanError, Problem, PromptError, shown
from videossm.runtime.manifest import Text
from videossm.runtime.plan import Plan
from videossm.runtime.plan_file import read_small
from videossm.runtime.wordlevel import WordLevelTokenizer, read_word_level

_WORDS_SHOWN = 64
_MOST_CHARACTERS = 20_000  # of a prompt: a tokenizer's regular expressions can take long for each one


@dataclass(frozen=True)
class EncodedPrompts:
    """One for each stream of the batch, with what the tokenizer makes of them, [B, L] int64."""

    texts: list[str]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]

    def equal(self, other: EncodedPrompts | None) -> bool:
        """Whether it is the same to the model, however it is spelt."""
        return other is not None and np.array_equal(self.ids, other.ids) and np.array_equal(self.mask, other.mask)


class PromptTokenizer:
    """Turns a prompt into ids of the length that `text` says; a word without an id is an error if `text` refuses it.

    Raises PlanError for a `file` that is no tokenizer, or one that only the package reads where that is missing.
    """

    def __init__(self, file: Path, text: Text) -> None:
        self.length = text.length
        self._closed = text.unknown == "refuse"
        self._tokenizer = _open(file)
        self._pad = text.padding_id
        self._reserved = {*self._tokenizer.reserved, self._pad}

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids, without the special tokens."""
        vocabulary = self._tokenizer.vocabulary.items()
        return [word for word, i in sorted(vocabulary, key=lambda item: item[1]) if i not in self._reserved]

    def encode(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`prompts` (B of them) to ids and attention mask, both [B, length] int64; raises PromptError."""
        ids = np.full((len(prompts), self.length), self._pad, np.int64)
        mask = np.zeros((len(prompts), self.length), np.int64)
        for row, prompt in enumerate(prompts):
            tokens = self._ids(prompt)
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _ids(self, prompt: str) -> list[int]:
        if not prompt.strip():
            raise PromptError("prompt: got an empty text, expected words; describe the video")
        if not _is_unicode(prompt):
            raise PromptError(f"prompt: got {shown(prompt)}, which is no UTF-8, expected a text; write it in UTF-8")
        if len(prompt) > _MOST_CHARACTERS:
            raise PromptError(f"prompt: got {len(prompt)} characters, expected at most {_MOST_CHARACTERS}; shorten it")
        tokens = list(self._tokenizer.tokens(prompt))
        if self._closed:
            for token, start, stop in tokens:
                if token in self._reserved and stop > start:
                    raise PromptError(self._unknown(prompt[start:stop]))
        if len(tokens) > self.length:
            got = f"{len(tokens)} tokens"
            raise PromptError(f"prompt: got {got}, expected at most {self.length}; shorten it")
        return [token for token, _, _ in tokens]

    def _unknown(self, word: str) -> str:
        words = self.words()
        known = " ".join(words[:_WORDS_SHOWN]) + (" .." if len(words) > _WORDS_SHOWN else "")
        return f"prompt: got the unknown word {shown(word)}, expected words among: {known}; replace it"


class _PackageTokenizer:
    """A WordLevelTokenizer in what can be asked of it, for whatever file the package `tokenizers` reads.

    `content`: what `text`, the file, says.
    """

    def __init__(self, text: str, content: Any) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(text)
        model = content["model"]
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.reserved = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        unknown = self._tokenizer.token_to_id(model.get("unk_token") or "[UNK]")
        self.reserved |= set() if unknown is None else {unknown}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=False)

    def tokens(self, prompt: str) -> Iterable[tuple[int, int, int]]:
        try:
            encoding = self._tokenizer.encode(prompt)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # bare Exception; and where Rust panics one that is not even that
            raise PromptError(
                f"prompt: got one that tokenizer.json cannot express ({error}), expected another; "
                "use other words, or export the plan again"
            ) from error
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, start, stop


def open_tokenizer(plan: Plan) -> PromptTokenizer | None:
    """That of `plan`, None if it takes no text. Raises PlanError."""
    text = plan.manifest.text
    return None if text is None else PromptTokenizer(plan.tokenizer_file, text)


def check_tokenizer(file: Path) -> list[Problem]:
    """The problem that only the package reads `file` and it is not installed, or none. Raises PlanError."""
    if find_spec("tokenizers") is not None or read_word_level(_read(file)[1]) is not None:
        return []
    got = "a tokenizer that is not word-level, and no package tokenizers"
    return [Problem(file.name, got, "that package, which reads it", "pip install 'videossm[tokenizers]'")]


def _open(file: Path) -> WordLevelTokenizer | _PackageTokenizer:
    text, content = _read(file)
    own = read_word_level(content)
    if own is not None:
        return own
    if problems := check_tokenizer(file):
        raise PlanError(str(problems[0]))
    try:
        return _PackageTokenizer(text, content)
    except Exception as error:  # the package raises bare Exception
        raise _no_tokenizer(file, error) from error


def _read(file: Path) -> tuple[str, Any]:
    """The text of `file`, and the same parsed."""
    try:
        text = read_small(file.parent, file.name).decode("utf-8")
        return text, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_tokenizer(file, error) from error


def _is_unicode(text: str) -> bool:
    """False for bytes of a command line that were no UTF-8, which Python keeps as halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_tokenizer(file: Path, error: Exception) -> PlanError:
    return PlanError(f"{file.name}: got no tokenizer ({error}); export the plan again")
