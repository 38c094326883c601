"""Where the time of an engine goes, by ONNX Runtime's profiler: quantised linears, attention, the rest.

ONNX Runtime rewrites a graph before it runs it. A fused product keeps the name of the MatMul that it was, so the
profile's nodes are found in the graph that it writes down beside the profile.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx
import onnxruntime as ort
from onnx import ModelProto

from videossm.calib.graph import readers
from videossm.calib.linears import Linear, Product
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from videossm.runtime.backends.session import session_options
from videossm.runtime.manifest import EngineSpec

LINEARS, ATTENTION, OTHER = KINDS = ("quantised linears", "attention", "the rest")
MOVEMENTS = ("Reshape", "Transpose")  # what ONNX Runtime may put between a QuantizeLinear and its product
SUFFIX = "_kernel_time"  # of a node's name in the profile


@dataclass(frozen=True)
class Owner:
    """What a node is part of. `layer`: a module without its block, such as "self_attn.q"; "" for the rest."""

    kind: str
    layer: str


Times = dict[tuple[Owner, str], float]  # ms by what a node is part of and its operator


class ProfiledBackend(OnnxRuntimeBackend):
    """The CPU backend, one `engine` of which is profiled. `folder`: empty, for what ONNX Runtime writes."""

    def __init__(self, engine: str, precision: str, folder: Path) -> None:
        super().__init__("cpu", None, precision)
        self._engine, self._folder = engine, folder

    def load(self, name: str, spec: EngineSpec, file: Path) -> OnnxRuntimeEngine:
        if name != self._engine:
            return super().load(name, spec, file)
        options = session_options(self._precision, self._threads, self._placement)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / "profile")
        options.optimized_model_filepath = str(self._folder / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        self._session = ort.InferenceSession(str(file), options, providers=self._providers)
        return OnnxRuntimeEngine(self._session, placement=self._placement)

    def chunk_times(self, linears: Sequence[Linear], products: Sequence[Product], passes: int, chunks: int) -> Times:
        """Ends the profile: ms a chunk, the median over the last `chunks` chunks of `passes` passes each.

        `linears`, `products`: those of the engine in the fp32 plan.
        """
        events = json.loads(Path(self._session.end_profiling()).read_text())
        graph = onnx.load(self._folder / "optimized.onnx", load_external_data=False)
        owners = owners_of_nodes(graph, linears, products)
        starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[-passes * chunks :]
        sums: dict[tuple[Owner, str], list[float]] = defaultdict(lambda: [0.0] * chunks)
        for event in events:
            run = bisect_right(starts, event["ts"]) - 1
            if event["cat"] == "Node" and event["name"].endswith(SUFFIX) and run >= 0:
                owner = owners.get(event["name"].removesuffix(SUFFIX), Owner(OTHER, ""))
                sums[owner, event["args"]["op_name"]][run // passes] += event["dur"] / 1000
        return {key: median(values) for key, values in sums.items()}


def owners_of_nodes(graph: ModelProto, linears: Sequence[Linear], products: Sequence[Product]) -> dict[str, Owner]:
    """By the node's name; nodes of the rest are left out. Raises ValueError for a linear that is not found."""
    of_linear = {linear.node: Owner(LINEARS, _layer(linear.name)) for linear in linears}
    of_bias = {linear.bias_node: of_linear[linear.node] for linear in linears if linear.bias_node}
    of_product = {product.node: Owner(ATTENTION, _layer(product.name)) for product in products}
    owners: dict[str, Owner] = {}
    for node in graph.graph.node:
        original = node.name.partition("/")[0]  # before "/MatMulAddFusion"
        taken_apart = [product for product in products if node.name.startswith(f"{product.name}.")]
        if original in of_linear:
            owners[node.name] = of_linear[original]
        elif node.name in of_bias:
            owners[node.name] = of_bias[node.name]
        elif node.name in of_product:
            owners[node.name] = of_product[node.name]
        elif taken_apart:
            owners[node.name] = of_product[taken_apart[0].node]
    found = {name.partition("/")[0] for name in owners}
    if missing := of_linear.keys() - found:
        raise ValueError(f"profile: got no node of {sorted(missing)}, expected all in ONNX Runtime's graph; mend this")
    reading = readers(graph)
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear" and node.name not in owners:
            following = reading[node.output[0]]
            while following and following[0].name not in owners and following[0].op_type in MOVEMENTS:
                following = reading[following[0].output[0]]
            if following and following[0].name in owners:
                owners[node.name] = owners[following[0].name]
    return owners


def by_kind(times: Mapping[tuple[Owner, str], float]) -> dict[str, float]:
    return {kind: sum(ms for (owner, _), ms in times.items() if owner.kind == kind) for kind in KINDS}


def by_layer(times: Mapping[tuple[Owner, str], float]) -> dict[str, float]:
    """Of linears and attention, the blocks summed up."""
    return _summed((owner.layer, ms) for (owner, _), ms in times.items() if owner.layer)


def by_operator(times: Mapping[tuple[Owner, str], float], kind: str) -> dict[str, float]:
    return _summed((operator, ms) for (owner, operator), ms in times.items() if owner.kind == kind)


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for name, value in pairs:
        sums[name] += value
    return dict(sums)


def _layer(module: str) -> str:
    return re.sub(r"^transformer\.(blocks\.\d+\.)?", "", module)
