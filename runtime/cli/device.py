"""The options that choose where a plan runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from videossm.runtime.backends import PROVIDERS


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --device and --provider, of the parameters `device` and `provider`."""
    provider = click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        help="ONNX Runtime's execution provider on a GPU; cuda if not given.",
    )
    device = click.option("--device", help="cpu or cuda:N; if not given, cuda:0 for a plan of TensorRT, else cpu.")
    return device(provider(command))
