"""Opening is strict: any byte changed, any file cut, missing or a link is one error that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from videossm_c import PLAN, CError, CPlan, Library

from videossm.runtime import Plan, PlanError


@pytest.fixture
def refused(library: Library) -> Callable[[Path], str]:
    """C's message, after a look that Python's begins alike."""

    def refuse(folder: Path) -> str:
        with pytest.raises(CError) as caught:
            CPlan(library, folder, 1)
        assert caught.value.status == PLAN and "\n" not in str(caught.value)
        with pytest.raises(PlanError) as mine:
            Plan.open(folder)
        assert str(caught.value).split(": ")[0] == str(mine.value).split(": ")[0]
        return str(caught.value)

    return refuse


def test_by_folder_or_by_any_file_in_it(library: Library, plan_copy: Path) -> None:
    for path in (plan_copy, *plan_copy.iterdir()):
        assert CPlan(library, path, 1).info.name == b"tiny"


def test_no_plan(refused: Callable[[Path], str], tmp_path: Path) -> None:
    assert "which does not exist" in refused(tmp_path / "none.plan")
    assert refused(tmp_path).startswith("manifest.json: missing in ")


def test_every_byte_of_a_manifest_counts(library: Library, plan_copy: Path) -> None:
    path = plan_copy / "manifest.json"
    content = path.read_bytes()
    places = [*range(0, len(content), 61), *range(len(content) - 80, len(content))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        with pytest.raises(CError, match=r"^manifest\.json: "):
            CPlan(library, plan_copy, 1)
        path.write_bytes(content[:place])
        with pytest.raises(CError, match=r"^manifest\.json: "):
            CPlan(library, plan_copy, 1)


def test_every_file_counts(refused: Callable[[Path], str], plan_copy: Path) -> None:
    for path in sorted(plan_copy.iterdir()):
        if path.name == "manifest.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert refused(plan_copy).startswith(
            f"{path.name}: size_bytes: got {len(content) - 1}, expected {len(content)}; "
        )
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert refused(plan_copy).startswith(f"{path.name}: sha256: got ")
        path.unlink()
        assert refused(plan_copy).startswith(f"{path.name}: missing in ")
        path.write_bytes(content)


def test_a_link_is_no_file_of_the_plan(library: Library, plan_copy: Path, tmp_path: Path) -> None:
    path = plan_copy / "tokenizer.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CError, match=r"^tokenizer\.json: .* no link; "):
        CPlan(library, plan_copy, 1)


def test_a_file_that_is_not_listed_is_not_read(library: Library, plan_copy: Path) -> None:
    (plan_copy / ".DS_Store").write_bytes(b"x")
    CPlan(library, plan_copy, 1)
