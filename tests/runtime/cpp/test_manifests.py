"""Every manifest of the corpus is refused in C++, too, by the name of the same field as in Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from videossm_c import PLAN, CError, CPlan, Library
from wrong_manifests import bases, check_line, wrong

WRONG = wrong()


@pytest.fixture
def refused(library: Library, tmp_path: Path) -> Callable[[bytes], str]:
    """`refused(content)`: the error of that manifest."""

    def refuse(content: bytes) -> str:
        (tmp_path / "manifest.json").write_bytes(content)
        started = time.process_time()
        with pytest.raises(CError) as caught:
            CPlan(library, tmp_path)
        check_line(str(caught.value), time.process_time() - started)
        assert caught.value.status == PLAN
        return str(caught.value)

    return refuse


@pytest.mark.parametrize("base", bases())
def test_a_base_holds_but_for_its_files(refused: Callable[[bytes], str], base: str) -> None:
    assert " missing in " in refused(bases()[base])


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_field_is_named(refused: Callable[[bytes], str], number: int) -> None:
    content, begins = WRONG[number]
    assert refused(content).startswith(begins), content
