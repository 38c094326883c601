"""The simulated world behind the demo model: one shape, a plain background, one of six motions.

Positions are in pixels of a frame of `size` x `size`, (x, y) with y downwards; time is in frames.
`moves *` wraps around the edges, `bounces` is reflected by them, `stands still` stays inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from videossm.models.shapes.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Prompt

SIZE = 64  # pixels across of a frame, in which all lengths below are given
FPS = 8.0  # frames a second at which the motions below look right
DIAMETERS = (18.0, 24.0)  # pixels across, in a frame of 64 pixels
SPEED = (1.8, 2.2)  # pixels a frame along the direction of a `moves *`
BOUNCE_SPEED = (1.4, 2.0)  # pixels a frame along each axis: within 5 s both axes have met an edge
EXAMPLES = 64  # prompts drawn for a plan, of which equal ones count once
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True)
class World:
    """The state of a scene at one frame, enough to render it and every frame after it."""

    prompt: Prompt  # complete: motion and background are set
    x: float
    y: float
    vx: float
    vy: float
    diameter: float
    size: int = SIZE

    @staticmethod
    def sample(prompt: Prompt, rng: np.random.Generator, size: int = SIZE) -> World:
        """A random scene that `prompt` describes; what the prompt leaves out is drawn too."""
        motion = prompt.motion or str(rng.choice(MOTIONS))
        background = prompt.background or str(rng.choice(list(BACKGROUNDS)))
        diameter = rng.uniform(*DIAMETERS)
        wraps = motion in DIRECTIONS
        low, high = (0.0, float(size)) if wraps else (diameter / 2, size - diameter / 2)
        x, y = rng.uniform(low, high, 2)
        if wraps:
            # Across the direction of travel the whole shape stays visible.
            margin = (diameter / 2, size - diameter / 2)
            x, y = (x, rng.uniform(*margin)) if DIRECTIONS[motion][0] else (rng.uniform(*margin), y)
            vx, vy = np.array(DIRECTIONS[motion]) * rng.uniform(*SPEED)
        elif motion == "bounces":
            vx, vy = rng.uniform(*BOUNCE_SPEED, 2) * rng.choice([-1, 1], 2)
        else:
            vx = vy = 0.0
        complete = replace(prompt, motion=motion, background=background)
        return World(complete, float(x), float(y), float(vx), float(vy), float(diameter), size)

    def step(self) -> World:
        """The scene one frame later."""
        x, y, vx, vy = self.x + self.vx, self.y + self.vy, self.vx, self.vy
        if self.prompt.motion == "bounces":
            x, vx = _reflect(x, vx, self.diameter / 2, self.size - self.diameter / 2)
            y, vy = _reflect(y, vy, self.diameter / 2, self.size - self.diameter / 2)
        else:
            x, y = x % self.size, y % self.size
        return replace(self, x=x, y=y, vx=vx, vy=vy)


def random_prompt(rng: np.random.Generator, leave_out: float = 0.1) -> Prompt:
    """A prompt drawn evenly; motion and background are each left out with probability `leave_out`."""
    return Prompt(
        colour=str(rng.choice(list(COLOURS))),
        shape=str(rng.choice(SHAPES)),
        motion=None if rng.random() < leave_out else str(rng.choice(MOTIONS)),
        background=None if rng.random() < leave_out else str(rng.choice(list(BACKGROUNDS))),
    )


def example_prompts() -> list[str]:
    """Prompts that plans of models of this world carry, to calibrate on: always the same ones."""
    rng = np.random.default_rng(0)
    return list(dict.fromkeys(str(random_prompt(rng)) for _ in range(EXAMPLES)))


def render(world: World, frames: int) -> np.ndarray:
    """`frames` frames from `world` on: uint8 [T, H, W, 3], edges anti-aliased."""
    video = np.empty((frames, world.size, world.size, 3), np.uint8)
    for frame in video:
        frame[:] = _draw(world)
        world = world.step()
    return video


def _draw(world: World) -> np.ndarray:
    centres = np.arange(world.size, dtype=np.float32) + 0.5
    half = world.size / 2
    # The shorter way around the torus; for scenes that never cross an edge it is the plain difference.
    dx = (centres[None, :] - np.float32(world.x) + half) % world.size - half
    dy = (centres[:, None] - np.float32(world.y) + half) % world.size - half
    distance = _signed_distance(world.prompt.shape, dx, dy, world.diameter / 2)
    coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    colour = np.array(COLOURS[world.prompt.colour], np.float32)
    background = np.array(BACKGROUNDS[world.prompt.background or "black"], np.float32)
    return np.round(background + coverage * (colour - background)).astype(np.uint8)


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; every shape fills a box of 2 x radius."""
    if shape == "circle":
        return np.sqrt(dx**2 + dy**2) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - radius
    # An upright triangle: apex at the top, base at the bottom; its sides have slope 2.
    side = (2 * np.abs(dx) - (dy + radius)) / np.sqrt(5.0)
    return np.maximum(side, np.abs(dy) - radius)


def _reflect(position: float, velocity: float, low: float, high: float) -> tuple[float, float]:
    if position < low:
        return 2 * low - position, -velocity
    if position > high:
        return 2 * high - position, -velocity
    return position, velocity
