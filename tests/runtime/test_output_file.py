"""A place to write to is checked before, and a file takes its place whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from videossm.runtime import SinkError, UserError
from videossm.runtime.output_file import check_output_file, check_output_folder, plan_around, replacing


def refused(path, inputs=(), check=check_output_file):
    with pytest.raises(SinkError) as caught:
        check("output", path, inputs, SinkError)
    message = str(caught.value)
    assert message.startswith(("output: got ", "output: cannot write "))
    return message


def test_a_new_name_and_an_old_file(tmp_path):
    check_output_file("output", tmp_path / "new")
    (tmp_path / "old").write_text("old")
    check_output_file("output", tmp_path / "old", [tmp_path / "new", tmp_path / "none" / "other"])
    check_output_folder("output", tmp_path)
    check_output_folder("output", tmp_path / "folder")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old"}, "nothing has changed"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a pipe"),
        (lambda path: path.symlink_to("none"), "a link"),
        (lambda path: path.symlink_to("/dev/null"), "a link"),
    ],
    ids=["folder", "pipe", "link to nothing", "link to a device"],
)
def test_what_is_no_regular_file(tmp_path, make, kind):
    make(tmp_path / "x")
    assert f"which is {kind}, expected a regular file or a new name; choose another" in refused(tmp_path / "x")


def test_a_device():
    assert "/dev/null, which is a device, expected" in refused(Path("/dev/null"))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_no_name(name):
    assert "which is a folder" in refused(Path(name))


def test_inputs_by_any_name(tmp_path):
    (tmp_path / "p.txt").write_text("red")
    (tmp_path / "hard").hardlink_to(tmp_path / "p.txt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "soft").symlink_to(tmp_path / "folder")
    for name in ("p.txt", "hard", "folder/../p.txt"):
        assert "which this command uses already" in refused(tmp_path / name, [tmp_path / "p.txt"])
    for name in ("folder/new", "soft/new"):
        assert "which this command uses already" in refused(tmp_path / name, [tmp_path / "folder"])


@pytest.mark.parametrize(
    ("name", "why"),
    [("none/x", "whose folder does not exist"), ("file/x", "Not a directory"), (300 * "x", "File name too long")],
    ids=["no folder", "a file as folder", "long name"],
)
def test_places_where_nothing_can_be_written(tmp_path, name, why):
    (tmp_path / "file").write_text("")
    assert why in refused(tmp_path / name)


def test_a_name_with_a_zero_byte(tmp_path):
    assert "null byte" in refused(tmp_path / "x\0y")


def test_a_folder_that_nobody_can_write():
    for check in (check_output_file, check_output_folder):
        assert refused(Path("/proc/x"), check=check).startswith("output: cannot write /proc/x (")


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("none")
    assert "which is a file, expected a folder or a new name" in refused(tmp_path / "file", check=check_output_folder)
    assert "a link that leads nowhere" in refused(tmp_path / "link", check=check_output_folder)


def test_in_a_plan(plan_copy, tmp_path):
    (plan_copy / "report").mkdir()
    (tmp_path / "soft").symlink_to(plan_copy)
    for place in (plan_copy / "x", plan_copy / "report" / "x", tmp_path / "soft" / "x"):
        assert f"which lies in the plan {plan_copy}, expected a place outside" in refused(place)
    assert f"which lies in the plan {plan_copy}" in refused(plan_copy, check=check_output_folder)


@pytest.mark.parametrize("text", ['{"name": "a web app", "files": []}', "[]", "", "{", "[" * 100_000, "\0"])
def test_a_manifest_of_something_else(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert plan_around(tmp_path / "x") is None
    check_output_file("output", tmp_path / "x")


def test_a_manifest_that_never_ends(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    check_output_file("output", tmp_path / "x")


def test_the_error_is_the_users(tmp_path):
    with pytest.raises(UserError):
        check_output_file("-o", tmp_path)


def test_two_writers_do_not_meet(tmp_path):
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x").read_text() == "first", "the one that ended last"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as new:
        new.write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_the_umasks(tmp_path, umask):
    """Whatever took the new file's place meanwhile."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "x") as new:
            new.unlink()
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask
