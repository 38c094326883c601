"""What whoever waits is told: only of long work, in a unit that fits."""

from __future__ import annotations

import pytest

from videossm.calib.progress import LONG_S, about, announce


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (31, "31 seconds"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (600, "10 minutes"),
        (5400, "2 hours"),
    ],
)
def test_about(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_only_long_work_is_announced() -> None:
    said: list[str] = []
    announce(said.append, "report", LONG_S - 1)
    assert said == []
    announce(said.append, "report", 240)
    assert said == ["report: about 4 minutes on this machine"]
