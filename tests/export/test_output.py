"""A plan takes its place when it is whole, and nothing else is ever lost for it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from videossm.export.output import check_out, new_plan
from videossm.runtime.errors import PlanError


def make(out: Path, text: str = "new") -> None:
    with new_plan(out, force=True) as folder:
        (folder / "step.onnx").write_text(text)
        (folder / "manifest.json").write_text('{"files": {"step.onnx": {}}}')


def test_replaces_a_plan(tmp_path: Path) -> None:
    make(tmp_path / "engine.plan", "old")
    make(tmp_path / "engine.plan", "new")
    assert (tmp_path / "engine.plan" / "step.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


@pytest.mark.parametrize("error", [RuntimeError("trace"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_leaves_the_older_plan(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "engine.plan", "old")
    with pytest.raises(type(error)), new_plan(tmp_path / "engine.plan", force=True):
        raise error
    assert (tmp_path / "engine.plan" / "step.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No space left on device"), new_plan(tmp_path / "engine.plan"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "engine.plan")
    (tmp_path / "engine.plan" / "thesis.txt").write_text("years of work")
    with pytest.raises(PlanError, match="exists and is no plan"):
        check_out(tmp_path / "engine.plan")


def make_with_report(out: Path) -> None:
    with new_plan(out) as folder:
        (folder / "report").mkdir()
        (folder / "report" / "steps.png").write_text("a picture")
        (folder / "manifest.json").write_text('{"files": {"report/steps.png": {}}}')


def test_replaces_a_plan_with_a_report(tmp_path: Path) -> None:
    make_with_report(tmp_path / "engine.plan")
    make(tmp_path / "engine.plan")
    assert not (tmp_path / "engine.plan" / "report").exists()


@pytest.mark.parametrize("place", ["report/thesis.txt", "report/old/steps.png", "src/thesis.txt"])
def test_what_a_plan_does_not_list_is_kept_in_folders_too(tmp_path: Path, place: str) -> None:
    make_with_report(tmp_path / "engine.plan")
    (tmp_path / "engine.plan" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "engine.plan" / place).write_text("years of work")
    with pytest.raises(PlanError, match="exists and is no plan"):
        check_out(tmp_path / "engine.plan")


def test_a_foreign_manifest_that_lists_folders(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "index.js").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"files": ["src/index.js"]}')
    with pytest.raises(PlanError, match="exists and is no plan"):
        check_out(tmp_path)


def test_a_foreign_manifest_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(PlanError, match="exists and is no plan"):
        check_out(tmp_path)


def test_inside_the_plan_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "engine.plan", "old")
    monkeypatch.chdir(tmp_path / "engine.plan")
    make(Path("."))
    assert (tmp_path / "engine.plan" / "step.onnx").read_text() == "new"


def test_a_plan_stays_unless_it_is_forced(tmp_path: Path) -> None:
    make(tmp_path / "engine.plan", "old")
    with pytest.raises(PlanError, match=r"which is there already, expected a new name; .* or add --force"):
        check_out(tmp_path / "engine.plan")
    check_out(tmp_path / "engine.plan", force=True)


def test_a_plan_that_came_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    with pytest.raises(PlanError, match="which is there already"), new_plan(out):
        make(out, "another's")
    assert (out / "step.onnx").read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["engine.plan"]


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "engine.plan")
    (tmp_path / "link").symlink_to(tmp_path / "engine.plan" / "step.onnx")
    for given in (tmp_path / "engine.plan", tmp_path / "engine.plan" / "step.onnx", tmp_path / "link"):
        with pytest.raises(PlanError, match="in it is read, expected a new name"):
            check_out(tmp_path / "engine.plan", force=True, inputs=[given])


def test_within_a_plan(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "engines": {}, "files": {}}')
    with pytest.raises(PlanError, match=r"which lies in the plan .*, expected a place outside; choose one"):
        check_out(tmp_path / "report" / ".." / "engine.plan")


def test_a_link_to_a_plan(tmp_path: Path) -> None:
    make(tmp_path / "engine.plan", "old")
    (tmp_path / "link").symlink_to(tmp_path / "engine.plan")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "engine.plan" / "step.onnx").read_text() == "new"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("no/such/engine.plan", "whose folder does not exist"),
        ("/proc/engine.plan", "cannot be written|not writable"),
        ("x" * 300, "cannot be written"),
    ],
    ids=["no folder", "unwritable", "long name"],
)
def test_places_where_nothing_can_be_written(
    out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=message), new_plan(Path(out)):
        pass
