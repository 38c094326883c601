"""Trains the shapes transformer and its text encoder on encoded clips.

    python training/shapes/train_transformer.py --data out/clips.pt --out out/transformer.pt --stage first --minutes 20
    python training/shapes/train_transformer.py --data out/clips.pt --out out/transformer.pt --stage clips --minutes 90

Stage `first` trains first chunks alone (cheap: no past), `clips` all chunks by teacher forcing and first
chunks beside them: they are the hard ones, nothing before them says where the object is. Each stage goes
on from --out where it exists. Flow matching on x0, its error weighed as a velocity error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset import load
from muon import BatchedMuon
from teacher_forcing import Layout, predict, predict_first
from videossm.models.videossm.presets import SHAPES_SHIFT, shapes
from videossm.models.videossm.text_encoder import TextEncoder
from videossm.models.videossm.transformer import SoftmaxAttention, Transformer

SIGMA_FLOOR = 0.1  # of the weight 1 / sigma^2
CONTEXT_NOISE = 0.15  # largest noise level on context chunks, against drift
FIRST_WEIGHT = 1.0  # of the loss of first chunks beside that of clips
LATE_STREAM = 0.5  # share of clips whose router believes to be deep in a long video
SAVE_EVERY_S = 240


class Generator(nn.Module):
    """What is trained together."""

    def __init__(self) -> None:
        super().__init__()
        config = shapes()
        self.transformer = Transformer(config)
        self.text_encoder = TextEncoder(config.text_encoder, config.transformer.text_len, config.transformer.text_dim)
        for block in self.transformer.blocks:  # residual branches start closed
            nn.init.zeros_(block.self_attn.o.weight)
            nn.init.zeros_(block.cross_attn.o.weight)
            nn.init.zeros_(block.ffn.get_parameter("2.weight"))


def plain_attention(
    attention: SoftmaxAttention, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
) -> Tensor:
    """Spelled out: the backward pass of the fused operator takes half of an iteration on a CPU."""
    query, key, value = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, -1e4)
    return (scores.float().softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def noise_levels(shape: tuple[int, ...]) -> Tensor:
    """Uniform, warped as the sampler's."""
    s = torch.rand(shape)
    return SHAPES_SHIFT * s / (1 + (SHAPES_SHIFT - 1) * s)


