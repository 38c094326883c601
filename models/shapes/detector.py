"""Measures what a video of the shapes world shows: colour, shape, motion, background, without a network.

Hue, not brightness, separates object from background: the backgrounds are gray levels, and mixing a colour
with gray (anti-aliasing, blur) keeps its hue and scales its chroma. Per frame the pixels of at least half
of a known colour's chroma are found, the connected part around the densest spot is the object, and its
shape is the template of the same area and centre of mass that overlaps it best. All geometry is on the
torus, because a `moves *` wraps around the edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videossm.models.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES
from videossm.models.shapes.world import DIAMETERS, DIRECTIONS, SIZE

# Of a known colour's chroma, above which a pixel belongs to the object: the outline of a blurred edge.
COVERAGE = 0.5
# Pixels of an object: from half the world's smallest triangle to 1.5 times its largest square.
AREAS = (0.5 * DIAMETERS[0] ** 2 / 2, 1.5 * DIAMETERS[1] ** 2)
# Of all saturated pixels of a frame, the least share of the object; below it, there are ghosts beside it.
DOMINANCE = 0.6
# Overlap (intersection over union) with the best template, below which an object has no known shape. Ground
# truth under blur (sigma 1.5) and noise (sigma 12) stays above 0.78, through an autoencoder of 35 dB above 0.76
# (its median is 0.97); halves of circles and squares reach 0.67.
OVERLAP = 0.75
# Largest difference of any channel, of 255, to a known background.
BACKGROUND_ERROR = 48
# Radius in pixels of the square in which the densest spot of an object is looked for.
DENSITY_RADIUS = 4

LAG = 4  # frames between the two positions of a velocity; averages the jitter of the outline
STILL = 3.0  # pixels from the median position: nearer stands still
MOVING = 0.8  # pixels a frame: faster moves; the world's slowest has 1.4
CONE = np.tan(np.radians(25))  # off the axis of a `moves *`; a bounce is 35 degrees off at least
STEADY = 0.8  # share of the velocities or positions that must agree
TURNED = 4.0  # pixels travelled both ways along an axis that make a reflection

# The opponent plane: gray is (0, 0), the angle is the hue, the length is the chroma.
_OPPONENT = np.array([[1, -0.5, -0.5], [0, np.sqrt(0.75), -np.sqrt(0.75)]], np.float32).T  # [RGB, 2]
_CHROMA = np.array(list(COLOURS.values()), np.float32) @ _OPPONENT  # [6, 2]
_LENGTH = np.linalg.norm(_CHROMA, axis=1)  # [6]


@dataclass(frozen=True)
class Observation:
    """What a clip of T frames shows. None stands for nothing known."""

    background: str | None
    colour: str | None  # of most frames in which the object is present; None if it is present in less than half
    shape: str | None  # likewise
    motion: str | None
    present: np.ndarray  # bool [T]
    colours: tuple[str | None, ...]  # [T], None where the object is absent or no colour covers most of it
    shapes: tuple[str | None, ...]  # [T], None where the object is absent or like none of the shapes
    centres: np.ndarray  # float [T, 2], (x, y) in pixels within the frame; NaN where absent
    areas: np.ndarray  # int [T], pixels of the object; of whatever was taken for it where absent


def observe(frames: np.ndarray) -> Observation:
    """The observation of one video, uint8 [T, H, W, 3]. Raises ValueError for anything else.

    Frames of half as many pixels as the world's or fewer are enlarged first; positions are in the larger ones.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames: got {frames.dtype} {list(frames.shape)}, expected uint8 [T, H, W, 3]; convert them")
    for axis in (1, 2):
        frames = _enlarged(frames, axis, SIZE // frames.shape[axis])
    nearest, saturated = _saturated(frames)
    body = _densest_part(saturated)
    areas = body.sum((1, 2))
    present = (areas >= AREAS[0]) & (areas <= AREAS[1]) & (areas >= DOMINANCE * saturated.sum((1, 2)))
    centres, dx, dy = _centre(body, areas)
    colours = _named(tuple(COLOURS), _dominant_colour(nearest, body, areas), present)
    shapes = _named(SHAPES, _best_shape(body, dx, dy, areas), present)
    centres[~present] = np.nan
    return Observation(
        background=_background(frames),
        colour=_most_common(colours, present),
        shape=_most_common(shapes, present),
        motion=_motion(centres, present, frames.shape[2], frames.shape[1]),
        present=present,
        colours=colours,
        shapes=shapes,
        centres=centres,
        areas=areas,
    )


def _enlarged(frames: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """`factor` times as many pixels along `axis`, interpolated linearly; the outermost half pixels are repeated."""
    if factor < 2:
        return frames
    length = frames.shape[axis]
    place = ((np.arange(length * factor) + 0.5) / factor - 0.5).clip(0, length - 1).astype(np.float32)
    low = place.astype(np.int64)
    share = (place - low).reshape([-1 if each == axis else 1 for each in range(frames.ndim)])
    below, above = frames.take(low, axis), frames.take(np.minimum(low + 1, length - 1), axis)
    return np.round(below * (1 - share) + above * share).astype(np.uint8)


def _saturated(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the colours by hue, int [T, H, W], and where its chroma is reached, bool [T, H, W]."""
    along = frames.astype(np.float32) @ (_OPPONENT @ (_CHROMA / _LENGTH[:, None]).T)  # [T, H, W, 6]
    nearest = along.argmax(-1)
    return nearest, along.max(-1) >= COVERAGE * _LENGTH[nearest]


def _densest_part(mask: np.ndarray) -> np.ndarray:
    """Of `mask` [T, H, W], the connected part that holds the densest spot of each frame."""
    density = mask.astype(np.int16)
    reach = range(-DENSITY_RADIUS, DENSITY_RADIUS + 1)
    for axis in (1, 2):
        density = np.sum([np.roll(density, shift, axis) for shift in reach], axis=0, dtype=np.int16)
    part = np.zeros_like(mask)
    spot = np.where(mask, density, 0).reshape(len(mask), -1).argmax(1)
    part.reshape(len(mask), -1)[np.arange(len(mask)), spot] = True
    part &= mask
    while True:
        grown = part.copy()
        for axis in (1, 2):
            for shift in (-1, 1):
                grown |= np.roll(part, shift, axis)
        grown &= mask
        if (grown == part).all():
            return part
        part = grown


def _centre(body: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre of mass [T, 2] as (x, y), and the pixels' offsets from it, dx [T, 1, W] and dy [T, H, 1]."""
    counts = np.maximum(areas, 1)
    centres, offsets = np.empty((len(body), 2)), []
    for axis, profile in enumerate((body.sum(1), body.sum(2))):  # along x, along y
        size = profile.shape[1]
        places = np.arange(size) + 0.5
        angle = np.angle(profile @ np.exp(2j * np.pi * places / size)) * size / (2 * np.pi)
        offset = _shorter_way(places - angle[:, None], size)
        # The circular mean is where to cut the torus open; cut there, the plain mean is exact.
        shift = (profile * offset).sum(1) / counts
        centres[:, axis] = (angle + shift) % size
        offsets.append(offset - shift[:, None])
    return centres, offsets[0][:, None, :], offsets[1][:, :, None]


def _shorter_way(difference: np.ndarray, size: float | np.ndarray) -> np.ndarray:
    return (difference + size / 2) % size - size / 2


def _dominant_colour(nearest: np.ndarray, body: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The index of the colour of most of the body's pixels, [T]; -1 where none has at least half."""
    votes = np.stack([(body & (nearest == index)).sum((1, 2)) for index in range(len(COLOURS))], 1)
    return np.where(votes.max(1) >= areas / 2, votes.argmax(1), -1)


def _best_shape(body: np.ndarray, dx: np.ndarray, dy: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The index of the shape whose template overlaps the body best, [T]; -1 where none does well."""
    area = areas[:, None, None]
    circle = dx**2 + dy**2 <= area / np.pi
    square = np.maximum(abs(dx), abs(dy)) <= np.sqrt(area) / 2
    # As wide as high; the centre of mass is a third of the height above the base.
    height = np.sqrt(2 * area)
    below_apex = dy + height * 2 / 3
    triangle = (2 * abs(dx) <= below_apex) & (below_apex <= height)
    templates = {"circle": circle, "square": square, "triangle": triangle}
    overlaps = np.stack([_overlap(body, templates[shape]) for shape in SHAPES], 1)
    return np.where(overlaps.max(1) >= OVERLAP, overlaps.argmax(1), -1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union per frame, [T]."""
    return (a & b).sum((1, 2)) / np.maximum((a | b).sum((1, 2)), 1)


def _motion(centres: np.ndarray, present: np.ndarray, width: int, height: int) -> str | None:
    """The motion of a track of centres [T, 2]; None if it is none of the six or the object is mostly absent."""
    if present.mean() < 0.5 or present.sum() <= 2 * LAG:
        return None
    size = np.array([width, height])
    track = _unwrapped(centres, present, size)
    strayed = np.linalg.norm(track - np.median(track, axis=0), axis=1)
    if (strayed <= STILL).mean() >= STEADY:
        return "stands still"
    velocity = (track[LAG:] - track[:-LAG]) / LAG
    for motion, direction in DIRECTIONS.items():
        along, across = velocity @ direction, abs(velocity @ direction[::-1])
        if ((along >= MOVING) & (across <= CONE * along)).mean() >= STEADY:
            return motion
    turned = np.minimum(velocity.clip(min=0).sum(0), (-velocity).clip(min=0).sum(0)) >= TURNED
    inside = ((track >= 0) & (track <= size)).all()
    if (abs(velocity).mean(0) >= MOVING).all() and turned.any() and inside:
        return "bounces"
    return None


def _unwrapped(centres: np.ndarray, present: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The track [N, 2] from the first to the last sight, across the edges, gaps filled by straight lines."""
    seen = np.flatnonzero(present)
    steps = _shorter_way(np.diff(centres[seen], axis=0), size)
    track = centres[seen[0]] + np.concatenate([np.zeros((1, 2)), steps.cumsum(0)])
    frames = np.arange(seen[0], seen[-1] + 1)
    return np.stack([np.interp(frames, seen, track[:, axis]) for axis in (0, 1)], 1)


def _background(frames: np.ndarray) -> str | None:
    """The known background nearest to the median pixel: an object covers a seventh of a frame at most."""
    median = np.median(frames.reshape(-1, 3), axis=0)
    errors = {name: abs(median - value).max() for name, value in BACKGROUNDS.items()}
    nearest = min(errors, key=errors.__getitem__)
    return nearest if errors[nearest] <= BACKGROUND_ERROR else None


def _named(names: Sequence[str], indices: np.ndarray, present: np.ndarray) -> tuple[str | None, ...]:
    return tuple(names[i] if here and i >= 0 else None for i, here in zip(indices, present, strict=True))


def _most_common(seen: Sequence[str | None], present: np.ndarray) -> str | None:
    if present.mean() < 0.5:
        return None
    return Counter(value for value, here in zip(seen, present, strict=True) if here).most_common(1)[0][0]
