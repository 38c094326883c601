"""The memory's equations written out in float64, head by head and token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from videossm.models.videossm.memory import RHO_MIN, Memory
from videossm.models.videossm.presets import test as small_preset
from videossm.models.videossm.step import MemoryUpdate

CONFIG = small_preset().transformer
BATCH, TOKENS, HEADS, DIM = 2, 5, CONFIG.heads, CONFIG.head_dim
TOLERANCE = 1e-5  # relative error of fp32 in the Frobenius norm


def random_memory() -> Memory:
    """No parameter at its start: ones and zeros hide mistakes."""
    memory = Memory(CONFIG)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * (0.2 if parameter.ndim == 2 else 0.7))
    return memory


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.shape == expected.shape, f"{name}: got shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = float((actual.double() - expected).norm() / expected.norm())
    assert error <= TOLERANCE, f"{name}: got relative error {error:.1e}, expected at most {TOLERANCE:.0e}"


@torch.no_grad()
def test_gates() -> None:
    """beta = sigmoid(W_b H), alpha = -exp(A) softplus(W_a H + B)."""
    memory, hidden = random_memory(), draw(1, BATCH, TOKENS, CONFIG.dim)
    alpha, beta = torch.empty(2, BATCH, TOKENS, HEADS, dtype=torch.float64)
    w_a, w_b, bias_b = memory.decay.weight.double(), memory.beta.weight.double(), memory.beta.bias.double()
    for b, t, h in torch.cartesian_prod(torch.arange(BATCH), torch.arange(TOKENS), torch.arange(HEADS)).tolist():
        x = hidden[b, t].double()
        softplus = math.log1p(math.exp(float(w_a[h] @ x) + memory.decay_bias[h].item()))
        alpha[b, t, h] = -math.exp(memory.decay_rate[h].item()) * softplus
        beta[b, t, h] = sigmoid(float(w_b[h] @ x + bias_b[h]))
    decay, strength = memory.gates(hidden)
    assert_close(decay, alpha, "log-decay")
    assert_close(strength, beta, "beta")
    assert bool((decay < 0).all()), f"log-decay: got {decay.max().item()}, expected less than 0"
    assert decay.dtype == strength.dtype == torch.float32, "gates are fp32"


def read_by_hand(memory: Memory, query: Tensor, hidden: Tensor, state: Tensor, rho: list[float]) -> Tensor:
    """gamma * swish(g_out * RMSNorm(Q M)), gamma = sigmoid(w log(rho) + b), in float64."""
    output = torch.empty(query.shape, dtype=torch.float64)
    query, heads = query.unflatten(-1, (HEADS, DIM)), output.unflatten(-1, (HEADS, DIM))
    gate_weight, gate_bias = memory.out_gate.weight.double(), memory.out_gate.bias.double()
    for b, t, h in torch.cartesian_prod(torch.arange(BATCH), torch.arange(TOKENS), torch.arange(HEADS)).tolist():
        read = query[b, t, h].double() @ state[b, h].double()  # sum over d_k of q_k M[k, v]
        read = read / (read.square().mean() + CONFIG.eps).sqrt() * memory.norm.weight.double()
        rows = slice(h * DIM, (h + 1) * DIM)
        gated = (gate_weight[rows] @ hidden[b, t].double() + gate_bias[rows]) * read
        gamma = sigmoid(memory.router_weight[h].item() * math.log(rho[b]) + memory.router_bias[h].item())
        heads[b, t, h] = gamma * gated / (1 + (-gated).exp())
    return output


@torch.no_grad()
@pytest.mark.parametrize("rho", [[RHO_MIN], [0.4], [1.0], [0.2, 0.9]], ids=str)
def test_read(rho: list[float]) -> None:
    memory = random_memory()
    query, hidden = draw(2, BATCH, TOKENS, CONFIG.dim), draw(3, BATCH, TOKENS, CONFIG.dim)
    state = draw(4, BATCH, HEADS, DIM, DIM)
    expected = read_by_hand(memory, query, hidden, state, rho * BATCH if len(rho) == 1 else rho)
    assert_close(memory.read(query, hidden, state, torch.tensor(rho)), expected, "read-out")


@torch.no_grad()
def test_empty_memory_reads_zero() -> None:
    memory, state = random_memory(), torch.zeros(BATCH, HEADS, DIM, DIM)
    query, hidden = draw(2, BATCH, TOKENS, CONFIG.dim), draw(3, BATCH, TOKENS, CONFIG.dim)
    read = memory.read(query, hidden, state, torch.tensor([RHO_MIN]))
    assert not read.any(), f"read-out of an empty memory: got {read.abs().max().item()}, expected 0"


@torch.no_grad()
@pytest.mark.parametrize("parameter", ["router_weight", "router_bias"])
def test_router_is_per_head(parameter: str) -> None:
    memory, state = random_memory(), draw(4, BATCH, HEADS, DIM, DIM)
    query, hidden = draw(2, BATCH, TOKENS, CONFIG.dim), draw(3, BATCH, TOKENS, CONFIG.dim)
    rho = torch.tensor([0.4])
    before = memory.read(query, hidden, state, rho).unflatten(-1, (HEADS, DIM))
    memory.get_parameter(parameter)[1] += 1
    after = memory.read(query, hidden, state, rho).unflatten(-1, (HEADS, DIM))
    changed = [head for head in range(HEADS) if not torch.equal(before[:, :, head], after[:, :, head])]
    assert changed == [1], f"heads that the router of head 1 moves: got {changed}"


@torch.no_grad()
def test_router_starts_closed() -> None:
    """As built, gamma = rho / (1 + rho): the read-out at rho is that share of what no router would give."""
    memory, state = Memory(CONFIG), draw(4, BATCH, HEADS, DIM, DIM)
    query, hidden = draw(2, BATCH, TOKENS, CONFIG.dim), draw(3, BATCH, TOKENS, CONFIG.dim)
    half = memory.read(query, hidden, state, torch.tensor([1.0]))  # gamma = 1 / 2
    for rho in (RHO_MIN, 0.25):
        got = memory.read(query, hidden, state, torch.tensor([rho]))
        torch.testing.assert_close(got, 2 * half * rho / (1 + rho))


@torch.no_grad()
def test_update_is_the_delta_rule_token_by_token() -> None:
    """Two blocks, keys of any length: M <- exp(alpha) M; M <- M + k (beta (v - M^T k))^T with k normalised."""
    tokens, evicted, expected = 21, [], []
    memory = [draw(10 + block, BATCH, HEADS, DIM, DIM) for block in range(2)]
    for block, state in enumerate(memory):
        key, value = (draw(20 + 2 * block + kind, BATCH, tokens, HEADS, DIM) * 3 for kind in range(2))
        decay, beta = -draw(30 + block, BATCH, tokens, HEADS).abs(), draw(40 + block, BATCH, tokens, HEADS).sigmoid()
        evicted += [key.flatten(2), value.flatten(2), decay, beta]
        after = state.double()
        for b, h in torch.cartesian_prod(torch.arange(BATCH), torch.arange(HEADS)).tolist():
            m = after[b, h].clone()
            for t in range(tokens):
                k, v = key[b, t, h].double(), value[b, t, h].double()
                k = k / k.square().sum().sqrt()
                m = math.exp(decay[b, t, h].item()) * m
                m = m + torch.outer(k, beta[b, t, h].item() * (v - m.T @ k))
            after[b, h] = m
        expected.append(after)
    updated = MemoryUpdate()(evicted, memory)
    assert len(updated) == len(memory), f"memories: got {len(updated)}, expected {len(memory)}"
    for block, (got, wanted) in enumerate(zip(updated, expected, strict=True)):
        assert got.dtype == torch.float32, f"memory of block {block}: got {got.dtype}, expected fp32"
        assert_close(got, wanted, f"memory of block {block}")
