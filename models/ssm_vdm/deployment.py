"""An SSM video diffusion model as it is shipped: its engines, what each reads and writes, its states and passes.

A chunk is a clip, or a chunk of a stream; each pass is a step of the sampler. Every pass of a stream has states of its
own: what its noise level has seen of the frames before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from videossm.models.family import Deployment, Engine, Layers, NoiseSource, Pass, Precision, State, Stream, Text
from videossm.models.ssm_vdm import rollout
from videossm.models.ssm_vdm.config import SsmVdmConfig
from videossm.models.ssm_vdm.diffusion import scalars
from videossm.models.ssm_vdm.model import SsmVdm
from videossm.models.ssm_vdm.step import Decode, Step

RESNET = r"unet\.(downs|ups)\.\d+\.[01]|unet\.mid_block[12]|unet\.final_conv\.0"
PRECISION = Precision(
    kept_engines={"text_encoder": "runs once a prompt, and every pass reads what it makes", "decoder": "pixels"},
    layers=(
        Layers(rf"({RESNET})\.(block[12]\.proj|res_conv)"),
        Layers(r"unet\.(downs|ups)\.\d+\.4"),
        Layers(r"unet\..*spatial_attn.*|unet\.(downs|ups)\.\d+\.2.*"),
        Layers(r"unet\..*\.fc_(init|out|shortcut|rev)?[123]?"),
        Layers(r"unet\..*\.(s4d|s6)(_rev)?.*", "scan, whose error adds up over frames"),
        Layers(r"unet\.init_conv", "first layer"),
        Layers(r"unet\.final_conv\.1", "last layer"),
    ),
    # TensorRT-RTX has no transposed convolution in bf16.
    fp32_modules=(r"unet\..*\.(s4d|s6)(_rev)?.*", r"unet\.final_conv\.1", r"unet\.ups\.\d+\.4"),
)


def deployment(model: SsmVdm, tokenizer: str, examples: Sequence[str] = ()) -> Deployment:
    """`model` as a deployment. `tokenizer`: JSON, of a model with prompts; `examples`: prompts to calibrate on."""
    config = model.config
    text = Text(tokenizer, config.text_len, examples=tuple(examples)) if model.prompt is not None else None
    return Deployment(
        name=config.name,
        stream=Stream(config.batch, config.fps, config.height, config.width, config.frames, config.frames),
        text=text,
        states=({} if text is None else {"cond": State("prompt")}) | _states(model),
        engines=[*_text_encoder(model), _step(model), _decoder(config)],
        passes=_passes(config),
        precision=PRECISION,
        config=config.to_dict(),
        reference=lambda ids, mask, noise: _reference(model, ids, mask, noise),
    )


def _reference(
    model: SsmVdm, ids: Tensor | None, mask: Tensor | None, noise: NoiseSource
) -> Iterator[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        cond = None if model.prompt is None else model.prompt(ids, mask)
    for sample in rollout.samples(model, noise, cond):
        yield sample, rollout.frames(model, sample)


def _state_names(model: SsmVdm) -> list[str]:
    """Of a stream's states, in the order of `UNet.state_shapes`: layer 0, 1, .. in the order of running."""
    if not model.config.streams:
        return []
    return [
        f"{index}.{name}" for index, (layer, _) in enumerate(model.unet.temporal_layers()) for name in layer.state_names
    ]


def _states(model: SsmVdm) -> dict[str, State]:
    return {name: State("carry", per_pass=True, half=name.endswith(".convolution")) for name in _state_names(model)}


def _passes(config: SsmVdmConfig) -> list[Pass]:
    """The steps of the sampler; the last one of DDPM multiplies its noise by 0."""
    return [Pass("step", values, noise=values.get("spread", 0) > 0) for values in scalars(config.diffusion)]


def _text_encoder(model: SsmVdm) -> list[Engine]:
    if model.prompt is None:
        return []
    ids = torch.zeros(model.config.batch, model.config.text_len, dtype=torch.int64)
    inputs = {"input_ids": "text.ids", "attention_mask": "text.mask"}
    example = (ids, torch.ones_like(ids))
    return [Engine("text_encoder", model.prompt, example, inputs, {"cond": "state.cond"}, when="prompt")]


def _step(model: SsmVdm) -> Engine:
    config = model.config
    step, names = Step(model.unet, config), _state_names(model)
    batch, _, _, height, width = config.sample_shape
    sample = torch.empty(config.sample_shape)
    prompts, ddpm = model.prompt is not None, config.diffusion.sampler == "ddpm"
    states = [torch.empty(shape) for shape in model.unet.state_shapes(batch, height, width)] if names else None
    inputs = {"sample": "sample", **{name: f"pass.{name}" for name in step.scalars}}
    if prompts:
        inputs["cond"] = "state.cond"
    if ddpm:
        inputs["noise"] = "noise"
    return Engine(
        "step",
        step,
        (
            sample,
            [torch.ones(1) for _ in step.scalars],
            torch.empty(batch, config.unet.cond_dim) if prompts else None,
            torch.empty_like(sample) if ddpm else None,
            states,
        ),
        inputs | {f"state.{name}": f"state.{name}" for name in names},
        {"sample_next": "sample", **{f"state_next.{name}": f"state.{name}" for name in names}},
    )


def _decoder(config: SsmVdmConfig) -> Engine:
    sample = torch.empty(config.sample_shape)
    return Engine("decoder", Decode(config.patch), (sample,), {"sample": "clean"}, {"frames": "frames"}, when="after")
