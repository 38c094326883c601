"""A tiny plan, and what a batch makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_plan import Tiny, write_tiny_plan

from videossm.runtime.plan import Plan


@pytest.fixture(scope="session")
def tiny_plan(shared: Callable[[str, Callable[[Path], object]], Path]) -> Plan:
    def make(folder: Path) -> None:
        write_tiny_plan(folder / "tiny.plan", Tiny(), "tiny")

    return Plan.open(shared("batch", make) / "tiny.plan")
