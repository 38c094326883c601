"""What a `shapes` prompt can say, as data: every other part of the demo reads it from here."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 40),
    "purple": (150, 50, 200),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "bounces", "stands still")
BACKGROUNDS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}


@dataclass(frozen=True)
class Prompt:
    """One description. `motion` and `background` may be None: the model then picks one."""

    colour: str
    shape: str
    motion: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        words = ["a", self.colour, self.shape]
        if self.motion:
            words.append(self.motion)
        if self.background:
            words += ["on", self.background]
        return " ".join(words)


def words() -> list[str]:
    """Every word of the vocabulary, in the order of the tokenizer's ids (after its special tokens)."""
    known = ["a", "an", "on", *COLOURS, *SHAPES]
    known += [word for motion in MOTIONS for word in motion.split()]
    known += BACKGROUNDS
    return list(dict.fromkeys(known))
