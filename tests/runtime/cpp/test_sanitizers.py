"""The scenario and the rest of the probe under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import run

from videossm.runtime import Plan

HERE = Path(__file__).parent
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1",
    "LSAN_OPTIONS": f"suppressions={HERE / 'leaks.supp'}",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": f"halt_on_error=1:suppressions={HERE / 'races.supp'}",
}


pytestmark = pytest.mark.slow  # the library is built twice more


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def sanitized(request: pytest.FixtureRequest, build: Callable[..., Path]) -> Path:
    # With -O2 a build takes three times as long.
    options = (
        "-DVIDEOSSM_TESTS=ON",
        "-DVIDEOSSM_EXAMPLES=OFF",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O1",
    )
    return build(request.param.replace(",", "-"), f"-DVIDEOSSM_SANITIZE={request.param}", *options)


def test_a_stream_with_all_that_can_happen_to_it(
    sanitized: Path,
    onnxruntime_root: Path,
    build_plan: Callable[..., Plan],
    exported_plan: Callable[..., Plan],
    tmp_path: Path,
) -> None:
    # As dlopen is the sanitizer's there, the system does not look beside the library.
    environment = {**OPTIONS, "LD_LIBRARY_PATH": str(onnxruntime_root / "lib")}
    for plan in (build_plan(name="cpp", batch=2, sampler="renoise", rope_frame="absolute"), exported_plan("test")):
        texts = ["a red circle", "a blue square"]
        run(sanitized / "scenario", plan.path, 1, 16, tmp_path / "frames", *texts, **environment)


def test_what_the_probe_does(sanitized: Path, tiny_plan: Plan) -> None:
    run(sanitized / "probe", "halves", **OPTIONS)
    run(sanitized / "probe", "noise", 7, 3, 1, 1001, **OPTIONS)
    prompts = "a red, circle [PAD] \u212a\u2003\n\nx\n"
    run(sanitized / "probe", "tokens", tiny_plan.tokenizer_file, stdin=prompts, **OPTIONS)
