"""The ring against a list that says what the window should hold."""

from __future__ import annotations

import pytest

from videossm.runtime.window import EMPTY, Ring

RINGS = {
    "demo": Ring(chunk_frames=3, window=3, sink=1, absolute=False),
    "no-sink": Ring(chunk_frames=2, window=4, sink=0, absolute=False),
    "long-sink": Ring(chunk_frames=1, window=5, sink=3, absolute=True),
    "one": Ring(chunk_frames=3, window=1, sink=0, absolute=True),
}


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS.keys())
def test_ring_equals_a_plain_list(ring):
    """A list in video order from which the oldest chunk behind the sink is dropped."""
    held: list[int] = []
    slots: dict[int, int] = {}
    for chunk in range(30):
        assert ring.held(chunk) == held, f"chunk {chunk}: what lies in the window"
        assert ring.evicts(chunk) == (len(held) == ring.window), f"chunk {chunk}: does it evict"
        if len(held) == ring.window:
            leaving = held.pop(ring.sink)
            assert slots.pop(ring.chunk_slot(chunk)) == leaving, f"chunk {chunk} takes the slot of {leaving}"
        assert ring.chunk_slot(chunk) not in slots, f"chunk {chunk}: its slot is free"
        slots[ring.chunk_slot(chunk)] = chunk
        held.append(chunk)
        assert sorted(slots.values()) == held


@pytest.mark.parametrize("absolute", [False, True], ids=["rank", "absolute"])
def test_positions_of_a_rolled_window(absolute):
    """Chunk 5 over a window of three: 0 is the sink, 3 lies in slot 1 and 4 in slot 2."""
    ring = Ring(chunk_frames=2, window=3, sink=1, absolute=absolute)
    assert ring.held(6) == [0, 4, 5]
    slots, frames = ring.positions(6, ring.held(6))
    assert [ring.chunk_slot(chunk) for chunk in (0, 4, 5)] == [0, 2, 1]
    assert slots == ([0, 1, 10, 11, 8, 9] if absolute else [0, 1, 4, 5, 2, 3])
    assert frames == ([12, 13] if absolute else [6, 7])


def test_positions_while_the_window_is_recomputed():
    """Only what is already recomputed is visible; the rest is empty."""
    ring = Ring(chunk_frames=2, window=3, sink=1, absolute=False)
    slots, frames = ring.positions(4, [0])
    assert slots == [0, 1, EMPTY, EMPTY, EMPTY, EMPTY]
    assert frames == [2, 3]


def test_first_chunk_sees_an_empty_window():
    slots, frames = RINGS["demo"].positions(0, [])
    assert slots == [EMPTY] * 9 and frames == [0, 1, 2]


def test_rho_is_the_evicted_share_of_what_was_seen():
    ring = RINGS["demo"]
    assert [ring.rho(chunk) for chunk in (0, 1, 3)] == [1e-3] * 3
    assert ring.rho(4) == pytest.approx(1 / 4)
    assert ring.rho(3000) == pytest.approx(2997 / 3000)
