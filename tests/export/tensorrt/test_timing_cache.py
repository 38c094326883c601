"""The file of timings, through TensorRT-RTX's objects: it has the calls still, with nothing in the caches."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from videossm.export.tensorrt.timing_cache import read_timings, write_timings
from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.errors import UserError

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="needs pip install 'videossm[rtx]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def log() -> Log:
    return Log(trt)


@pytest.fixture
def config(log: Log) -> Any:
    builder = trt.Builder(log.logger)
    config = builder.create_builder_config()
    yield config
    del config, builder


def test_written_and_read_again(config: Any, log: Log, tmp_path: Path) -> None:
    file = tmp_path / "timings"
    read_timings(file, config, log)
    assert not file.exists(), "nothing is written before a build"
    write_timings(file, config, log)
    first = file.read_bytes()
    read_timings(file, config, log)
    write_timings(file, config, log)
    assert file.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["timings"], "no debris"


class Refusing:
    """A config whose caches do not fit: of another GPU, or damaged."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def create_timing_cache(self, timings: bytes) -> Any:
        return self._cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU would be worse than none"
        return False


@pytest.mark.parametrize("cache", [None, object()], ids=["damaged", "of another GPU"])
def test_timings_that_do_not_fit(cache: Any, log: Log, tmp_path: Path) -> None:
    log.logger.log(trt.ILogger.ERROR, "timings of a GPU that is not this one")
    with pytest.raises(
        UserError, match=r"^--timing-cache: .*timings: timings of a GPU that is not.*; name another file$"
    ):
        read_timings(tmp_path / "timings", Refusing(cache), log)


def test_a_file_that_cannot_be_read_or_written(config: Any, log: Log, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--timing-cache: .* cannot be read .Is a directory.; name another file"):
        read_timings(tmp_path, config, log)
    read_timings(tmp_path / "timings", config, log)
    with pytest.raises(UserError, match=r"--timing-cache: .* cannot be written .No such file or directory.; name"):
        write_timings(tmp_path / "no" / "timings", config, log)


def test_a_disk_without_room_leaves_the_older_timings(
    config: Any, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timings"
    read_timings(file, config, log)
    write_timings(file, config, log)
    before = file.read_bytes()

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device.; name another file"):
        write_timings(file, config, log)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["timings"], "no debris"
