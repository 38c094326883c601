"""Which features a processor has, as Linux tells, and what follows for int8."""

from __future__ import annotations

import platform

import pytest

from videossm.runtime import processor
from videossm.runtime.processor import FEATURES, Processor, expected_of_int8, probe_processor

X86 = """processor\t: 0
model name\t: AMD EPYC 9755
flags\t\t: fpu sse2 avx_vnni avx2 avx512f avx512_vnni
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: another
flags\t\t: fpu sse2
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("info", "name", "features"),
    [
        (X86, "AMD EPYC 9755", ("avx2", "avx512f", "avx512_vnni", "avx_vnni")),
        (ARM, None, ("asimddp", "i8mm")),
        ("", None, ()),
        (None, None, ()),
    ],
    ids=["x86-64", "arm", "empty", "no file"],
)
def test_what_the_system_tells(info, name, features, monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_INFO", tmp_path / "cpuinfo")
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    assert probe_processor() == Processor(name or platform.processor() or platform.machine(), features)


def test_this_processor():
    found = probe_processor()
    assert found.name and set(found.features) <= set(FEATURES)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "this processor has VNNI (avx512_vnni): int8 products are exact and run"),
        (("avx2", "avx_vnni"), "this processor has VNNI (avx_vnni): "),
        (("avx2", "avx512f"), "this processor has no VNNI: int8 products are exact, but gain less than with it"),
        (("asimddp",), "this processor has dot products (asimddp): int8 has not been tried on one"),
        ((), "this processor has none of the features that make int8 fast, or the system does not tell"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_to_expect_of_int8(features, expected):
    assert expected_of_int8(Processor("some", features)).startswith(expected)
