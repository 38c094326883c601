"""Fixtures over the plans of tests/builders, and a disk that fills up."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_plan import rebuilt
from tiny_plan import Tiny, Twin, write_tiny_plan

from videossm.runtime.plan import Plan


@pytest.fixture(scope="session")
def build_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """`build_plan(batch=2, ...)`: a tiny plan of that kind; one a session for each kind."""
    made: dict[tuple[str, Tiny], Plan] = {}

    def build(name: str = "tiny", **changes: Any) -> Plan:
        kind = (name, Tiny(**changes))
        if kind not in made:
            made[kind] = write_tiny_plan(tmp_path_factory.mktemp("plans") / f"{name}.plan", kind[1], name)
        return made[kind]

    return build


@pytest.fixture(scope="session")
def tiny_plan(build_plan: Callable[..., Plan]) -> Plan:
    """Batch 1, euler, window 9, sink 3, memory. Only to be read: `plan_copy` is for damage."""
    return build_plan()


@pytest.fixture
def plan_copy(tiny_plan: Plan, tmp_path: Path) -> Path:
    """The folder of a tiny plan that a test may damage."""
    return Path(shutil.copytree(tiny_plan.path, tmp_path / "copy.plan"))


@pytest.fixture(scope="session")
def engine_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """`engine_plan(plan, **fields)`: the same for TensorRT, with those fields of the manifest changed."""

    def build(plan: Plan, **fields: Any) -> Plan:
        folder = Path(shutil.copytree(plan.path, tmp_path_factory.mktemp("engines") / f"{plan.name}.plan"))
        return rebuilt(folder, **{"backend": "tensorrt", **fields})

    return build


@pytest.fixture(scope="session")
def build_twin() -> Callable[..., Twin]:
    """`build_twin(prompts, seeds, **changes)`: the NumPy rollout of the plan of that kind."""

    def build(prompts: list[str], seeds: list[int], **changes: Any) -> Twin:
        return Twin(Tiny(**changes), prompts, seeds)

    return build


@pytest.fixture
def full_disk() -> Callable[[int], Any]:
    """`with full_disk(size_bytes)`: no file grows beyond that, as if the disk were full."""

    @contextlib.contextmanager
    def limit(size_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
