"""Word-level tokenizers, read here and by the package `tokenizers`: the same ids, mask and errors."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.runtime import PromptError
from videossm.runtime import prompt as prompt_module
from videossm.runtime.manifest import Text
from videossm.runtime.prompt import PromptTokenizer
from videossm.runtime.wordlevel import read_word_level

TEXT = Text(length=12, padding_id=0, unknown="refuse", examples=())
WORDS = ["a", "red", "blue", "circle", "kick", "i", "it's", "'", "s", "!", "42", "snake_case", "[pad]", "Red"]
SPECIAL = ["[PAD]", "[UNK]", "[PAD]]", "a.b"]
# What prompts are put together from: words and what may stand between them, inside them or in their place.
PIECES = [
    *WORDS, *SPECIAL, *map(str.upper, WORDS), "[pad", "[PAD", "PAD]", "[Unk]", "AxB", "A.B", "pink", "Rot", "redred",
    " ", " ", " ", "  ", "\t", "\n", "\r\n", "\v", "\f", "\x00", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\u1680",
    "\u2003", "\u2028", "\u202f", "\u205f", "\u3000", "\u180e", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff",
    ".", ",", "!?", "-", "_", "__", "'", "\u2019", "\u203f", "\u00b2", "\u00bd", "\u2167", "\u24b6", "\U0001f170",
    "\u0130", "\u0131", "i\u0307", "e\u0301", "\u0301", "\u20dd", "\u00e9", "\u00c9", "\u00df", "\u1e9e", "\u03a3",
    "\u03a3a", "\u03c2", "\u212a", "\u212aic\u212a", "\u212b", "\u0660", "\u0967", "\u4e2d\u6587", "\u3042",
    "\u0e01\u0e33", "\u05d0", "\u0639", "\U0001f534", "\U0001f468\u200d\U0001f469", "\U00010400", "\ufb01", "\uff21",
    "\ue000", "\U0010ffff", "x" * 5000,
]  # fmt: skip
KINDS = [
    {"lowercase": lowercase, "punctuation": punctuation} for lowercase in (True, False) for punctuation in (True, False)
]


def build(lowercase=True, punctuation=True, special=SPECIAL):
    ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if punctuation else pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return tokenizer


def content(**options):
    return json.loads(build(**options).to_str())


def result(tokenizer, prompt):
    """Ids and mask, or the error."""
    try:
        return [array.tolist() for array in tokenizer.encode([prompt])]
    except PromptError as error:
        return str(error)


def prompts(count):
    """Of words alone, many of which are accepted, and of anything."""
    draw = random.Random(0)
    yield from ["", " ", *PIECES, *(f"red{piece}blue" for piece in PIECES)]
    for i in range(count):
        pieces, between = (WORDS, " ") if i % 2 else (PIECES, draw.choice(["", " "]))
        yield between.join(draw.choices(pieces, k=draw.randrange(1, 15)))


@pytest.fixture
def both(tmp_path, monkeypatch):
    """`both(...)`: a tokenizer as it is read here, and by the package."""

    def read(**options):
        file = tmp_path / "tokenizer.json"
        build(**options).save(str(file))
        assert read_word_level(json.loads(file.read_text())) is not None
        ours = PromptTokenizer(file, TEXT)
        monkeypatch.setattr(prompt_module, "read_word_level", lambda content: None)
        return ours, PromptTokenizer(file, TEXT)

    return read


@pytest.mark.parametrize("special", [SPECIAL, SPECIAL[:2], []], ids=len)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_prompts(both, kind, special):
    ours, theirs = both(**kind, special=special)
    assert ours.words() == theirs.words()
    results = []
    for prompt in prompts(2000):
        results.append(result(ours, prompt))
        assert results[-1] == result(theirs, prompt), f"the prompt {prompt!r}"
    refused = sum(isinstance(got, str) for got in results)
    assert 200 < refused < len(results) - 200, "prompts of either end are among them"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_character_that_python_knows(kind):
    """Its kind decides where an unknown word ends; only one of another kind than all words could be looked up wrong."""
    ours, theirs = read_word_level(content(**kind)), build(**kind)
    characters = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    for start in range(0, len(characters), 5000):
        prompt = " ".join(f"a{c}a" for c in characters[start : start + 5000])
        encoding = theirs.encode(prompt)
        assert list(ours.tokens(prompt)) == [
            (i, *where) for i, where in zip(encoding.ids, encoding.offsets, strict=True)
        ]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_character_of_a_later_unicode_is_of_an_unknown_word(both, kind):
    """The package may know it for a letter, and then says a longer word."""
    unassigned = [c for c in map(chr, range(0x30000)) if unicodedata.category(c) == "Cn"]
    ours, theirs = both(**kind)
    for c in random.Random(0).sample(unassigned, 500):
        assert "unknown word" in result(ours, f"red{c} red") and "unknown word" in result(theirs, f"red{c} red")


def test_what_is_no_text(both):
    """As Python has the bytes of a broken argument."""
    for tokenizer in both():
        assert result(tokenizer, "red \udc80").startswith(
            "prompt: got 'red \\udc80', which is no UTF-8, expected a text"
        )


def test_the_tokenizer_of_shapes_is_read_here():
    assert read_word_level(json.loads(build_tokenizer().to_str())) is not None


def changed(place, value):
    """A file in which `place`, names separated by dots, has `value`; None removes it."""
    whole = content()
    *outer, last = place.split(".")
    inner = whole
    for name in outer:
        inner = inner[int(name) if name.isdecimal() else name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return whole


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", "2.0"),
        ("version", None),
        ("later", 1),
        ("truncation", {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
        ("padding", {"strategy": {"Fixed": 5}, "direction": "Right", "pad_id": 7, "pad_type_id": 0, "pad_token": "x"}),
        ("post_processor", {"type": "ByteLevel"}),
        ("decoder", {"type": "WordPiece"}),
        ("normalizer", {}),
        ("normalizer", {"type": "NFC"}),
        ("normalizer", {"type": "Lowercase", "later": 1}),
        ("pre_tokenizer", {"type": "Punctuation"}),
        ("pre_tokenizer", {"type": ["Whitespace"]}),
        ("pre_tokenizer", {"type": "Whitespace", "later": 1}),
        ("added_tokens", {}),
        ("added_tokens", ["[PAD]"]),
        ("added_tokens", [{}]),
        ("added_tokens.0.content", "new"),
        ("added_tokens.0.content", ""),
        ("added_tokens.0.content", ["[PAD]"]),
        ("added_tokens.0.id", 1),
        ("added_tokens.0.id", False),
        ("added_tokens.0.special", False),
        ("added_tokens.0.lstrip", True),
        ("added_tokens.0.rstrip", True),
        ("added_tokens.0.single_word", True),
        ("added_tokens.0.normalized", True),
        ("added_tokens.0.normalized", 0),
        ("added_tokens.0.later", 1),
        ("model", []),
        ("model.type", "WordPiece"),
        ("model.later", 1),
        ("model.unk_token", "<unk>"),
        ("model.unk_token", None),
        ("model.unk_token", 1),
        ("model.vocab", []),
        ("model.vocab.red", -1),
        ("model.vocab.red", 2**32),
        ("model.vocab.red", 1.0),
        ("model.vocab.red", True),
        ("model.vocab.red", "1"),
        ("model.vocab.\N{CYRILLIC SMALL LETTER A}", 99),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_to_the_last_field_is_left_to_the_package(place, value):
    assert read_word_level(content()) is not None
    assert read_word_level(changed(place, value)) is None


@pytest.mark.parametrize("whole", [None, [], {}, "text", 1], ids=str)
def test_what_is_no_tokenizer(whole):
    assert read_word_level(whole) is None
