"""Philox against Random123's known answers, and the noise against a draw written out number by number."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from videossm.runtime.noise import noise, philox4x32

# kat_vectors of Random123 1.14, philox4x32 10: counter, key, answer
KNOWN = {
    "zeros": ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN.values(), ids=KNOWN.keys())
def test_philox_known_answers(counter, key, answer):
    words = philox4x32(np.array(counter, np.uint32)[:, None], key)
    assert [hex(word) for word in words[:, 0]] == [hex(word) for word in answer]


def plain_noise(seed, chunk, step, index):
    """Number `index` of a draw, by the formula."""
    counter = np.array([[index // 4], [step], [chunk & 0xFFFFFFFF], [chunk >> 32]], np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[:, 0]
    first, second = ((int(word) + 0.5) * 2.0**-32 for word in words[index % 4 // 2 * 2 :][:2])
    turn = math.cos if index % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(first)) * turn(2 * math.pi * second)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**64 - 1])
@pytest.mark.parametrize("chunk", [0, 9, 2**33 + 1])
def test_noise_is_box_muller_of_philox(seed, chunk):
    got = noise(seed, chunk, 3, (3, 5, 7))
    assert got.dtype == np.float32 and got.shape == (3, 5, 7)
    expected = [plain_noise(seed, chunk, 3, index) for index in range(3 * 5 * 7)]
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-6, atol=1e-7)


def test_draws_have_the_same_bits_on_every_processor_and_in_every_version():
    draw = noise(7, 3, 1, (100_000,)).astype("<f4").tobytes()
    assert hashlib.sha256(draw).hexdigest() == "b1ea759a1bcd5297d12be2773cdd415010290faa04cf1d8c238b0fca802cab06"


def test_draws_differ_by_seed_chunk_and_step():
    draws = [noise(*key, (4,)).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)]]
    assert len(set(draws)) == len(draws)


def test_a_shorter_draw_is_the_start_of_a_longer_one():
    np.testing.assert_array_equal(noise(5, 6, 7, (13,)), noise(5, 6, 7, (64,))[:13])


def test_draws_are_standard_normal():
    values = noise(3, 1, 0, (200_000,)).astype(np.float64)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    assert np.isfinite(values).all(), "u is never 0, so no logarithm of 0"
    assert abs((np.abs(values) < 1).mean() - 0.6827) < 0.005
