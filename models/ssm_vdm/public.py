"""Reads `model-K.pt` as the public code of arXiv 2403.07711 saves it, strictly: every tensor is used or known.

Such a file holds {step, model, ema, opt, scaler}; `ema` is a state dict of the whole diffusion: twelve buffers of the
noise schedule, and the UNet under `denoise_fn.module.`. What the network looks like is read off its tensors.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videossm.models.ssm_vdm.blocks import ATTENTION_WIDTH
from videossm.models.ssm_vdm.config import DiffusionConfig, SsmVdmConfig, TemporalConfig, UNetConfig
from videossm.models.ssm_vdm.diffusion import alpha_bars
from videossm.models.ssm_vdm.model import SsmVdm
from videossm.models.videossm.checkpoint import CheckpointError, check_keys

PREFIX = "denoise_fn.module."
SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}
PROFILER = ("total_ops", "total_params")  # left by a profiler that was run on the model before it was saved
ATTENTION_BIAS = "time_rel_pos_bias.relative_attention_bias.weight"  # only temporal attention reads it
SCHEDULE_TOLERANCE = 1e-5  # the buffers are fp32


@dataclass(frozen=True)
class PublicSetting:
    """What a checkpoint does not say: the command line that it was trained with does."""

    version: int  # --ssm_version; the code of the paper's v1 to v3 numbers otherwise: its 19 is 20 here
    height: int  # pixels; --image_size
    width: int  # pixels
    frames: int  # of a clip; --num_frames
    fps: float


def load_public(path: Path, setting: PublicSetting) -> SsmVdm:
    """The model with the averaged weights. Raises CheckpointError, or ConfigError for a setting that does not fit."""
    state = _averaged(path)
    schedule = {name: state.pop(name) for name in list(state) if name in SCHEDULE}
    timesteps = _timesteps(path, schedule)
    outside = sorted(name for name in state if not name.startswith(PREFIX) and name.split(".")[-1] not in PROFILER)
    if outside:
        raise CheckpointError(
            f"{path}: tensors: got {outside[0]}, expected the noise schedule and names that begin with {PREFIX}; "
            "use a checkpoint of the public training script"
        )
    tensors = {
        name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.split(".")[-1] not in PROFILER
    }
    tensors.pop(ATTENTION_BIAS, None)
    unet = _unet_config(path, tensors)
    if unet.temporal.version != setting.version:
        raise CheckpointError(
            f"{path}: temporal layers: got those of version {unet.temporal.version}, expected version "
            f"{setting.version}; state the version that it was trained with"
        )
    config = SsmVdmConfig(
        name="ssm-vdm",
        height=setting.height,
        width=setting.width,
        fps=setting.fps,
        batch=1,
        mode="clip",
        frames=setting.frames,
        patch=1,
        unet=unet,
        diffusion=DiffusionConfig(timesteps, "noise", "ddpm", steps=timesteps),
    )
    model = SsmVdm(config).eval()
    # The public code's convolutions are three-dimensional: axes of length 1 make no difference.
    wanted = model.unet.state_dict()
    shapes = [{name: tuple(tensor.squeeze().shape) for name, tensor in those.items()} for those in (wanted, tensors)]
    check_keys(path, *shapes)
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{path}: tensors: got NaN or infinite values in {bad[0]}, expected finite weights; "
            "use an earlier checkpoint"
        )
    model.unet.load_state_dict({name: tensor.reshape(wanted[name].shape) for name, tensor in tensors.items()})
    return model


def _averaged(path: Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: got no readable checkpoint ({first}), expected model-K.pt of the public training script; "
            "check the path"
        ) from None
    state = saved.get("ema") if isinstance(saved, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(
            f"{path}: got no state dict under 'ema', expected the averaged weights there; "
            "use model-K.pt of the public training script"
        )
    return dict(state)


def _timesteps(path: Path, schedule: Mapping[str, Tensor]) -> int:
    if missing := sorted(SCHEDULE - schedule.keys()):
        raise CheckpointError(
            f"{path}: noise schedule: got no {missing[0]}, expected its {len(SCHEDULE)} buffers; "
            "use the whole state dict of the public training script"
        )
    bars = schedule["alphas_cumprod"]
    timesteps = len(bars)
    if (bars - alpha_bars(timesteps).to(bars.dtype)).abs().max() > SCHEDULE_TOLERANCE:
        raise CheckpointError(
            f"{path}: alphas_cumprod: got another noise schedule, expected the cosine of {timesteps} steps; "
            "use a checkpoint of the public training script"
        )
    return timesteps


def _unet_config(path: Path, tensors: Mapping[str, Tensor]) -> UNetConfig:
    """Every size that a UNet's tensors tell. Raises CheckpointError where a tensor is missing that tells one."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(
                f"{path}: tensors: got no {name}, expected an S4D or S6 UNet; use a checkpoint of such a model"
            )
        return tuple(tensors[name].shape)

    dim, channels, *_, kernel = shape("init_conv.weight")
    levels = len({found[1] for name in tensors if (found := re.match(r"downs\.(\d+)\.", name))})
    mults = tuple(shape(f"downs.{level}.0.block1.proj.weight")[0] // dim for level in range(levels))
    linears = sum(bool(re.fullmatch(r"time_mlp\.\d+\.weight", name)) for name in tensors)
    return UNetConfig(
        dim=dim,
        mults=mults,
        channels=channels,
        heads=shape("downs.0.2.fn.fn.to_qkv.weight")[0] // (3 * ATTENTION_WIDTH),
        temporal=_temporal_config(path, tensors),
        time_linears=linears,
        time_width=shape("time_mlp.1.weight")[0] // dim,
        init_kernel=kernel,
    )


def _temporal_config(path: Path, tensors: Mapping[str, Tensor]) -> TemporalConfig:
    prefix = "init_temporal_layer.fn.fn.fn."
    leaves = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    kind = next((kind for kind in ("s4d", "s6") if f"{kind}.D" in leaves), None)
    if kind is None:
        raise CheckpointError(
            f"{path}: temporal layers: got {', '.join(sorted(leaves)[:2]) or 'none'}, expected those of S4D or S6; "
            "temporal attention is not implemented"
        )
    gated, linear = f"{kind}.output_linear.0.weight" in leaves, "fc1.weight" in leaves
    if "fc_init.weight" in leaves:
        version = 20
    elif "fc_shortcut.weight" in leaves:
        version = 10
    elif gated:
        version = 8 if linear else 2
    else:
        version = 1
    name = f"{kind}.kernel.log_A_real" if kind == "s4d" else f"{kind}.A_log"
    widths = {1: "fc1.weight", 8: "fc1.weight"} | ({10: "fc3.weight"} if kind == "s6" else {})
    try:
        state = leaves[name].shape[1] * (2 if kind == "s4d" else 1)
        linear_dim = leaves[widths[version]].shape[0] if version in widths else 0
    except KeyError as error:
        raise CheckpointError(
            f"{path}: tensors: got no {prefix}{error.args[0]}, expected that of a temporal layer of version {version}; "
            "use a whole checkpoint"
        ) from None
    return TemporalConfig(kind, version, f"{kind}_rev.D" in leaves, state, linear_dim)
