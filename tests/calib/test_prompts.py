"""Prompts from a file or of the plan's own kind; every one can be encoded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videossm.calib.prompts import default_prompts, read_prompts
from videossm.runtime import PromptError
from videossm.runtime.prompt import PromptTokenizer


def encode(plan, prompts):
    return PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length).encode(prompts)


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


@pytest.mark.parametrize("name", ["test", "shapes"])
def test_default_prompts_can_be_encoded_and_follow_from_the_seed(test_plan, name):
    plan = replace(test_plan, manifest=test_plan.manifest.model_copy(update={"name": name}))
    prompts = default_prompts(plan, 16, 5)
    encode(plan, prompts)
    assert len(prompts) == 16 and len(set(prompts)) > 8
    assert default_prompts(plan, 16, 5) == prompts != default_prompts(plan, 16, 6)
    assert default_prompts(plan, 4, 5) == prompts[:4]


def test_default_prompts_of_shapes_are_of_its_world(test_plan):
    plan = replace(test_plan, manifest=test_plan.manifest.model_copy(update={"name": "shapes"}))
    for prompt in default_prompts(plan, 16, 5):
        assert any(shape in prompt for shape in ("circle", "square", "triangle"))
