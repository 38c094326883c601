"""The ONNX plan of `shapes`, exported once, in every precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from videossm.calib.calibration import Calibration, Settings, Source, TensorScale
from videossm.calib.linears import Linear
from videossm.calib.observers import FORMATS, EightBits
from videossm.calib.plans import candidates, quantised_engines, write_half, write_quantized
from videossm.export.build import Built
from videossm.models.family import Deployment, find_family
from videossm.runtime import Plan

AMAX = 4.0  # of every activation: what an engine costs to build does not depend on its scales
GELU_LOW = -0.17  # in int8 GELU's output has a zero point, which TensorRT does not take


@pytest.fixture(scope="session")
def shapes_plan(shared: Callable[..., Path], export_plan: Callable[[Deployment, Path, str], Built]) -> Plan:
    """fp32, standard operators, the shipped weights."""

    def make(folder: Path) -> None:
        export_plan(find_family("shapes").load("shapes", {}, False), folder, "standard")

    return Plan.open(shared("shapes-standard", make) / "engine.plan")


@pytest.fixture(scope="session")
def in_precision(shared: Callable[..., Path]) -> Callable[[Plan, str], Plan]:
    """`in_precision(plan, "int8")`: an fp32 plan in another precision; what activations reach is made up."""
    made: dict[tuple[str, str], Plan] = {}

    def make(plan: Plan, precision: str) -> Plan:
        if precision == "fp32":
            return plan

        def write(folder: Path) -> None:
            path = folder / f"{precision}.plan"
            path.mkdir()
            if precision in ("fp16", "bf16"):
                write_half(plan, precision, path)
            else:
                _quantize(plan, precision, path)  # type: ignore[arg-type]

        if (plan.identity, precision) not in made:
            folder = shared(f"{plan.identity[:16]}-{precision}", write)
            made[plan.identity, precision] = Plan.open(folder / f"{precision}.plan")
        return made[plan.identity, precision]

    return make


def _quantize(plan: Plan, precision: EightBits, folder: Path) -> None:
    linears, engines = candidates(plan).linears, quantised_engines(plan.manifest)

    def scale(linear: Linear) -> TensorScale:
        low = GELU_LOW if precision == "int8" and linear.name.endswith("ffn.2") else None
        number, zero_point = FORMATS[precision].codes(AMAX, low)
        return TensorScale(amax=AMAX, low=low, scale=number, zero_point=zero_point, passes=(), channel_amax=None)

    tensors = {engine: {x.input: scale(x) for x in linears if x.engine == engine} for engine in engines}
    settings = Settings(
        method="max", prompts=(), seeds=(), chunks=1, data="random", smoothquant=None, quantize_attention=False
    )
    calibration = Calibration(
        format="videossm-calibration",
        version=2,
        precision=precision,
        source=Source.of(plan, engines),
        settings=settings,
        tensors=tensors,
    )
    write_quantized(plan, calibration, {linear.name for linear in linears}, folder)


class Bar:
    """A bar that remembers, and calls `on_update` each time."""

    def __init__(self, on_update: Callable[[], None] = lambda: None) -> None:
        self.n, self.names, self._on_update = 0, [], on_update

    def set_description_str(self, name: str) -> None:
        self.n = 0
        self.names.append(name)

    def update(self, n: int) -> None:
        self.n += n
        self._on_update()


@pytest.fixture
def bar() -> Bar:
    return Bar()


@pytest.fixture
def quiet() -> Callable[[int, str], Any]:
    """Progress that nobody sees."""
    return showing(Bar())


@pytest.fixture
def showing_bar() -> Callable[[Any], Callable[[int, str], Any]]:
    """`showing_bar(bar)`: progress on that bar."""
    return showing


def showing(bar: Any) -> Callable[[int, str], Any]:
    @contextlib.contextmanager
    def progress(total: int, unit: str) -> Iterator[Any]:
        yield bar

    return progress
