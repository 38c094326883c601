"""The ring against a list that says what the window should hold."""

from __future__ import annotations

import pytest

from videossm.runtime.manifest import Window
from videossm.runtime.window import EMPTY, Ring


def ring(chunk_frames, chunks, sink, positions="window"):
    return Ring(Window(chunks=chunks, sink=sink, chunk_frames=chunk_frames, positions=positions))


RINGS = {
    "demo": ring(3, 3, 1),
    "no-sink": ring(2, 4, 0),
    "long-sink": ring(1, 5, 3, "absolute"),
    "one": ring(3, 1, 0, "absolute"),
}


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS.keys())
def test_a_ring_equals_a_plain_list(ring):
    """A list in video order from which the oldest chunk behind the sink is dropped."""
    held: list[int] = []
    slots: dict[int, int] = {}
    for chunk in range(30):
        assert ring.held(chunk) == held, f"chunk {chunk}: what lies in the window"
        assert ring.evicts(chunk) == (len(held) == ring.window.chunks), f"chunk {chunk}: does it evict"
        if len(held) == ring.window.chunks:
            leaving = held.pop(ring.window.sink)
            assert slots.pop(ring.chunk_slot(chunk)) == leaving, f"chunk {chunk} takes the slot of {leaving}"
        assert ring.chunk_slot(chunk) not in slots, f"chunk {chunk}: its slot is free"
        slots[ring.chunk_slot(chunk)] = chunk
        held.append(chunk)
        assert sorted(slots.values()) == held


@pytest.mark.parametrize("positions", ["window", "absolute"])
def test_positions_of_a_rolled_window(positions):
    """Chunk 5 over a window of three: 0 is the sink, 3 lies in slot 1 and 4 in slot 2."""
    rolled = ring(2, 3, 1, positions)
    assert rolled.held(6) == [0, 4, 5]
    slots, frames = rolled.positions(6, rolled.held(6))
    assert [rolled.chunk_slot(chunk) for chunk in (0, 4, 5)] == [0, 2, 1]
    assert slots == ([0, 1, 10, 11, 8, 9] if positions == "absolute" else [0, 1, 4, 5, 2, 3])
    assert frames == ([12, 13] if positions == "absolute" else [6, 7])


def test_positions_while_the_window_is_recomputed():
    """Only what is already recomputed is visible; the rest is empty."""
    slots, frames = ring(2, 3, 1).positions(4, [0])
    assert slots == [0, 1, EMPTY, EMPTY, EMPTY, EMPTY]
    assert frames == [2, 3]


def test_first_chunk_sees_an_empty_window():
    slots, frames = RINGS["demo"].positions(0, [])
    assert slots == [EMPTY] * 9 and frames == [0, 1, 2]


def test_rho_is_the_evicted_share_of_what_was_seen():
    demo = RINGS["demo"]
    assert [demo.rho(chunk) for chunk in (0, 1, 3)] == [1e-3] * 3
    assert demo.rho(4) == pytest.approx(1 / 4)
    assert demo.rho(3000) == pytest.approx(2997 / 3000)
