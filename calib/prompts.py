"""Prompts to calibrate and to report on: the user's, or such as the model was made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from videossm.runtime import Plan, PromptError
from videossm.runtime.prompt import PromptTokenizer

WORDS = 5  # of a prompt for a model that nothing is known of


def read_prompts(file: Path, plan: Plan) -> tuple[str, ...]:
    """One prompt a line, blank lines left out.

    Raises PromptError for none, for one that the plan cannot express, and for a plan without text.
    """
    if plan.manifest.text is None:
        raise PromptError(f"prompts: got {file} for a plan without text, expected none; leave it out")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"prompts: got {file}, which cannot be read ({error}), expected a text file; check the path"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise PromptError(f"prompts: got {file} without any, expected one a line; add some")
    PromptTokenizer(plan.tokenizer_file, plan.manifest.text).encode(prompts)
    return prompts


def default_prompts(plan: Plan, count: int, seed: int) -> tuple[str, ...] | None:
    """`count` prompts: the plan's own examples, or else words of its tokenizer. None for a plan without text."""
    text, rng = plan.manifest.text, np.random.default_rng(seed)
    if text is None:
        return None
    if text.examples:
        order = rng.permutation(len(text.examples))
        return tuple(text.examples[order[i % len(order)]] for i in range(count))
    words = PromptTokenizer(plan.tokenizer_file, text).words()
    return tuple(" ".join(rng.choice(words, min(WORDS, text.length))) for _ in range(count))
