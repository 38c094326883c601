"""Manifests whose parts fit. Those that do not fit are in wrong_manifests.json."""

from __future__ import annotations

import pytest

from videossm.runtime.contract import check_contract
from videossm.runtime.manifest import TensorSpec


@pytest.mark.parametrize("changes", [{}, {"memory": False}, {"sampler": "renoise", "batch": 2}], ids=str)
def test_whole_contract(build_plan, changes):
    check_contract(build_plan(**changes).manifest)


@pytest.mark.parametrize(
    ("dtype", "host_dtype", "size_bytes"),
    [("float32", "float32", 24), ("float16", "float16", 12), ("bfloat16", "uint16", 12), ("uint8", "uint8", 6)],
)
def test_buffers_of_a_tensor(dtype, host_dtype, size_bytes):
    tensor = TensorSpec(name="x", dtype=dtype, shape=(2, 3))
    assert (str(tensor.host_dtype), tensor.size_bytes) == (host_dtype, size_bytes)
