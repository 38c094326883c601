"""What lies in a plan's folder is read only if it is a regular file, and into memory only if it is small."""

from __future__ import annotations

import json
import os
import socket

import pytest
from small_plan import sealed

from videossm.runtime import Plan, PlanError
from videossm.runtime.plan_file import MOST_BYTES, read_small, require_regular


def refused(folder):
    with pytest.raises(PlanError) as caught:
        Plan.open(folder)
    return str(caught.value)


def link(path):
    """To the very file that is expected."""
    os.rename(path, f"{path}.old")
    path.symlink_to(f"{path}.old")


def listening(path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(path.parent)  # an address is short
        server.bind(path.name)
        os.chdir(place)


def device(path):
    path.unlink()
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


STRANGE = {
    "link": link,
    "link that leads nowhere": lambda path: (path.unlink(), path.symlink_to("none")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "socket": listening,
    "device": device,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json", "manifest.json"])
def test_only_regular_files(plan_copy, name, kind):
    """None of them is opened: that would wait for the other end of the pipe."""
    STRANGE[kind](plan_copy / name)
    expected = f"{name}: is not a regular file in {plan_copy}; copy the plan with its files, not with links"
    assert refused(plan_copy) == expected


def with_report(folder):
    (folder / "report").mkdir()
    (folder / "report" / "steps.png").write_bytes(b"")
    values = json.loads((folder / "manifest.json").read_text())
    values["files"]["report/steps.png"] = {"sha256": 64 * "0", "size_bytes": 0}
    (folder / "manifest.json").write_bytes(sealed(values))


def test_a_folder_that_is_a_link(plan_copy, tmp_path):
    with_report(plan_copy)
    os.rename(plan_copy / "report", tmp_path / "elsewhere")
    (plan_copy / "report").symlink_to(tmp_path / "elsewhere")
    assert refused(plan_copy).startswith("report/steps.png: is not a regular file in ")


def test_a_folder_that_is_a_file(plan_copy):
    with_report(plan_copy)
    (plan_copy / "report" / "steps.png").unlink()
    (plan_copy / "report").rmdir()
    (plan_copy / "report").write_bytes(b"")
    assert refused(plan_copy).startswith("report/steps.png: is not a regular file in ")


def test_the_plan_itself_may_be_a_link(plan_copy, tmp_path):
    (tmp_path / "link.plan").symlink_to(plan_copy)
    assert Plan.open(tmp_path / "link.plan").identity == Plan.open(plan_copy).identity


def test_a_manifest_of_40_gb(plan_copy):
    """Zeros, which take no room."""
    os.truncate(plan_copy / "manifest.json", 40_000_000_000)
    assert refused(plan_copy).startswith("manifest.json: got more than 64 MB, expected less; ")


def test_limit_of_what_is_read(tmp_path):
    (tmp_path / "report.json").write_bytes(b"x")
    os.truncate(tmp_path / "report.json", MOST_BYTES)
    assert len(read_small(tmp_path, "report.json")) == MOST_BYTES
    os.truncate(tmp_path / "report.json", MOST_BYTES + 1)
    with pytest.raises(PlanError, match="got more than 64 MB"):
        read_small(tmp_path, "report.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(PlanError, match=r"^step\.onnx: missing in "):
        require_regular(tmp_path, "step.onnx")
