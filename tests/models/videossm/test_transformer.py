"""The network against diffusers' Wan, and the properties that a rollout relies on."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import Tensor

from videossm.models.shapes.tokenizer import build_tokenizer
from videossm.models.videossm.config import ModelConfig
from videossm.models.videossm.model import VideoModel, random_model
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.presets import videossm_1_3b
from videossm.models.videossm.step import PromptEncoder, Step, TurnKeys
from videossm.models.videossm.transformer import Transformer

TOLERANCE = 1e-5
STEP_INPUTS = [name for name in inspect.signature(Step.forward).parameters if name != "self"]

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
    empty = torch.zeros(batch, 0, transformer.dim)
    moved, *_ = step(
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


def wan_twin(config: ModelConfig, ours: Transformer) -> torch.nn.Module:
    """diffusers' Wan with the weights of `ours`, whose norms are made to differ first."""
    diffusers = pytest.importorskip("diffusers", reason="the independent implementation; pip install 'videossm[wan]'")
    c = config.transformer
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
    noise = torch.Generator().manual_seed(7)
    weights = {diffusers_name(name): tensor for name, tensor in ours.state_dict().items()}
    for name, weight in weights.items():
        if "norm" in name:
            weight.normal_(1, 0.3, generator=noise)  # of ones a swapped pair would not show
    theirs.load_state_dict(weights, strict=True)
    return theirs


def wan_flow(wan: torch.nn.Module, latent: Tensor, sigma: float, text: Tensor) -> Tensor:
    """What diffusers' Wan predicts for latents [B, F, C, h, w], all frames at `sigma` and seeing each other."""
    time = torch.full((len(latent),), 1000 * sigma)
    return wan(latent.transpose(1, 2), time, text, return_dict=False)[0].transpose(1, 2)


@torch.no_grad()
def test_equals_the_wan_transformer_of_diffusers() -> None:
    config = small_preset().replace(batch=2, transformer={"memory": False, "dim": 96, "heads": 3, "layers": 3})
    ours = random_model(config, seed=1).transformer
    wan = wan_twin(config, ours)
    noise = torch.Generator().manual_seed(8)
    latent = torch.randn(config.latent_shape, generator=noise)
    text = torch.randn(2, config.transformer.text_len, config.transformer.text_dim, generator=noise)
    expected = wan_flow(wan, latent, 0.7, text)
    got = run_chunk(config, Step(ours, config), latent, 0.7, text)
    assert (got - expected).norm() / expected.norm() < TOLERANCE


@torch.no_grad()
def test_window_equals_the_wan_transformer_of_diffusers() -> None:
    """Six frames at once = three committed, then three that see them in the window.

    In a first layer the keys of a frame depend on no other frame, so with one layer Wan, which is not causal, gives
    the last three the same. Wan has one noise level for all frames; so here the commit is at that one, not at 0.
    """
    config = small_preset().replace(batch=2, transformer={"memory": False, "dim": 96, "heads": 3, "layers": 1})
    c, frames, sigma = config.transformer, config.window.chunk_frames, 0.7
    ours = random_model(config, seed=1).transformer
    wan, step, turn_keys = wan_twin(config, ours), Step(ours, config), TurnKeys(ours)
    noise = torch.Generator().manual_seed(9)
    batch, _, *shape = config.latent_shape
    latents = torch.randn(batch, 2 * frames, *shape, generator=noise)
    text = torch.randn(batch, c.text_len, c.text_dim, generator=noise)
    expected = wan_flow(wan, latents, sigma, text)[:, frames:]

    prompt = [tensor for pair in ours.prompt_state(text) for tensor in pair]
    window = torch.full((2, batch, config.window_tokens, c.dim), 1e3)  # poison: not NaN, 0 * NaN is NaN
    past, slots = list(window), torch.full((config.window.window_frames,), -1)

    def flow(chunk: int) -> tuple[Tensor, list[Tensor]]:
        latent, level = latents[:, chunk * frames :][:, :frames], torch.tensor([sigma])
        position = torch.arange(frames) + chunk * frames
        seen = list(past)
        seen[::2] = turn_keys(slots, past[::2])
        moved, present, _ = step(latent, level, level - 1, slots, position, prompt, seen, [])
        return latent - moved, present

    _, present = flow(0)
    for tensor, new in zip(past, present, strict=True):
        tensor[:, config.chunk_tokens : 2 * config.chunk_tokens] = new
    slots[frames : 2 * frames] = torch.arange(frames)
    got, _ = flow(1)
    error = float((got - expected).norm() / expected.norm())
    assert error < TOLERANCE, f"flow behind a window: got relative error {error:.1e}, expected below {TOLERANCE:.0e}"


