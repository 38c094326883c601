"""What a batch makes: a row of JSON for each video."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from videossm.runtime.errors import PromptError, UserError, shown
from videossm.runtime.plan import Plan
from videossm.runtime.prompt import PromptTokenizer, open_tokenizer

DEFAULT_SECONDS = 5.0
_LONGEST_SECONDS = 7 * 24 * 3600.0
_MOST_PROMPTS = 10_000  # of a video
_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_MOST_CHUNKS = 10_000_000  # of a video; the names of its kept frames have as many digits


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TimedPrompt(_Part):
    """A prompt from `start_s` of the video on, that is from the first chunk that starts then or later."""

    start_s: Annotated[float, Field(ge=0, le=_LONGEST_SECONDS)]
    prompt: str


class Row(_Part):
    """One video. `id` names its file. `seconds`: 5 if not given, for a plan with an end up to that."""

    id: Annotated[str, Field(pattern=f"^{_ID}$")]
    prompt: str | Annotated[list[TimedPrompt], Field(min_length=1, max_length=_MOST_PROMPTS)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    seconds: Annotated[float, Field(gt=0, le=_LONGEST_SECONDS)] | None = None


@dataclass(frozen=True)
class Request:
    """A row in the terms of a plan. `prompts`: by the chunk that each starts with; none for a plan without text."""

    id: str
    seed: int
    chunks: int
    prompts: dict[int, str]
    digest: str  # of all that the video depends on, the plan included


@dataclass(frozen=True)
class BadRow:
    """A row that is not made. `id`: where it has one; `line`: its number in the file, from 1."""

    line: int
    id: str | None
    error: str


def read_rows(lines: Iterable[bytes], plan: Plan) -> Iterator[tuple[int, Request | BadRow]]:
    """Each line that is not blank, with its number; what is wrong with a row is told in it and ends nothing.

    Raises PlanError for a broken tokenizer.
    """
    tokenizer = open_tokenizer(plan)
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = None
        try:
            row = _row(line)
            request = _request(row, plan, tokenizer)
            if row.id in seen:
                raise UserError(f"id: got {row.id} a second time, expected each once; choose another")
            seen.add(row.id)
            yield number, request
        except UserError as error:
            yield number, BadRow(number, row.id if row else _id_of(line), str(error))


def _id_of(line: bytes) -> str | None:
    """That of a row with something else wrong."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("id"), str) and re.fullmatch(_ID, row["id"]):
            return str(row["id"])
    return None


def _row(line: bytes) -> Row:
    """Raises UserError that names the field."""
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        # Of the two forms of a prompt the deeper location is that of the one that was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]) if found["loc"][:1] == ("prompt",) else 0)
        loc = [str(part) for part in first["loc"] if part != "str" and not str(part).startswith("list[")]
        if loc == ["prompt"]:
            raise UserError(
                f"prompt: got {shown(first['input'])}, expected a text or up to {_MOST_PROMPTS} of "
                '{"start_s": .., "prompt": ..} in a list; change it'
            ) from error
        given = line.decode(errors="replace").strip() if first["type"] == "json_invalid" else first["input"]
        got = "nothing" if first["type"] == "missing" else shown(given)
        raise UserError(f"{'.'.join(loc) or 'row'}: got {got}, expected: {first['msg']}; change it") from error


def _request(row: Row, plan: Plan, tokenizer: PromptTokenizer | None) -> Request:
    stream = plan.manifest.stream
    chunks = stream.chunks  # of a clip
    if chunks is None or row.seconds is not None:
        chunks = min(stream.chunks_in(row.seconds or DEFAULT_SECONDS), chunks or _MOST_CHUNKS)
    prompts = _prompts(row, plan, chunks)
    if tokenizer is None and prompts:
        raise PromptError(f"prompt: got one for {plan.name}, which takes no text, expected none; leave it out")
    if tokenizer is not None and not prompts:
        raise PromptError("prompt: got none, expected a text or a list of timed ones; describe the video")
    for text in prompts.values():
        if tokenizer is not None:
            tokenizer.encode([text])
    content = json.dumps([plan.identity, row.seed, chunks, sorted(prompts.items())])
    return Request(row.id, row.seed, chunks, prompts, hashlib.sha256(content.encode()).hexdigest())


def _prompts(row: Row, plan: Plan, chunks: int) -> dict[int, str]:
    """By chunk. Raises UserError for a time that no chunk has to itself."""
    if row.prompt is None:
        return {}
    if isinstance(row.prompt, str):
        return {0: row.prompt}
    stream = plan.manifest.stream
    found: dict[int, str] = {}
    for timed in row.prompt:
        chunk = stream.chunk_at(timed.start_s)
        if chunk in found:
            start_s = stream.start_s(chunk)
            raise UserError(f"prompt: got two for the chunk at {start_s:g} s, expected one; move or drop one")
        if chunk >= chunks:
            last_s = stream.start_s(chunks - 1)
            raise UserError(f"prompt: got one at {timed.start_s:g} s, expected at most {last_s:g}, the last chunk's")
        found[chunk] = timed.prompt
    if 0 not in found:
        raise UserError(f"prompt: got none at 0 s, the first at {row.prompt[0].start_s:g}, expected one; add it")
    return found
