"""Times by hand on a device with round figures."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from videossm.cost.counts import NORM, PRODUCT
from videossm.cost.devices import DEVICES, Device, find_device
from videossm.cost.estimate import GAP_S, GAPS, SERIAL_S, EngineCost, chunk_times, runs_in_steady_state, seconds, times
from videossm.cost.launches import RULES, Launch, launches
from videossm.runtime.errors import UserError

DEVICE = Device("round", "made up", 10**9, 1e6, {"float32": 1e6, "bfloat16": 1e7, "float16": 1e7, "int8": 2e7})


@pytest.fixture
def cost(engine_graph):
    """A norm [100, 100] and a product with [100, 100] behind it, in `element`, that runs twice a chunk."""

    def made(element):
        nodes = [
            helper.make_node("RMSNormalization", ["x", "g"], ["n"], axis=-1),
            helper.make_node("MatMul", ["n", "w"], ["y"]),
        ]
        side = (100, 100)
        graph = engine_graph(nodes, {"x": side}, {"y": side}, {"w": side, "g": (100,)}, element=element)
        return EngineCost("e", 2, graph, {name: launches(graph, rules) for name, rules in RULES.items()}, {})

    return made


def test_of_one_run_in_bf16(cost):
    """Product: 2e6 FLOPs, 0.2 s, and 6e4 bytes, 0.06 s. Norm: 4e4 FLOPs in fp32, 0.04 s, and 40,200 bytes, 0.0402 s."""
    found = times(cost(TensorProto.BFLOAT16), "bf16", DEVICE, "tensorrt")
    assert found.compute_floor == pytest.approx(0.2)
    assert found.memory_floor == pytest.approx((3 * 20_000 + 200) / 1e6)
    assert found.by_kind == pytest.approx({PRODUCT: 0.2, NORM: 0.0402, GAPS: 2 * GAP_S["tensorrt"]})
    assert found.above == pytest.approx({PRODUCT: 0, NORM: 0.0402, GAPS: 2 * GAP_S["tensorrt"]})
    assert sum(found.above.values()) == pytest.approx(found.estimate - found.floor)


def test_an_fp32_product_in_a_plan_of_bf16_is_above_the_floor(cost):
    found = times(cost(TensorProto.FLOAT), "bf16", DEVICE, "tensorrt")
    assert found.compute_floor == pytest.approx(0.2) and found.by_kind[PRODUCT] == pytest.approx(2.0)
    assert found.above[PRODUCT] == pytest.approx(1.8)
    assert times(cost(TensorProto.FLOAT), "fp32", DEVICE, "tensorrt").above[PRODUCT] == pytest.approx(0)


def test_of_a_chunk(cost):
    engine = cost(TensorProto.BFLOAT16)
    of_run, chunk = times(engine, "bf16", DEVICE, "tensorrt"), chunk_times([engine], "bf16", DEVICE, "tensorrt")
    assert (chunk.floor, chunk.estimate) == pytest.approx((2 * of_run.floor, 2 * of_run.estimate))
    assert chunk.reached == pytest.approx(chunk.estimate + 2 * (0.2 / 0.7 - 0.2))
    assert (chunk.launches, chunk.flops) == (4, 2 * (2_000_000 + 40_000))


def test_a_launch_takes_the_longest_of_three():
    launch = Launch("scans", "GatedDeltaScan", "bfloat16", 10**6, 10**5, 0, serial=10)
    assert seconds(launch, DEVICE) == pytest.approx(0.1)
    many = Launch("scans", "GatedDeltaScan", "bfloat16", 10, 10, 0, serial=10)
    assert seconds(many, DEVICE) == pytest.approx(10 * SERIAL_S)
    assert seconds(Launch("attention", "Attention", "bfloat16", 10**6, 0, 0, rate=0.5), DEVICE) == pytest.approx(0.2)


def test_runs_are_those_of_a_full_window(small_plan_in):
    manifest = small_plan_in("contrib").manifest
    runs = runs_in_steady_state(manifest)
    assert sum(runs[name] for name in manifest.pass_engines) == len(manifest.passes)
    assert all(name not in runs for name in manifest.called("prompt", "after_first"))


def test_every_device_has_rates_and_a_source():
    for device in DEVICES.values():
        assert device.source and {"float32", "float16", "bfloat16", "int8"} <= device.flops.keys()
        assert device.rate("float8_e4m3fn") >= device.rate("bfloat16") > device.rate("float32")
    with pytest.raises(UserError, match=r"^--device: got gtx, expected one of h200, .*; choose one$"):
        find_device("gtx")
