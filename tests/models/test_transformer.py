"""The network against diffusers' Wan, and the properties that a rollout relies on."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from videossm.models.config import ModelConfig
from videossm.models.model import random_model
from videossm.models.presets import test as small_preset
from videossm.models.step import Step

TOLERANCE = 1e-5

DIFFUSERS_NAMES = [  # ours -> diffusers', in order
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"^head\.head", "proj_out"),
    (r"^(head|blocks\.\d+)\.modulation", r"\1.scale_shift_table"),
    (r"^head\.scale_shift_table", "scale_shift_table"),
    (r"\.self_attn\.(norm_.)", r".attn1.\1"),
    (r"\.cross_attn\.(norm_.)", r".attn2.\1"),
    (r"\.self_attn\.o", ".attn1.to_out.0"),
    (r"\.cross_attn\.o", ".attn2.to_out.0"),
    (r"\.self_attn\.", ".attn1.to_"),
    (r"\.cross_attn\.", ".attn2.to_"),
    (r"\.norm3", ".norm2"),
    (r"\.ffn\.0", ".ffn.net.0.proj"),
    (r"\.ffn\.2", ".ffn.net.2"),
]


def diffusers_name(name: str) -> str:
    for pattern, replacement in DIFFUSERS_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def run_chunk(config: ModelConfig, step: Step, latent: Tensor, sigma: float, text: Tensor) -> Tensor:
    """The flow of a first chunk: nothing behind it."""
    prompt = [tensor for pair in step.transformer.prompt_state(text) for tensor in pair]
    transformer, batch = config.transformer, len(latent)
    empty = torch.zeros(batch, 0, transformer.heads, transformer.head_dim)
    moved, _ = step(
        latent,
        torch.tensor([sigma]),
        torch.tensor([sigma - 1.0]),  # euler: x - flow
        torch.zeros(0, dtype=torch.int64),
        torch.arange(config.window.chunk_frames),
        prompt,
        [empty] * (2 * transformer.layers),
        [],
    )
    return latent - moved


@torch.no_grad()
def test_equals_the_wan_transformer_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the independent implementation; pip install 'videossm[wan]'")
    config = small_preset().replace(batch=2, transformer={"memory": False, "dim": 96, "heads": 3, "layers": 3})
    c = config.transformer
    ours = random_model(config, seed=1).transformer
    theirs = diffusers.WanTransformer3DModel(
        patch_size=c.patch,
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        in_channels=c.latent_channels,
        out_channels=c.latent_channels,
        text_dim=c.text_dim,
        freq_dim=c.freq_dim,
        ffn_dim=c.ffn_dim,
        num_layers=c.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=c.eps,
        rope_max_seq_len=64,
    ).eval()
    weights = {diffusers_name(name): tensor for name, tensor in ours.state_dict().items()}
    for name, weight in weights.items():
        if "norm" in name:
            weight.normal_(1, 0.3)  # of ones a swapped pair would not show
    theirs.load_state_dict(weights, strict=True)

    latent, text = torch.randn(config.latent_shape), torch.randn(2, c.text_len, c.text_dim)
    expected = theirs(latent.transpose(1, 2), torch.full((2,), 700.0), text, return_dict=False)[0].transpose(1, 2)
    got = run_chunk(config, Step(ours, config), latent, 0.7, text)
    assert (got - expected).norm() / expected.norm() < TOLERANCE


class TestStep:
    """One small model with everything, over a window of random past chunks."""

    config = small_preset()

    def inputs(self, filled_slots: int) -> dict[str, object]:
        config, transformer = self.config, self.config.transformer
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        heads, dim = transformer.heads, transformer.head_dim
        slots = torch.arange(config.window.window_frames)
        return {
            "latent": draw(*config.latent_shape),
            "sigma": torch.tensor([0.8]),
            "sigma_next": torch.tensor([0.5]),
            "slot_position": torch.where(slots < filled_slots, slots, -1),
            "frame_position": torch.arange(config.window.chunk_frames) + filled_slots,
            "prompt": [draw(1, transformer.text_len, heads, dim) for _ in range(2 * transformer.layers)],
            "past": [draw(1, config.window_tokens, heads, dim) for _ in range(2 * transformer.layers)],
            "memory": [draw(1, heads, dim, dim) for _ in range(transformer.layers)],
            "rho": torch.tensor([0.3]),
            "noise": draw(*config.latent_shape),
        }

    def step(self) -> Step:
        return Step(random_model(self.config).transformer, self.config)

    @torch.no_grad()
    def test_empty_slots_do_not_count(self) -> None:
        inputs = self.inputs(filled_slots=6)
        expected, _ = self.step()(**inputs)
        poisoned = [tensor.clone() for tensor in inputs["past"]]
        for tensor in poisoned:
            tensor[:, 6 * self.config.frame_tokens :] = 1e3
        got, _ = self.step()(**{**inputs, "past": poisoned})
        torch.testing.assert_close(got, expected)

    @torch.no_grad()
    def test_order_of_slots_does_not_matter(self) -> None:
        inputs = self.inputs(filled_slots=9)
        expected, _ = self.step()(**inputs)
        tokens, order = self.config.frame_tokens, torch.tensor([0, 1, 2, 6, 7, 8, 3, 4, 5])
        turned = [x.unflatten(1, (-1, tokens))[:, order].flatten(1, 2) for x in inputs["past"]]
        got, _ = self.step()(**{**inputs, "past": turned, "slot_position": order})
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("name", ["latent", "prompt", "past", "memory", "rho", "noise", "slot_position"])
    def test_every_input_matters(self, name: str) -> None:
        inputs = self.inputs(filled_slots=9)
        expected, _ = self.step()(**inputs)
        value = inputs[name]
        other = [x.roll(1, -1) for x in value] if isinstance(value, list) else 2 * value
        got, _ = self.step()(**{**inputs, name: other})
        assert (got - expected).abs().max() > 1e-4

    @torch.no_grad()
    def test_commit_leaves_the_latent(self) -> None:
        inputs = self.inputs(filled_slots=3) | {"sigma": torch.zeros(1), "sigma_next": torch.zeros(1)}
        got, _ = self.step()(**inputs)
        torch.testing.assert_close(got, inputs["latent"], atol=0, rtol=0)

    @torch.no_grad()
    def test_x0_and_flow_predictions_describe_the_same_step(self) -> None:
        inputs = self.inputs(filled_slots=9)
        flow_step = self.step()
        x0_config = self.config.replace(transformer={"prediction": "x0"})
        x0_step = Step(flow_step.transformer, x0_config)
        moved, _ = x0_step(**{**inputs, "sigma_next": torch.zeros(1)})
        x0 = moved  # the last step of either sampler lands on the predicted clean latent
        flow, _ = flow_step(**{**inputs, "noise": None, "sigma_next": inputs["sigma"] - 1})
        torch.testing.assert_close(x0, inputs["latent"] - flow, atol=1e-5, rtol=1e-5)
