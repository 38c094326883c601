"""Known answers of what the C interface does not show, by probe.cpp: noise, tokens, conversions; memory in a chunk."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import run

from videossm.runtime import Plan
from videossm.runtime.noise import noise
from videossm.runtime.state import _from_float32
from videossm.runtime.wordlevel import read_word_level

# kat_vectors of Random123 1.14, philox4x32 10: counter, key, answer
PHILOX = [
    ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
RESIDENT_KIB = 512  # that may come after the first hundred of 2,000 chunks


@pytest.fixture(scope="module")
def probe(built: Path) -> Path:
    return built / "probe"


@pytest.mark.parametrize(("counter", "key", "answer"), PHILOX)
def test_philox_known_answers(probe: Path, counter: list[int], key: int, answer: str) -> None:
    assert run(probe, "philox", *counter, key).strip() == answer


DRAWS = [(7, 3, 1, 100_000), (0, 0, 0, 8), (2**64 - 1, 2**47, 4095, 1001), (2**40 + 3, 9, 2, 1)]


@pytest.mark.parametrize("key", DRAWS)
def test_noise_has_the_bits_of_python(probe: Path, key: tuple[int, int, int, int]) -> None:
    seed, chunk, draw, count = key
    expected = hashlib.sha256(noise(seed, chunk, draw, (count,)).astype("<f4").tobytes()).hexdigest()
    assert run(probe, "noise", *key).strip() == expected


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1 << 20, (1 << 20) + 1])
def test_hashes(probe: Path, tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    digits, ways = run(probe, "hashes", tmp_path / "file").split("\n")[:2]
    assert digits == hashlib.sha256(content).hexdigest() and ways in ("equal", "one way")


def test_floats_of_two_bytes(probe: Path) -> None:
    bits = np.arange(0x10000, dtype=np.uint32)
    wide = np.stack([bits.astype(np.uint16).view(np.float16).astype(np.float32), (bits << 16).view(np.float32)], 1)
    values = np.arange(0, 0xFFFF0000, 997, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    narrow = [_from_float32(values, dtype).view(np.uint16) for dtype in ("float16", "bfloat16")]
    expected = hashlib.sha256(wide[np.isfinite(wide)].tobytes())
    expected.update(np.stack(narrow, 1).tobytes())
    assert run(probe, "halves").strip() == expected.hexdigest()


def tokenizer_json(lowercase: bool, punctuation: bool) -> dict:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "k": 4, "circle": 5, "A": 6, ",": 7, "[PA": 8}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[word], "content": word, **flags} for word in ("[PA", "[PAD]", "[UNK]")],
        "normalizer": {"type": "Lowercase"} if lowercase else None,
        "pre_tokenizer": {"type": "Whitespace" if punctuation else "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("punctuation", [True, False])
def test_tokens_are_those_of_python(probe: Path, tmp_path: Path, lowercase: bool, punctuation: bool) -> None:
    content = tokenizer_json(lowercase, punctuation)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = read_word_level(content)
    assert tokenizer is not None
    chance = random.Random(3)
    known = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Cc")]
    pieces = ["a", "red", "K", "\u212a", "circle", "[PAD]", "[PA", " ", "\u2003", ",", "é", "\u0301", "\t", "\xa0"]
    prompts = ["".join(chance.choices([*pieces, *chance.choices(known, k=9)], k=12)) for _ in range(3000)]
    prompts = [" ".join(prompt.splitlines()) for prompt in prompts]
    lines = run(probe, "tokens", tmp_path / "tokenizer.json", stdin="".join(f"{prompt}\n" for prompt in prompts))
    for prompt, line in zip(prompts, lines.split("\n")[:-1], strict=True):
        got = [tuple(map(int, token.split(":"))) for token in line.split()]
        expected = [
            (i, len(prompt[:start].encode()), len(prompt[start:stop].encode()))
            for i, start, stop in tokenizer.tokens(prompt)
        ]
        assert got == expected, repr(prompt)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], "2.0"),
        (["more"], None),
        (["truncation"], {}),
        (["normalizer"], {"type": "NFC"}),
        (["normalizer"], {"type": "Lowercase", "more": 1}),
        (["pre_tokenizer"], None),
        (["model", "type"], "BPE"),
        (["model", "unk_token"], "zebra"),
        (["model", "vocab", "é"], 9),
        (["model", "vocab", "word"], -1),
        (["model", "vocab", "word"], 2**32),
        (["model", "vocab", "word"], 1.0),
        (["model", "vocab", "word"], True),
        (["added_tokens", 0, "special"], False),
        (["added_tokens", 0, "lstrip"], 0),
        (["added_tokens", 0, "id"], 7),
        (["added_tokens", 0, "content"], "zebra"),
        (["added_tokens"], {}),
    ],
)
def test_other_tokenizers_are_not_read(probe: Path, tmp_path: Path, path: list, value: object) -> None:
    content = place = tokenizer_json(True, True)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_word_level(content) is None
    assert run(probe, "tokens", tmp_path / "tokenizer.json", stdin="a\n").strip() == "none"


def test_no_memory_is_taken_in_a_chunk(probe: Path, plan: Plan) -> None:
    """Counted are all calls of malloc, calloc and realloc by the thread, but for those inside of an engine."""
    texts = [] if plan.manifest.text is None else ["a red circle", "a blue square"]
    counts = list(map(int, run(probe, "allocations", plan.path, 14, *texts).split()))
    assert counts[0] > 0, "the count works: it includes opening"
    assert counts[1:] == [0] * 14


def test_resident_memory_is_flat(probe: Path, exported_plan: Callable[..., Plan]) -> None:
    sizes = list(map(int, run(probe, "resident", exported_plan("test").path, 2000, "a red circle").split()))
    assert len(sizes) == 20 and max(sizes) - sizes[0] <= RESIDENT_KIB, sizes
