"""Counter-based noise: Philox4x32-10 and Box-Muller, the same numbers on every processor, in NumPy and in C++.

A number depends on its seed, chunk, draw and place only, so a resumed stream, a fork and a stream at any place of a
batch have the same noise. Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), and is tested against the known answers of its authors' Random123.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from videossm.runtime.elementary import cos_sin, log
from videossm.runtime.errors import UserError

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 of `counter` [4, n] under `key` (two 32-bit words): random words [4, n]."""
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _32) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> _32) ^ c3 ^ np.uint64(k1)
        c1 = product1 & _LOW
        c3 = product0 & _LOW
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def noise(seed: int, chunk: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 of `shape` (one stream of a batch, C order).

    `seed` 0 <= seed < 2**64. `draw` 0 is the chunk's first noise; the fresh noise of pass k is draw k + 1. Block b of
    four numbers comes from the counter (b, draw, chunk low, chunk high).
    """
    size = int(np.prod(shape))
    blocks = -(-size // 4)
    counter = np.empty((4, blocks), np.uint32)
    counter[0] = np.arange(blocks, dtype=np.uint32)
    counter[1] = draw
    counter[2] = chunk & 0xFFFFFFFF
    counter[3] = chunk >> 32
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * log(uniform[0::2]))  # [2, n]: one of each pair
    cosine, sine = cos_sin(uniform[1::2])
    normal = np.empty((blocks, 4), np.float32)
    normal[:, 0::2] = (radius * cosine).T
    normal[:, 1::2] = (radius * sine).T
    return normal.reshape(-1)[:size].reshape(shape)


def stream_seeds(seed: SupportsIndex | Sequence[SupportsIndex], batch: int) -> list[int]:
    """The seed of each stream of a batch; a single seed s stands for s, s + 1, .. Raises UserError."""
    try:
        if isinstance(seed, Iterable):
            seeds = [operator.index(value) for value in seed]
        else:
            seeds = [operator.index(seed) + stream for stream in range(batch)]
    except TypeError as error:
        raise UserError(f"seed: got {seed!r}, expected whole numbers; choose others") from error
    if len(seeds) != batch:
        raise UserError(f"seed: got {len(seeds)}, expected {batch}, the plan's batch; add or drop some")
    for value in seeds:
        if not 0 <= value < 1 << 64:
            raise UserError(f"seed: got {value}, expected 0 or more and less than 2**64; choose another")
    return seeds
