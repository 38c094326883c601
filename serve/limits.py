"""What a server lets its visitors take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`idle_s`: how long a stream that nobody watches is kept. `ahead_chunks`: for a viewer, before it misses some."""

    streams: int = 4
    viewers: int = 32  # of a stream
    prompt_characters: int = 1000
    body_bytes: int = 64 << 10  # of a request, but for a state
    idle_s: float = 300.0
    ahead_chunks: int = 2
    history: int = 1000  # prompts of a stream that are remembered

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            assert value > 0, f"{name}: got {value}, expected more than 0"
