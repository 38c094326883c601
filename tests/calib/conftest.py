"""The fp32 plan of the small preset, exported once for all tests of a run, and its graphs, run and quantised."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from videossm.calib.calibrate import calibrate
from videossm.calib.calibration import Calibration, Settings
from videossm.calib.linears import find_linears, find_products
from videossm.calib.observers import FORMATS, Codes, EightBits, weight_scales
from videossm.calib.qdq import quantize, quantize_attention
from videossm.runtime import Plan
from videossm.runtime.backends.session import session_options
from videossm.runtime.manifest import Layers
from videossm.runtime.plan import write_manifest

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def test_plan(small_plan_in: Callable[..., Plan]) -> Plan:
    """fp32, random weights, the default lowering."""
    return small_plan_in("contrib")


@pytest.fixture(scope="session")
def layers(test_plan: Plan) -> Sequence[Layers]:
    """What the small plan's family says of its layers."""
    return test_plan.manifest.lower_precision.layers


@pytest.fixture(scope="session")
def load_graph(test_plan: Plan) -> Callable[[str], ModelProto]:
    """`load_graph(engine)`: the engine's fp32 graph, a new one at every call."""
    return lambda engine: onnx.load(test_plan.path / f"{engine}.onnx")


@pytest.fixture(scope="session")
def feeds() -> Callable[[ModelProto], Arrays]:
    """`feeds(model)`: random values of every input, the integers and the levels of noise within their ranges."""

    def make(model: ModelProto) -> Arrays:
        random = np.random.default_rng(7)
        arrays: Arrays = {}
        for value in model.graph.input:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            special = {
                "sigma": lambda n: np.full(n, 0.9, np.float32),
                "sigma_next": lambda n: np.full(n, 0.5, np.float32),
                "rho": lambda n: np.full(n, 0.3, np.float32),
                "slot_position": lambda n: np.array([*range(n[0] - 3), -1, -1, -1]),
                "frame_position": lambda n: np.arange(n[0]) + 6,
                "input_ids": lambda n: np.arange(n[1])[None],
                "attention_mask": lambda n: (np.arange(n[1]) < n[1] // 2).astype(np.int64)[None],
            }
            normal = lambda n: random.standard_normal(n, np.float32)  # noqa: E731
            arrays[value.name] = special.get(value.name, normal)(shape)
        return arrays

    return make


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., Arrays]:
    """`run_graph(model, feeds, also=(), optimized=None, entries={})`: outputs, and the values of the tensors in `also`.

    `optimized`: where ONNX Runtime writes the graph that it runs.
    """

    def run(
        model: ModelProto,
        feeds: Arrays,
        also: Sequence[str] = (),
        optimized: Path | None = None,
        entries: dict[str, str] | None = None,
    ) -> Arrays:
        tapped = ModelProto()
        tapped.CopyFrom(model)
        tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in also)
        options = session_options("int8", 1)  # for fp8 too: what it needs else is in `entries`
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


@pytest.fixture(scope="session")
def quantized(
    load_graph: Callable[[str], ModelProto],
    feeds: Callable[[ModelProto], Arrays],
    run_graph: Callable[..., Arrays],
    layers: Sequence[Layers],
) -> Callable[..., ModelProto]:
    """`quantized(engine, precision, attention=False)`: all linears, with the codes of one run on random inputs."""
    seen: dict[str, Arrays] = {}

    def make(engine: str, precision: EightBits, attention: bool = False) -> ModelProto:
        model = load_graph(engine)
        linears, products = find_linears(model, engine, layers).linears, find_products(model, engine, layers)
        if engine not in seen:
            read = {linear.input for linear in linears}
            read |= {name for product in products for name in (product.query, product.key, product.value)}
            inputs = feeds(model)  # a prompt's keys and values are among what products read
            made = inputs | run_graph(model, inputs, sorted(read - inputs.keys()))
            seen[engine] = {name: made[name] for name in read}
        codes = {name: _codes(values, precision) for name, values in seen[engine].items()}
        quantize(model, linears, codes, precision, lambda weight: weight_scales(weight, precision, "max"))
        return quantize_attention(model, products, codes, precision) if attention else model

    return make


def _codes(values: NDArray[np.float32], precision: EightBits) -> Codes:
    """As a calibration by `max` chooses them."""
    form, low, amax = FORMATS[precision], float(values.min()), float(np.abs(values).max())
    return form.codes(amax, min(low, 0.0) if form.is_one_sided(low, amax) else None)


@pytest.fixture(scope="session")
def settings_of() -> Callable[..., Settings]:
    """`settings_of(field=..)`: two short rollouts, `max`, unless said otherwise."""

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "method": "max",
            "prompts": ("red circle", "blue square"),
            "seeds": (11, 12),
            "chunks": 5,
            "data": "rollouts",
            "smoothquant": None,
            "quantize_attention": False,
        }
        return Settings(**values | changes)

    return make


@pytest.fixture(scope="session")
def int8_calibration(test_plan: Plan, settings_of: Callable[..., Settings]) -> Calibration:
    """Of the small plan, attention included."""
    return calibrate(test_plan, "int8", settings_of(quantize_attention=True), lambda: None)


@pytest.fixture(scope="session")
def altered(test_plan: Plan) -> Callable[..., Plan]:
    """`altered(folder, engine, change)`: the small plan in `folder`, one graph of it changed by `change(model)`."""

    def make(folder: Path, engine: str, change: Callable[[ModelProto], object]) -> Plan:
        path = folder / "altered.plan"
        shutil.copytree(test_plan.path, path)
        model = onnx.load(path / f"{engine}.onnx")
        change(model)
        onnx.save(model, path / f"{engine}.onnx")
        return write_manifest(path, test_plan.values())

    return make


@pytest.fixture(scope="session")
def scale_weight(layers: Sequence[Layers]) -> Callable[..., Callable[[ModelProto], None]]:
    """`scale_weight(engine, linear, factor, columns)`: a change for `altered`, of one linear's weight or some of it."""

    def make(engine: str, name: str, factor: float, columns: slice = slice(None)) -> Callable[[ModelProto], None]:
        def change(model: ModelProto) -> None:
            (linear,) = (linear for linear in find_linears(model, engine, layers).linears if linear.name == name)
            (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == linear.weight)
            values = onnx.numpy_helper.to_array(weight).copy()
            values[:, columns] *= np.float32(factor)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

        return change

    return make


@dataclass
class Bars:
    """Progress that remembers: (unit, total, what it has counted) of every bar, and the stages that they named."""

    seen: list[tuple[str, int, int]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, total: int, unit: str) -> Iterator[Bars]:
        self.seen.append((unit, total, 0))
        yield self

    def update(self, n: int = 1) -> None:
        unit, total, counted = self.seen[-1]
        self.seen[-1] = (unit, total, counted + n)

    def set_description(self, desc: str) -> None:
        self.stages.append(desc)


@pytest.fixture
def bars() -> Bars:
    return Bars()


@pytest.fixture
def said() -> list[str]:
    """The lines that were said: `said.append` says one."""
    return []
