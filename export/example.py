"""The examples of an engine: nested lists and tuples of tensors and of other values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def tensors_in(example: Any) -> Iterator[Tensor]:
    """The tensors of an example, or of what a module returns, in order."""
    if isinstance(example, Tensor):
        yield example
    elif isinstance(example, list | tuple):
        for part in example:
            yield from tensors_in(part)


def with_tensors(example: Any, tensors: Iterator[Tensor]) -> Any:
    """The structure of `example` with `tensors` in the places of its own, in their order."""
    if isinstance(example, Tensor):
        return next(tensors)
    if isinstance(example, list | tuple):
        return type(example)(with_tensors(part, tensors) for part in example)
    return example


def distinct(example: Any) -> Any:
    """`example` with a tensor of its own in each place: of one that is given twice, torch.export makes one input."""
    seen: set[int] = set()
    own = []
    for tensor in tensors_in(example):
        own.append(torch.empty_like(tensor) if id(tensor) in seen else tensor)
        seen.add(id(tensor))
    return with_tensors(example, iter(own))