def wan_keys(layers: int) -> set[str]:
    """The tensors of a checkpoint of Wan2.1-T2V."""
    linears = ["patch_embedding", "time_projection.1", "head.head"]
    linears += [f"{name}_embedding.{i}" for name in ("text", "time") for i in (0, 2)]
    keys = {"head.modulation"}
    for block in (f"blocks.{i}" for i in range(layers)):
        linears += [f"{block}.{name}" for name in ("norm3", "ffn.0", "ffn.2")]
        linears += [f"{block}.{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"]
        keys |= {f"{block}.{kind}_attn.norm_{name}.weight" for kind in ("self", "cross") for name in "qk"}
        keys.add(f"{block}.modulation")
    return keys | {f"{name}.{kind}" for name in linears for kind in ("weight", "bias")}


def test_tensors_of_wan_1_3b() -> None:
    with torch.device("meta"):
        tensors = Transformer(videossm_1_3b().replace(transformer={"memory": False})).state_dict()
    assert tensors.keys() == wan_keys(layers=30), f"names: {sorted(tensors.keys() ^ wan_keys(30))[:3]} differ"
    assert len(tensors) == 825, f"tensors: got {len(tensors)}, expected 825"
    count = sum(tensor.numel() for tensor in tensors.values())
    assert count == 1_418_996_800, f"parameters: got {count}, expected 1418996800"
    assert tensors["patch_embedding.weight"].shape == (1536, 16, 1, 2, 2), "the convolution is stored as one"


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
            "prompt": [draw(1, transformer.text_len, transformer.dim) for _ in range(2 * transformer.layers)],
            "window": [draw(1, config.window_tokens, transformer.dim) for _ in range(2 * transformer.layers)],
            "memory": [draw(1, heads, dim, dim) for _ in range(transformer.layers)],
            "rho": torch.tensor([0.3]),
            "noise": draw(*config.latent_shape),
        }

    def step(self) -> Step:
        return Step(random_model(self.config).transformer, self.config)

    @torch.no_grad()
    def test_empty_slots_do_not_count(self) -> None:
        inputs = self.inputs(filled_slots=6)
        expected, *_ = self.step()(**inputs)
        poisoned = [tensor.clone() for tensor in inputs["window"]]
        for tensor in poisoned:
            tensor[:, 6 * self.config.frame_tokens :] = 1e3
        got, *_ = self.step()(**{**inputs, "window": poisoned})
        torch.testing.assert_close(got, expected)

    @torch.no_grad()
    def test_order_of_slots_does_not_matter(self) -> None:
        inputs = self.inputs(filled_slots=9)
        expected, *_ = self.step()(**inputs)
        tokens, order = self.config.frame_tokens, torch.tensor([0, 1, 2, 6, 7, 8, 3, 4, 5])
        turned = [x.unflatten(1, (-1, tokens))[:, order].flatten(1, 2) for x in inputs["window"]]
        got, *_ = self.step()(**{**inputs, "window": turned, "slot_position": order})
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("name", STEP_INPUTS)
    def test_every_input_matters(self, name: str) -> None:
        inputs = self.inputs(filled_slots=9)
        expected, *_ = self.step()(**inputs)
        value = inputs[name]
        other = [x.roll(1, -1) for x in value] if isinstance(value, list) else 2 * value
        if name == "slot_position":  # of the slots it says which are empty; their keys are turned beforehand
            other = value.clone()
            other[-1] = -1
        if name == "frame_position":  # in the window, where positions are counted
            other = value - 1
        got, *_ = self.step()(**{**inputs, name: other})
        assert (got - expected).abs().max() > 1e-4

    @torch.no_grad()
    def test_in_place_is_the_same(self) -> None:
        """The chunk in the window's room instead of behind a copy; what was in the room before does not matter."""
        inputs, tokens = self.inputs(filled_slots=9), self.config.chunk_tokens
        expected, presents, nothing = self.step()(**inputs)
        assert nothing == []
        window = [torch.cat([x[:, None], torch.full((1, 1, tokens, x.shape[2]), 1e3)], 2) for x in inputs["window"]]
        got, same, written = self.step()(**{**inputs, "window": window})
        torch.testing.assert_close([got, *same], [expected, *presents], atol=0, rtol=0)
        for before, after in zip(inputs["window"], written, strict=True):
            torch.testing.assert_close(after[:, 0, :-tokens], before, atol=0, rtol=0)
        stride = len(presents) // self.config.transformer.layers
        torch.testing.assert_close(written[1][:, 0, -tokens:], presents[1], atol=0, rtol=0)
        assert len(written) == 2 * len(presents) // stride

    @torch.no_grad()
    def test_commit_leaves_the_latent(self) -> None:
        inputs = self.inputs(filled_slots=3) | {"sigma": torch.zeros(1), "sigma_next": torch.zeros(1)}
        got, *_ = self.step()(**inputs)
        torch.testing.assert_close(got, inputs["latent"], atol=0, rtol=0)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["euler", "renoise"])
    def test_x0_prediction(self, kind: str) -> None:
        """The head's prediction is the clean latent: the step goes on from it by the sampler's equation."""
        inputs = self.inputs(filled_slots=9)
        flow_step, latent, s = self.step(), inputs["latent"], inputs["sigma"]
        moved, *_ = flow_step(**{**inputs, "noise": None, "sigma_next": s - 1})  # as a flow: latent - prediction
        prediction, s_next = latent - moved, inputs["sigma_next"]
        assert s_next > 0, f"sigma_next: got {s_next.item()}, expected more than 0; at 0 both samplers end at x0"
        if kind == "euler":
            expected = latent + (s_next - s) * (latent - prediction) / s
        else:
            expected = (1 - s_next) * prediction + s_next * inputs["noise"]
        x0_step = Step(flow_step.transformer, self.config.replace(transformer={"prediction": "x0"}))
        got, *_ = x0_step(**{**inputs, "noise": inputs["noise"] if kind == "renoise" else None})
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class TestPrompt:
    """The small preset's text encoder and the prompt state made of its features."""

    texts = ("a red circle bounces on gray", "a blue square", "a red circle")

    @pytest.fixture
    def model(self) -> VideoModel:
        return random_model(small_preset())

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of `texts`, int64 [3, L] each."""
        tokenizer = build_tokenizer()
        tokenizer.enable_padding(length=small_preset().transformer.text_len)
        encoded = tokenizer.encode_batch(list(self.texts))
        return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])

    def features_and_state(self, model: VideoModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
        encode = PromptEncoder(model.text_encoder, model.transformer)
        return [model.text_encoder(ids, mask), *encode(ids, mask)]

    @torch.no_grad()
    def test_features_of_padding_are_zero(self, model: VideoModel) -> None:
        ids, mask = self.tokens()
        features, words = model.text_encoder(ids, mask), mask.bool()
        assert words.sum(1).tolist() == [6, 3, 3], f"words: got {words.sum(1).tolist()}, expected [6, 3, 3]"
        assert not features[~words].any(), "padding has features"
        assert bool(features[words].any(-1).all()), "a word has no features"

    @torch.no_grad()
    def test_what_stands_in_padding_does_not_count(self, model: VideoModel) -> None:
        ids, mask = self.tokens()
        words = torch.randint(2, int(ids.max()) + 1, ids.shape, generator=torch.Generator().manual_seed(2))
        got = self.features_and_state(model, torch.where(mask == 0, words, ids), mask)
        torch.testing.assert_close(got, self.features_and_state(model, ids, mask), atol=0, rtol=0)

    @torch.no_grad()
    def test_prompts_differ(self, model: VideoModel) -> None:
        """Already at their first word, which is the same."""
        for tensor in self.features_and_state(model, *self.tokens()):
            for a, b in ((0, 1), (0, 2), (1, 2)):
                difference = (tensor[a, 0] - tensor[b, 0]).abs().max().item()
                assert difference > 1e-4, f"{self.texts[a]!r} and {self.texts[b]!r}: differ by {difference} only"
