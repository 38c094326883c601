"""What goes over the wire, as validated models; the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Seed = Annotated[int, Field(ge=0, lt=2**64)]
Prompts = str | Annotated[list[str], Field(min_length=1, max_length=4096)]
_PROMPTS = "A text, or one for each picture of a plan with a batch. Words that the model does not know are refused."


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NewStream(_Model):
    """`prompt` may be missing for a plan without text only."""

    prompt: Annotated[Prompts | None, Field(description=_PROMPTS)] = None
    seed: Seed = 0


class NewPrompt(_Model):
    prompt: Annotated[Prompts, Field(description=_PROMPTS)]


class Pause(_Model):
    paused: bool


class Fork(_Model):
    """What the second stream does otherwise, from its next chunk on."""

    prompt: Annotated[Prompts | None, Field(description=_PROMPTS)] = None
    seed: Seed | None = None


class PromptMessage(NewPrompt):
    type: Literal["prompt"]


class PauseMessage(Pause):
    type: Literal["pause"]


MESSAGE: TypeAdapter[PromptMessage | PauseMessage] = TypeAdapter(
    Annotated[PromptMessage | PauseMessage, Field(discriminator="type")]
)


class PastPrompt(_Model):
    start_s: float
    prompts: list[str]


class StreamInfo(_Model):
    """`problem`: why it cannot go on; null if it can. `next_start_s`: of the next chunk in the video."""

    id: str
    prompts: list[str]
    seeds: list[Seed]
    paused: bool
    ended: bool
    problem: str | None
    next_chunk: int
    next_start_s: float
    viewers: int
    history: list[PastPrompt]


class Streams(_Model):
    streams: list[StreamInfo]


class PlanInfo(_Model):
    """`width`: of all pictures of a batch side by side. `h264`: whether the frames' sides are even."""

    name: str
    precision: str
    device: str
    width: int
    height: int
    fps: float
    batch: int
    chunk_frames: int
    clip_chunks: int | None
    takes_text: bool
    examples: list[str]
    h264: bool
    most_streams: int
    most_prompt_characters: int


class Health(_Model):
    status: Literal["ok"]


class Error(_Model):
    """`error`: what, got, expected, and what to do."""

    error: str
