"""Which backend has which option, and what its value may be."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from videossm.export.tensorrt.options import ONLY, TensorRtOptions, tensorrt_options
from videossm.runtime.driver import Driver, Gpu
from videossm.runtime.errors import UserError
from videossm.runtime.machine import Machine

NONE = Machine("3.11", "Linux", 2, None, None)
ADA = Machine("3.11", "Linux", 2, None, None, driver=Driver(gpus=(Gpu(0, "RTX 4090", "sm_89", 24 << 30, None),)))
GIVEN: dict[str, Any] = {
    "gpu_arch": ("sm_89",),
    "workspace": 64,
    "builder_level": 2,
    "timing_cache": Path("timings"),
    "profiling_verbosity": "detailed",
    "refit": True,
    "strip_weights": True,
    "weight_streaming": True,
    "version_compatible": True,
    "hardware_compatible": "ampere_plus",
    "plugins": Path(__file__),
}


def refused(backend: str, machine: Machine = NONE, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        TensorRtOptions(**options).check(backend, machine)
    return str(error.value)


def test_every_option_is_tried() -> None:
    assert set(GIVEN) == {field.name for field in fields(TensorRtOptions)}
    assert TensorRtOptions(**GIVEN).given == list(GIVEN)
    assert TensorRtOptions().given == []


@pytest.mark.parametrize("name", GIVEN)
def test_each_is_taken_where_it_is_and_refused_elsewhere(name: str) -> None:
    options = TensorRtOptions(**{name: GIVEN[name]})
    option = f"--{name.replace('_', '-')}"
    line = refused("onnxruntime", **{name: GIVEN[name]})
    assert line.startswith(f"{option}: got it with onnxruntime, expected --backend tensorrt")
    for backend in ("tensorrt", "tensorrt-rtx"):
        if ONLY.get(name, backend) == backend:
            options.check(backend, ADA)
        else:
            line = refused(backend, ADA, **{name: GIVEN[name]})
            assert line == f"{option}: got it with {backend}, expected --backend {ONLY[name]}; leave it out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace": 0}, "--workspace: got 0, expected 1 MiB or more"),
        ({"builder_level": 6}, "--builder-level: got 6, expected 0 to 5"),
        ({"profiling_verbosity": "all"}, "--profiling-verbosity: got all, expected one of none, layer_names_only"),
        ({"hardware_compatible": "all"}, "--hardware-compatible: got all, expected one of ampere_plus, same_compute"),
        ({"plugins": Path("no.so")}, "--plugins: got no.so, which is no file, expected a library; `make plugins`"),
        ({"timing_cache": Path("no/timings")}, "--timing-cache: got no/timings, whose folder does not exist"),
    ],
    ids=str,
)
def test_values_that_are_none(options: dict[str, Any], message: str) -> None:
    assert refused("tensorrt", **options).startswith(message)


@pytest.mark.parametrize("name", ["refit", "strip_weights"])
def test_tensorrt_rtx_refits_on_a_gpu_alone(name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    assert refused("tensorrt-rtx", NONE, **{name: True}).startswith(f"{option}: got it without a GPU, expected one")
    line = refused("tensorrt-rtx", ADA, **{name: True, "gpu_arch": ("sm_89", "sm_120")})
    assert line.startswith(f"{option}: got it with 2 architectures, expected at most one")


def test_an_architecture_counts_once() -> None:
    assert TensorRtOptions(gpu_arch=("sm_89", "sm_120", "sm_89")).gpu_arch == ("sm_89", "sm_120")


def test_a_command_gets_them_as_one_argument() -> None:
    seen = []

    @click.command()
    @tensorrt_options
    def command(building: TensorRtOptions) -> None:
        seen.append(building)

    words = ["--gpu-arch", "sm_89", "--gpu-arch", "sm_120", "--workspace", "64", "--refit", "--plugins", "x.so"]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert CliRunner().invoke(command, []).exit_code == 0
    wanted = TensorRtOptions(gpu_arch=("sm_89", "sm_120"), workspace=64, refit=True, plugins=Path("x.so"))
    assert seen == [wanted, TensorRtOptions()]
