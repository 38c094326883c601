"""benchmarks/kernel_instructions.py reads what cuobjdump prints."""

from __future__ import annotations

import importlib
from collections import Counter
from types import ModuleType

import pytest

SASS = """
\t\tFunction : _ZN8videossm16gated_delta_scanI{type}Li128ELb0EEEvNS_14GatedDeltaTaskIT_EE
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;
        /*0020*/              @!P0 FADD R2, R3, -R5 ;
        /*0030*/              @!P1 BRA 0x20 ;
        /*0040*/               @P0 BRA 0x10 ;
        /*0050*/                   EXIT ;
        /*0060*/                   BRA 0x60;
\t\tFunction : _ZN8videossm19gated_delta_prepareI{type}Li128ELb0EEEvNS_14GatedDeltaTaskIT_EE
        /*0000*/                   FADD R2, R3, -R5 ;
        /*0010*/                   BRA 0x0 ;
"""


@pytest.fixture
def instructions() -> ModuleType:
    return importlib.import_module("kernel_instructions")


def test_the_longest_loop_is_counted(instructions: ModuleType) -> None:
    (loop,) = instructions.loops(SASS.format(type="f"))
    assert (loop.dtype, loop.key_dim, loop.wanted) == ("fp32", 128, False)
    assert loop.operations == Counter(HMMA=1, FADD=1, BRA=2)
    assert loop.a_token == 4 / 16


def test_types_stand_side_by_side(instructions: ModuleType) -> None:
    sass = SASS.format(type="f") + SASS.format(type="NS_8BFloat16E")
    *_, row = instructions.text_of(instructions.loops(sass)).splitlines()
    assert row == "| d_k 128 | 4 / 1 / 0 | - | 4 / 1 / 0 |"
