"""Parts of a session on a GPU: items done one by one, and the file in which a part keeps what is done.

A part's file is written after each item, whole or not at all. So a session that is cut loses one item, and the next one
goes on behind it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One measurement. Its row has `passed`: None where nothing is judged."""

    name: str
    measure: Callable[[], Row]


@dataclass(frozen=True)
class Part:
    """`seconds`: about how long all items take. `item_limit_s`: after that, one counts as hung.

    `why_not`: what keeps the part from being done here, None if nothing does.
    """

    name: str
    question: str
    seconds: float
    items: Callable[[], Iterable[Item]]
    item_limit_s: float = 180
    why_not: Callable[[], str | None] = lambda: None


class PartFile:
    """What a part has done: `rows` by item, which one is `running`, and whether all are there."""

    def __init__(self, folder: Path, part: str) -> None:
        self.path = folder / f"{part}.json"
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.rows: dict[str, Row] = known.get("rows", {})
        self.running: str | None = known.get("running")
        self.complete: bool = known.get("complete", False)

    def write(self) -> None:
        beside = self.path.with_suffix(".part")
        values = {"complete": self.complete, "running": self.running, "rows": self.rows}
        beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)

    def give_up(self, why: str) -> None:
        """The item that was running has ended its process, or did not end: it is not tried again."""
        if self.running is not None and self.running not in self.rows:
            self.rows[self.running] = {"failed": why, "passed": None}
        self.running = None
        self.write()


def run_part(part: Part, folder: Path, until: float) -> bool:
    """Does the items that are not in the part's file yet, none after the time `until` of perf_counter; True if all are
    there."""
    file = PartFile(folder, part.name)
    for item in part.items():
        if item.name in file.rows:
            continue
        if perf_counter() >= until:
            return False
        file.running = item.name
        file.write()
        started = perf_counter()
        row = item.measure()
        file.rows[item.name], file.running = row | {"seconds": perf_counter() - started}, None
        file.write()
    file.complete = True
    file.write()
    return True
