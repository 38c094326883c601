"""Prompts that the tokenizer can express, and those that it cannot."""

from __future__ import annotations

import os
import re
import sys

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from videossm.runtime import PlanError, PromptError
from videossm.runtime.manifest import Text
from videossm.runtime.prompt import PromptTokenizer, check_tokenizer


def text(length, unknown="refuse", padding_id=0):
    return Text(length=length, padding_id=padding_id, unknown=unknown, examples=())


@pytest.fixture
def tokenizer(tiny_plan):
    return PromptTokenizer(tiny_plan.tokenizer_file, text(5))


def test_ids_and_mask_are_padded_to_the_length(tokenizer):
    ids, mask = tokenizer.encode(["a red circle", "blue"])
    assert ids.tolist() == [[2, 3, 6, 0, 0], [5, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_words_in_any_case(tokenizer):
    assert tokenizer.encode(["A RED Circle"])[0].tolist() == tokenizer.encode(["a red circle"])[0].tolist()


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_empty_prompt(tokenizer, prompt):
    with pytest.raises(PromptError, match=r"^prompt: got an empty text, expected words"):
        tokenizer.encode([prompt])


@pytest.mark.parametrize("word", ["pink", "Pink!", "[UNK]", "[PAD]", "rouge\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_unknown_word_is_named_with_what_is_known(tokenizer, word):
    with pytest.raises(PromptError) as caught:
        tokenizer.encode([f"a {word} circle"])
    message = str(caught.value)
    assert f"unknown word '{word[:4]}" in message, "the first word that is unknown, as it was typed"
    assert "a red green blue circle square moves left right" in message, "what is known, in the order of ids"
    assert "[PAD]" not in message.split("among")[1], "special tokens are no words"


def test_too_long(tokenizer):
    with pytest.raises(PromptError, match="got 6 tokens, expected at most 5"):
        tokenizer.encode(["a red circle moves left left"])


def test_open_vocabulary_knows_every_word(tmp_path):
    """Byte-pair and unigram tokenizers fall back on pieces: nothing is unknown there."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "r": 2, "e": 3, "d": 4, "re": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("r", "e")], unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, _ = PromptTokenizer(tmp_path / "tokenizer.json", text(5, "encode")).encode(["redx"])
    assert ids.tolist() == [[5, 4, 1, 0, 0]]


def test_padding_is_the_manifests(tmp_path):
    """Whatever the tokenizer would pad with."""
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "red": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.enable_padding(pad_id=7, pad_token="</s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, mask = PromptTokenizer(tmp_path / "tokenizer.json", text(3, padding_id=9)).encode(["red"])
    assert (ids.tolist(), mask.tolist()) == ([[1, 9, 9]], [[1, 0, 0]])


def test_unknown_word_of_another_unknown_token(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "red": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PromptError, match="unknown word 'blue', expected words among: red;"):
        PromptTokenizer(tmp_path / "tokenizer.json", text(3)).encode(["blue"])


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PlanError, match=r"^tokenizer\.json: got no tokenizer"):
        PromptTokenizer(tmp_path / "tokenizer.json", text(5))


def test_a_prompt_without_end(tokenizer):
    with pytest.raises(PromptError, match="got 100000 characters, expected at most 20000; shorten it"):
        tokenizer.encode([100_000 * "a"])


def test_an_unknown_word_is_not_repeated_without_end(tokenizer):
    with pytest.raises(PromptError, match=r"got the unknown word 'x{56}\.\., expected words among: a red"):
        tokenizer.encode([10_000 * "x"])


def test_a_vocabulary_without_its_unknown_word(tmp_path):
    Tokenizer(models.WordLevel({"[PAD]": 0, "red": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = PromptTokenizer(tmp_path / "tokenizer.json", text(3))
    assert tokenizer.encode(["red"])[0].tolist() == [[1, 0, 0]]
    with pytest.raises(PromptError, match=r"tokenizer\.json cannot express \(.*Missing \[UNK\] token.*\), expected"):
        tokenizer.encode(["blue"])


def test_a_regular_expression_that_explodes(tmp_path, capfd):
    """The package ends it after some tenths of a second, by a panic."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("^(a+)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PromptError, match=r"tokenizer\.json cannot express \(.*retry-limit"):
        PromptTokenizer(tmp_path / "tokenizer.json", text(3)).encode([40 * "a" + "!"])


def test_a_tokenizer_nested_without_end(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(PlanError, match=r"^tokenizer\.json: got no tokenizer"):
        PromptTokenizer(tmp_path / "tokenizer.json", text(3))


def test_a_tokenizer_without_end(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    os.truncate(tmp_path / "tokenizer.json", 40_000_000_000)
    with pytest.raises(PlanError, match=r"^tokenizer\.json: got more than 64 MB"):
        PromptTokenizer(tmp_path / "tokenizer.json", text(3))


class TestWithoutThePackage:
    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tokenizers", None)

    def test_a_word_level_tokenizer_needs_none(self, tiny_plan):
        assert PromptTokenizer(tiny_plan.tokenizer_file, text(5)).encode(["a red circle"])[0].tolist() == [
            [2, 3, 6, 0, 0]
        ]
        assert check_tokenizer(tiny_plan.tokenizer_file) == []

    def test_any_other_names_the_extra(self, tmp_path):
        file = tmp_path / "tokenizer.json"
        Tokenizer(models.BPE({"[PAD]": 0, "r": 1}, [])).save(str(file))
        line = (
            "tokenizer.json: got a tokenizer that is not word-level, and no package tokenizers, expected that package, "
            "which reads it; pip install 'videossm[tokenizers]'"
        )
        with pytest.raises(PlanError, match=f"^{re.escape(line)}$"):
            PromptTokenizer(file, text(5))
        assert [str(problem) for problem in check_tokenizer(file)] == [line]

    @pytest.mark.parametrize("content", ["", "no json"])
    def test_a_broken_file_is_no_tokenizer(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content)
        for read in (check_tokenizer, lambda file: PromptTokenizer(file, text(5))):
            with pytest.raises(PlanError, match=r"^tokenizer\.json: got no tokenizer"):
                read(tmp_path / "tokenizer.json")