def flow_error(x0: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Squared error of the flow that the prediction of x0 means, averaged over each chunk: as `sigma`."""
    weight = sigma.clamp(min=SIGMA_FLOOR) ** -2
    return (x0 - target).square().flatten(sigma.dim()).mean(-1) * weight


def first_loss(model: Generator, layout: Layout, latents: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Loss of chunks [B, F, C, h, w] as first chunks."""
    sigma = noise_levels(latents.shape[:1])
    level = sigma[:, None, None, None, None]
    noisy = (1 - level) * latents + level * torch.randn_like(latents)
    x0 = predict_first(model.transformer, layout, noisy, sigma, model.text_encoder(ids, mask))
    return flow_error(x0, latents, sigma).mean()


def clip_loss(
    model: Generator, layout: Layout, latents: Tensor, ids: Tensor, mask: Tensor, described: Tensor, copies: int
) -> Tensor:
    """Loss of the chunks from `described` [B] on of clips [B, K, F, C, h, w], each in `copies` noisy copies."""
    batch, chunks = latents.shape[:2]
    sigma = noise_levels((copies, batch, chunks))
    level = sigma[..., None, None, None, None]
    noisy = (1 - level) * latents + level * torch.randn((copies, *latents.shape))
    context_level = CONTEXT_NOISE * torch.rand(batch, 1, 1, 1, 1, 1) * (torch.rand(batch, 1, 1, 1, 1, 1) < 0.7)
    context = (1 - context_level) * latents + context_level * torch.randn_like(latents)
    evicted = torch.tensor(layout.evicted, dtype=torch.float32)
    rho = evicted / torch.arange(chunks).clamp(min=1)
    late = (torch.rand(batch, 1) < LATE_STREAM) * torch.rand(batch, 1)
    rho = torch.where(evicted > 0, rho + (1 - rho) * late, rho)
    text = model.text_encoder(ids, mask)
    x0 = predict(model.transformer, layout, context, noisy, sigma, text, rho)
    judged = torch.arange(chunks) >= described[:, None]
    return (flow_error(x0, latents.expand_as(x0), sigma) * judged).sum() / (copies * judged.sum())


def clip_batches(data: dict[str, Tensor], layout: Layout, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless random clips [B, K, F, C, h, w], ids, masks, and the first chunk that each prompt describes [B]."""
    length, frames = data["latents"].shape[1], layout.chunks * layout.frames
    while True:
        rows = torch.randint(len(data["latents"]), (size,))
        # A switch falls between two chunks: in a real rollout too a prompt changes there.
        earliest = data["described"][rows]
        chunk = torch.where(earliest > 0, 1 + torch.randint(layout.chunks - 2, (size,)), 0)
        starts = torch.where(
            earliest > 0, earliest - chunk * layout.frames, torch.randint(length - frames + 1, (size,))
        )
        latents = cut(data["latents"], rows, starts, frames).unflatten(1, (layout.chunks, layout.frames))
        yield latents, data["ids"][rows], data["mask"][rows], chunk


def first_batches(data: dict[str, Tensor], layout: Layout, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless random chunks [B, F, C, h, w] that their prompts describe, ids and masks."""
    while True:
        rows = torch.randint(len(data["latents"]), (size,))
        earliest = data["described"][rows]
        choices = data["latents"].shape[1] - layout.frames + 1 - earliest
        starts = earliest + (torch.rand(size) * choices).long()
        yield cut(data["latents"], rows, starts, layout.frames), data["ids"][rows], data["mask"][rows]


def cut(latents: Tensor, rows: Tensor, starts: Tensor, frames: int) -> Tensor:
    pairs = zip(rows.tolist(), starts.tolist(), strict=True)
    return torch.stack([latents[row, start : start + frames] for row, start in pairs]).float()


def optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if ".blocks." in n and p.ndim == 2 and min(p.shape) > 8]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        BatchedMuon(matrices, lr=rate),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    config = shapes()
    model, data = Generator(), load(args.data)
    average, step = None, 0
    if args.out.exists():
        saved = torch.load(args.out, weights_only=True)
        model.load_state_dict(saved["model"])
        average, step = saved["average"], saved["step"]
    average = average or {n: p.detach().clone() for n, p in model.named_parameters()}
    opts = optimisers(model, args.rate)
    clips = args.stage == "clips"
    layout = Layout(config.window, args.chunks)
    first_chunks, whole_clips = first_batches(data, layout, args.first_batch), clip_batches(data, layout, args.batch)
    SoftmaxAttention.forward = plain_attention  # type: ignore[assignment, method-assign]
    first, later = (torch.compile(loss, dynamic=False) for loss in (first_loss, clip_loss))
    start = saved_at = time.monotonic()
    losses, first_step = [], step
    while (done := (time.monotonic() - start) / 60 / args.minutes) < 1:
        warm, cool = min(1.0, (step - first_step + 1) / 40), min(1.0, (1 - done) / args.cool) if args.cool else 1.0
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.rate * warm * cool
        batch = next(first_chunks)
        with torch.autocast("cpu", torch.bfloat16):
            loss = first(model, layout, *batch)
        (loss * (FIRST_WEIGHT if clips else 1)).backward()
        if clips:
            batch = next(whole_clips)
            with torch.autocast("cpu", torch.bfloat16):
                loss = later(model, layout, *batch, args.copies)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        weight = max(0.005, 1 / ((step - first_step) / 5 + 1)) if first_step == 0 else 0.005
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            torch._foreach_lerp_(list(average.values()), [parameters[n] for n in average], weight)
        losses.append(loss.item())
        if step % 20 == 0:
            rate = (time.monotonic() - start) / (step - first_step)
            print(f"{step} {done:.1%} loss {sum(losses) / len(losses):.4f} {rate:.2f} s/it", flush=True)
            losses = []
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            save(args.out, model, average, step)
            saved_at = time.monotonic()
    save(args.out, model, average, step)


def save(path: Path, model: nn.Module, average: dict[str, Tensor], step: int) -> None:
    temporary = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "average": average, "step": step}, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=["first", "clips"], required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--first-batch", type=int, default=128, help="first chunks an iteration, in either stage")
    parser.add_argument("--batch", type=int, default=12, help="clips an iteration")
    parser.add_argument("--chunks", type=int, default=7)
    parser.add_argument("--copies", type=int, default=2, help="noisy copies of each chunk of a clip")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--cool", type=float, default=0.0, help="share of the time over which the rate falls to 0")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
