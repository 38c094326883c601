"""Prompts from a file or of the plan's own kind; every one can be encoded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videossm.calib.prompts import default_prompts, read_prompts
from videossm.runtime import PromptError
from videossm.runtime.prompt import PromptTokenizer


def encode(plan, prompts):
    return PromptTokenizer(plan.tokenizer_file, plan.manifest.text).encode(prompts)


def test_one_prompt_a_line(test_plan, tmp_path):
    (tmp_path / "prompts.txt").write_text("red circle\n\n  blue square \r\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt", test_plan) == ("red circle", "blue square")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "without any, expected one a line; add some"),
        (b"\n  \n", "without any, expected one a line; add some"),
        (b"red circle\na zebra\n", "zebra"),
        (b"\xff\xfe", "which cannot be read .*expected a text file; check the path"),
        (None, "which cannot be read .*expected a text file; check the path"),
    ],
    ids=["empty", "blank lines", "unknown word", "no text", "no file"],
)
def test_files_without_usable_prompts(test_plan, tmp_path, content, message):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(PromptError, match=message):
        read_prompts(tmp_path / "prompts.txt", test_plan)


EXAMPLES = tuple(f"{colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square"))


def with_text(plan, **changes):
    """The plan with another `text`."""
    text = plan.manifest.text.model_copy(update=changes)
    return replace(plan, manifest=plan.manifest.model_copy(update={"text": text}))


@pytest.mark.parametrize("examples", [(), EXAMPLES], ids=["words", "examples"])
def test_default_prompts_can_be_encoded_and_follow_from_the_seed(test_plan, examples):
    plan = with_text(test_plan, examples=examples)
    prompts = default_prompts(plan, 16, 5)
    encode(plan, prompts)
    assert len(prompts) == 16
    assert default_prompts(plan, 16, 5) == prompts != default_prompts(plan, 16, 6)
    assert default_prompts(plan, 4, 5) == prompts[:4]


def test_default_prompts_are_the_plans_examples_each_before_any_comes_again(test_plan):
    prompts = default_prompts(with_text(test_plan, examples=EXAMPLES), 2 * len(EXAMPLES) + 1, 5)
    assert sorted(prompts[: len(EXAMPLES)]) == sorted(EXAMPLES)
    assert prompts[len(EXAMPLES) : -1] == prompts[: len(EXAMPLES)] and prompts[-1] == prompts[0]


def test_a_plan_without_text(test_plan, tmp_path):
    plan = replace(test_plan, manifest=test_plan.manifest.model_copy(update={"text": None}))
    assert default_prompts(plan, 2, 5) is None
    (tmp_path / "prompts.txt").write_text("red circle")
    with pytest.raises(PromptError, match=r"prompts\.txt for a plan without text, expected none; leave it out"):
        read_prompts(tmp_path / "prompts.txt", plan)
