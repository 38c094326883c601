"""Word-level tokenizers, which the plans of this repository carry, read without the package `tokenizers`.

The file is that package's own; one that says anything unknown to `read_word_level` is not read here at all. As all
words of the vocabulary are ASCII, a word with any other character is unknown: Unicode only says where it ends. (There
alone may the package differ: to it a character that is newer than Python's Unicode can be a letter.)
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# Unicode's White_Space; Python's isspace() has more.
_SPACE = {*"\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))}
# Unicode's \w: these categories, the joiners, the circled letters. Python's has other digits and fewer marks.
_LETTERS = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Mn", "Mc", "Me", "Nd", "Pc"}
_OTHER_LETTERS = [(0x200C, 0x200D), (0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)]
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclass(frozen=True)
class WordLevelTokenizer:
    """One id a word.

    Args:
        vocabulary: the ids of the words and special tokens.
        special: tokens that are found as they are written, inside of words too, before anything else.
        unknown: the id of a word that is not in the vocabulary.
        lowercase: words are looked up in lower case.
        punctuation: a word ends at punctuation too (`\\w+|[^\\w\\s]+`), not only at white space.
    """

    vocabulary: dict[str, int]
    special: tuple[str, ...]
    unknown: int
    lowercase: bool
    punctuation: bool

    @property
    def reserved(self) -> set[int]:
        """Ids that stand for no word."""
        return {self.unknown, *(self.vocabulary[token] for token in self.special)}

    def tokens(self, prompt: str) -> Iterator[tuple[int, int, int]]:
        """Ids, each with where its text starts and stops in `prompt`."""
        longest_first = sorted(self.special, key=len, reverse=True)
        start = 0
        for match in re.finditer("|".join(map(re.escape, longest_first)) or "(?!)", prompt):
            yield from self._words(prompt, start, match.start())
            yield self.vocabulary[match[0]], match.start(), match.end()
            start = match.end()
        yield from self._words(prompt, start, len(prompt))

    def _words(self, prompt: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        for kind, run in groupby(range(start, stop), lambda i: self._kind(prompt[i])):
            first, *others = run
            word = prompt[first : first + 1 + len(others)]
            if kind != "space":
                key = word.lower() if self.lowercase else word
                yield self.vocabulary.get(key, self.unknown), first, first + len(word)

    def _kind(self, character: str) -> str:
        if character in _SPACE:
            return "space"
        if not self.punctuation or unicodedata.category(character) in _LETTERS:
            return "letter"
        return "letter" if any(a <= ord(character) <= b for a, b in _OTHER_LETTERS) else "punctuation"


def read_word_level(content: Any) -> WordLevelTokenizer | None:
    """The tokenizer of `content`, a parsed tokenizer.json; None unless all that it says is known here."""
    match content:
        case {
            "added_tokens": list(added),
            "normalizer": normalizer,
            "pre_tokenizer": {"type": splitter},
            "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": str(unknown)},
        }:
            special = tuple(str(token.get("content")) for token in added if isinstance(token, dict))
        case _:
            return None
    ids = all(word.isascii() and type(i) is int and 0 <= i < 2**32 for word, i in vocabulary.items())
    if not ids or "" in special or not vocabulary.keys() >= {unknown, *special}:
        return None
    known = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **_SPECIAL} for token in special],
        "normalizer": None if normalizer is None else {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace" if splitter == "Whitespace" else "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    }
    if json.dumps(known, sort_keys=True) != json.dumps(content, sort_keys=True):  # == takes 0 for False
        return None
    return WordLevelTokenizer(
        vocabulary, special, vocabulary[unknown], lowercase=normalizer is not None, punctuation=splitter == "Whitespace"
    )
