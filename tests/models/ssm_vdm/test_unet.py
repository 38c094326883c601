"""The UNet: names as in the public code, every temporal layer in every form, graphs without complex numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videossm.models.ssm_vdm import presets
from videossm.models.ssm_vdm.config import VERSIONS, TemporalConfig, UNetConfig
from videossm.models.ssm_vdm.diffusion import scalars
from videossm.models.ssm_vdm.model import random_model
from videossm.models.ssm_vdm.step import Step
from videossm.models.ssm_vdm.unet import UNet

TOLERANCE = 1e-5  # absolute, on outputs of order 1
KINDS = [(kind, version) for kind, versions in VERSIONS.items() for version in versions]
# Of the public code's instances in public_keys.txt; linear_dim as it was there.
PUBLIC = {
    "s4d 1 both": TemporalConfig("s4d", 1, True, 16, 64),
    "s4d 2 both": TemporalConfig("s4d", 2, True, 16),
    "s4d 8 both": TemporalConfig("s4d", 8, True, 512, 512),
    "s4d 10 both": TemporalConfig("s4d", 10, True, 16),
    "s4d 20 both": TemporalConfig("s4d", 20, True, 16),
    "s4d 20 forward": TemporalConfig("s4d", 20, False, 16),
    "s6 1 both": TemporalConfig("s6", 1, True, 16, 64),
    "s6 2 both": TemporalConfig("s6", 2, True, 16),
    "s6 10 both": TemporalConfig("s6", 10, True, 16, 48),
    "s6 20 both": TemporalConfig("s6", 20, True, 16),
}
LEAVES = "init_temporal_layer.fn.fn.fn."


def without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """The public code's convolutions are three-dimensional."""
    return tuple(size for size in shape if size != 1)


def public_keys() -> dict[str, dict[str, tuple[int, ...]]]:
    """By section, name to shape, without axes of length 1."""
    sections: dict[str, dict[str, tuple[int, ...]]] = {}
    current: dict[str, tuple[int, ...]] = {}
    for line in (Path(__file__).parent / "public_keys.txt").read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif not line.startswith("#"):
            name, shape = line.split()
            current[name] = without_ones(int(size) for size in shape.split(","))
    del sections["unet"]["time_rel_pos_bias.relative_attention_bias.weight"]  # of temporal attention
    return sections


@pytest.mark.parametrize("name", PUBLIC)
def test_names_and_shapes_are_those_of_the_public_code(name: str) -> None:
    expected = public_keys()
    with torch.device("meta"):
        unet = UNet(UNetConfig(dim=16, mults=(1, 2, 4, 8), channels=3, heads=8, temporal=PUBLIC[name]))
    found = {key: without_ones(tensor.shape) for key, tensor in unet.state_dict().items()}
    inside = {key for layer, _ in unet.temporal_layers() for key, module in unet.named_modules() if module is layer}
    leaves = {key for key in found if any(key.startswith(f"{layer}.") for layer in inside)}
    assert {key: found[key] for key in found.keys() - leaves} == expected["unet"]
    assert {key.removeprefix(LEAVES): found[key] for key in leaves if key.startswith(LEAVES)} == expected[name]


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_every_layer_mixes_frames_as_its_direction_allows(kind: str, version: int, bidirectional: bool) -> None:
    settings = presets.test(kind, version, bidirectional, norm="frame")
    # float64, since a layer with random weights may pass little on.
    unet, sample = random_model(settings).unet.double(), torch.randn(1, 8, 3, 8, 8, dtype=torch.float64)
    changed = sample.clone()
    changed[:, 5] += 1
    differs = (unet(sample, torch.ones(1))[0] - unet(changed, torch.ones(1))[0]).abs().amax((0, 2, 3, 4)) > 1e-10
    assert differs[5:].all()
    assert differs[:5].all() == bidirectional
    assert differs[:5].any() == bidirectional


def test_places_in_groups_are_all_places_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = random_model(presets.test()).unet, torch.randn(1, 8, 3, 8, 8)
    whole, _ = model(sample, torch.ones(1))
    monkeypatch.setattr("videossm.models.ssm_vdm.unet.GROUP_TOKENS", 8 * 20)  # 20 of 64 places, 16 of 16
    groups, _ = model(sample, torch.ones(1))
    assert (groups - whole).abs().max() < TOLERANCE


def test_norms_over_the_clip_join_all_frames() -> None:
    settings = presets.test(bidirectional=False, norm="clip")
    unet, sample = random_model(settings).unet, torch.randn(2, 8, 3, 8, 8)
    changed = sample.clone()
    changed[0, -1] += 1
    difference = (unet(sample, torch.ones(1))[0] - unet(changed, torch.ones(1))[0]).abs().amax((2, 3, 4))
    assert difference[0].min() > 1e-4
    assert difference[1].max() == 0


@pytest.mark.parametrize("streamed", [False, True], ids=["clip", "stream"])
@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_a_step_is_exported_without_complex_numbers(kind: str, version: int, streamed: bool) -> None:
    choice = {"norm": "frame", "mode": "stream"} if streamed else {}
    settings = presets.test(kind, version, not streamed, **choice)
    settings = replace(settings, unet=replace(settings.unet, cond_dim=6), vocab_size=32, text_len=12)
    model = random_model(settings)
    step, sample, cond = Step(model.unet, settings), torch.randn(settings.sample_shape), torch.randn(1, 6)
    shapes = model.unet.state_shapes(1, *settings.sample_shape[3:]) if streamed else []
    values = [torch.tensor([value]) for value in scalars(settings.diffusion)[1].values()]
    inputs = (sample, values, cond, None, [torch.randn(shape) for shape in shapes])
    program = torch.export.export(step, inputs)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if "fft" in name or "complex" in name]
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not [value for value in values if isinstance(value, torch.Tensor) and value.is_complex()]
    assert any("selective_scan" in name for name in names) == (kind == "s6")
    for got, expected in zip(_flat(program.module()(*inputs)), _flat(step(*inputs)), strict=True):
        assert (got - expected).abs().max() < TOLERANCE


def _flat(result: tuple[torch.Tensor, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]
