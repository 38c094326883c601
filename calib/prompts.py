"""Prompts to calibrate and to report on: the user's, or such as the model was made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from videossm.models.shapes.world import random_prompt
from videossm.runtime import Plan, PromptError
from videossm.runtime.prompt import PromptTokenizer

WORDS = 5  # of a prompt for a model that nothing is known of


def read_prompts(file: Path, plan: Plan) -> tuple[str, ...]:
    """One prompt a line, blank lines left out. Raises PromptError for none, or one that the plan cannot express."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"prompts: got {file}, which cannot be read ({error}), expected a text file; check the path"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise PromptError(f"prompts: got {file} without any, expected one a line; add some")
    PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length).encode(prompts)
    return prompts


def default_prompts(plan: Plan, count: int, seed: int) -> tuple[str, ...]:
    """`count` prompts of the plan's own kind: of the shapes world, or else words of its tokenizer."""
    rng = np.random.default_rng(seed)
    if plan.name == "shapes":
        return tuple(str(random_prompt(rng)) for _ in range(count))
    words = PromptTokenizer(plan.tokenizer_file, plan.manifest.text.length).words()
    length = min(WORDS, plan.manifest.text.length)
    return tuple(" ".join(rng.choice(words, length)) for _ in range(count))
