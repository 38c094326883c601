"""benchmarks/gpu_session.py without a GPU: what it lists, writes after each item, goes on with, and gives up."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOREVER = float("inf")


@pytest.fixture
def session() -> ModuleType:
    return importlib.import_module("gpu_session")


@pytest.fixture
def kept() -> ModuleType:
    return importlib.import_module("gpu_session_parts")


def part_of(kept: ModuleType, *names: str, measure: Callable[[str], dict[str, object]], **more: object) -> object:
    """A part whose items call `measure` with their names."""

    def items() -> Iterator[object]:
        for name in names:
            yield kept.Item(name, lambda name=name: measure(name))

    return kept.Part("fake", "What is it?", 1, items, **more)


def test_each_item_is_written_before_the_next_begins(kept: ModuleType, tmp_path: Path) -> None:
    seen = []

    def measure(name: str) -> dict[str, object]:
        values = json.loads((tmp_path / "fake.json").read_text(encoding="utf-8"))
        seen.append((list(values["rows"]), values["running"], values["complete"]))
        return {"value": name, "passed": None}

    assert kept.run_part(part_of(kept, "a", "b", measure=measure), tmp_path, FOREVER)
    assert seen == [([], "a", False), (["a"], "b", False)]
    file = kept.PartFile(tmp_path, "fake")
    assert file.complete and file.running is None and file.rows["b"]["value"] == "b" and file.rows["b"]["seconds"] >= 0


def test_a_part_that_was_cut_goes_on(kept: ModuleType, tmp_path: Path) -> None:
    """What was running when all was cut is done again; what was done is not."""
    done: list[str] = []

    def measure(name: str) -> dict[str, object]:
        if name == "b" and "b" not in done:
            done.append(name)
            raise KeyboardInterrupt
        done.append(name)
        return {"passed": True}

    part = part_of(kept, "a", "b", "c", measure=measure)
    with pytest.raises(KeyboardInterrupt):
        kept.run_part(part, tmp_path, FOREVER)
    assert kept.PartFile(tmp_path, "fake").running == "b"
    assert kept.run_part(part, tmp_path, FOREVER)
    assert done == ["a", "b", "b", "c"]


def test_no_item_begins_after_its_time(kept: ModuleType, tmp_path: Path) -> None:
    part = part_of(kept, "a", measure=lambda name: {"passed": True})
    assert not kept.run_part(part, tmp_path, time.perf_counter() - 1)
    assert kept.PartFile(tmp_path, "fake").rows == {}


CHILD = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
values = json.loads(path.read_text()) if path.exists() else {"rows": {}}
for name in ("a", "b", "c"):
    if name in values["rows"]:
        continue
    path.write_text(json.dumps({"rows": values["rows"], "running": name, "complete": False}))
    if name == "b":
        FAULT
    values["rows"][name] = {"passed": True}
path.write_text(json.dumps({"rows": values["rows"], "running": None, "complete": True}))
"""


def test_a_part_that_cannot_be_done_here_is_left_out(
    session: ModuleType, kept: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = part_of(kept, "a", measure=lambda name: {}, why_not=lambda: "no compiler")
    session.run([part], tmp_path, tmp_path, 60)
    assert capsys.readouterr().err == "fake: left out: no compiler\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "limit_s", "said"),
    [("sys.exit(9)", 60, "its process ended with exit code 9"), ("time.sleep(600)", 6, "got no end within 6 s")],
    ids=["dies", "hangs"],
)
def test_an_item_that_dies_or_hangs_is_given_up(
    session: ModuleType,
    kept: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    limit_s: float,
    said: str,
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("FAULT", fault), encoding="utf-8")
    part = part_of(kept, measure=lambda name: {}, item_limit_s=limit_s)
    run_child = session.run_child
    monkeypatch.setattr(session, "POLL_S", 0.05)
    monkeypatch.setattr(
        session,
        "run_child",
        lambda command, part, out: run_child([sys.executable, str(script), str(out / "fake.json")], part, out),
    )
    session.run([part], tmp_path, tmp_path, 60)
    file = kept.PartFile(tmp_path, "fake")
    assert file.complete and file.rows["b"] == {"failed": said, "passed": None}
    assert file.rows["a"] == file.rows["c"] == {"passed": True}


def run_script(session: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", *map(str, words)])
    code: int = session.main()
    return code


def test_a_dry_run_lists_the_parts_and_what_is_lacking(
    session: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.import_module("gpu_scans").torch.cuda, "is_available", lambda: False)
    assert run_script(session, monkeypatch, "--dry-run", "--out", tmp_path, "--plans", tmp_path) == 0
    out = capsys.readouterr().out
    for part in session.parts(tmp_path, tmp_path):
        assert f"| {part.name} | {part.question} | {part.seconds:.0f} | 0 |" in out
    assert "lacks shapes-fp32, " in out and "here without the scans: " in out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_is_refused(session: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(session, monkeypatch, "--only", "nothing")
    assert ended.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    session: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_script(session, monkeypatch, "--out", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert said.startswith("device: got no GPU") and said.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_the_page_is_of_what_is_there(session: ModuleType, kept: ModuleType, tmp_path: Path) -> None:
    bars = session.write_page(tmp_path)
    assert {bar["passed"] for bar in bars} == {None}
    assert "nothing was measured" in (tmp_path / "session.md").read_text(encoding="utf-8")
    file = kept.PartFile(tmp_path, "checks")
    file.rows["a case"] = {"case": "a case", "passed": False}
    file.write()
    (wrong,) = (bar for bar in session.write_page(tmp_path) if bar["passed"] is False)
    assert wrong["detail"] == "1 cases, 1 wrong"
