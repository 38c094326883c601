"""What the scans' CUDA kernels are checked with: inputs, float64 results, and calls by addresses into guarded memory.

Used by `benchmarks/scans_cuda.py` on a GPU and by `tests/plugins_trt`, there also without one, with the kernels on an
emulator.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from videossm.models.scans.gated_delta import gated_delta_reference
from videossm.models.scans.selective_scan import selective_scan_reference
from videossm.plugins_trt import GatedDeltaParams, ScanLibrary, SelectiveScanParams
from videossm.plugins_trt.params import BF16, FP16, FP32

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NUMBERS = {"fp32": FP32, "fp16": FP16, "bf16": BF16}

# Relative error in the Frobenius norm against float64 on the same inputs: outputs, then final states. In 16 bits the
# gated delta kernels round their operands, the state's copy among them; the selective scan's rounds its outputs alone.
GATED_TOLERANCE = {"fp32": (1e-5, 1e-5), "fp16": (8e-4, 8e-4), "bf16": (5e-3, 5e-3)}
SELECTIVE_TOLERANCE = {"fp32": (1e-5, 1e-5), "fp16": (3e-4, 1e-5), "bf16": (2.5e-3, 1e-5)}
SCALE = 0.7
EXTREME = -69.0  # e^-69 is 1e-30
GUARD = 256  # bytes on both sides of what is written
CANARY = 0xA5

Tensors = dict[str, Tensor | None]
Results = tuple[Tensor | None, Tensor]


@dataclass(frozen=True)
class GatedCase:
    """`correlation`: of neighbouring keys; `gates`: "usual", "extreme" (1e-30 to 1), "forgets" (0) or "keeps" (1)."""

    dtype: str
    tokens: int
    key_dim: int = 64
    value_dim: int = 64
    batch: int = 1
    heads: int = 2
    wanted: bool = True
    normalize: bool = True
    correlation: float = 0.0
    gates: str = "usual"
    key_norms: str = "usual"  # "uneven": from 0 to 1e2

    @property
    def tolerance(self) -> tuple[float, float]:
        return GATED_TOLERANCE[self.dtype]

    def tensors(self) -> Tensors:
        random = torch.Generator().manual_seed(self.tokens)
        rows = (self.batch, self.tokens, self.heads)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        common = normal(self.batch, 1, self.heads, self.key_dim)
        key = self.correlation**0.5 * common + (1 - self.correlation) ** 0.5 * normal(*rows, self.key_dim)
        query = normal(*rows, self.key_dim)
        if not self.normalize:
            key, query = F.normalize(key, dim=-1), F.normalize(query, dim=-1)
        if self.key_norms == "uneven":
            norms = 10 ** (6 * torch.rand((*rows, 1), generator=random) - 4)
            key, query = (
                x * torch.where(torch.rand((*rows, 1), generator=random) < 0.1, 0, norms) for x in (key, query)
            )
        decay, beta = -0.1 * normal(*rows).exp(), normal(*rows).sigmoid()
        struck = torch.rand(rows, generator=random)
        if self.gates == "extreme":
            decay = torch.where(struck < 0.2, EXTREME, torch.where(struck < 0.5, EXTREME * struck**2, 0.0))
        elif self.gates in ("forgets", "keeps"):
            decay = torch.full(rows, -torch.inf if self.gates == "forgets" else 0.0)
        dtype = TORCH_DTYPES[self.dtype]
        value = normal(*rows, self.value_dim)
        return {
            "query": query.to(dtype) if self.wanted else None,
            "key": key.to(dtype),
            "value": value.to(dtype),
            "decay": decay,
            "beta": beta,
            "state": normal(self.batch, self.heads, self.key_dim, self.value_dim),
        }

    def expected(self, tensors: Tensors) -> Results:
        """On the tensors' device."""
        key, value, decay, beta, state = (_double(tensors, name) for name in ("key", "value", "decay", "beta", "state"))
        query = _double(tensors, "query") if self.wanted else key
        if self.normalize:
            key, query = F.normalize(key, dim=-1), F.normalize(query, dim=-1)
        output, last = gated_delta_reference(query, key, value, decay, beta, state, SCALE)
        return (output if self.wanted else None), last

    def params(self) -> GatedDeltaParams:
        """With sizes, without addresses."""
        sizes = (self.batch, self.tokens, self.heads, self.key_dim, self.value_dim)
        return GatedDeltaParams(*sizes, NUMBERS[self.dtype], SCALE, self.normalize, self.normalize)

    def run(self, library: ScanLibrary, tensors: Tensors, in_place: bool = False, stream: int = 0) -> Results:
        """From tensors of the library's device; `in_place`: the last state takes the place of a copy of the first."""
        params = self.params()
        state, value = given(tensors, "state"), given(tensors, "value")
        output = Guarded(value) if self.wanted else None
        last = Guarded(state, filled=in_place)
        for name, tensor in tensors.items():
            setattr(params, name, tensor.data_ptr() if tensor is not None else 0)
        params.output = output.tensor.data_ptr() if output else 0
        params.last_state = last.tensor.data_ptr()
        if in_place:
            params.state = params.last_state
        workspace = Guarded(torch.empty(library.workspace_bytes(params), dtype=torch.uint8, device=state.device))
        params.workspace, params.workspace_bytes = workspace.tensor.data_ptr(), workspace.tensor.numel()
        library.run(params, stream)
        workspace.check("workspace")
        return (output.check("output") if output else None), last.check("last_state")


@dataclass(frozen=True)
class SelectiveCase:
    """`options`: the letters of D, z, b (delta_bias) and s (delta_softplus) that are given."""

    dtype: str
    tokens: int
    channels: int = 17
    states: int = 16
    batch: int = 2
    wanted: bool = True
    options: str = "Dzbs"
    steps: str = "usual"  # "extreme": from e^-69 to 69, "small": a state remembers thousands of tokens

    @property
    def tolerance(self) -> tuple[float, float]:
        return SELECTIVE_TOLERANCE[self.dtype]

    def tensors(self) -> Tensors:
        random = torch.Generator().manual_seed(self.tokens + self.states)
        rows, dtype = (self.batch, self.channels, self.tokens), TORCH_DTYPES[self.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        delta = normal(*rows) - (6 if self.steps == "small" else 1)
        if self.steps == "extreme":
            struck = torch.rand(rows, generator=random)
            delta = torch.where(struck < 0.3, -EXTREME, torch.where(struck > 0.7, EXTREME, delta))
        if "s" not in self.options:
            delta = 0.1 * delta.abs()
        tensors: Tensors = {
            "u": normal(*rows).to(dtype),
            "delta": delta.to(dtype),
            "A": -normal(self.channels, self.states).exp(),
            "B": normal(self.batch, self.states, self.tokens).to(dtype),
            "C": normal(self.batch, self.states, self.tokens).to(dtype) if self.wanted else None,
            "state": normal(self.batch, self.channels, self.states),
            "D": normal(self.channels) if "D" in self.options else None,
            "z": normal(*rows).to(dtype) if "z" in self.options else None,
            "delta_bias": 0.1 * normal(self.channels).abs() if "b" in self.options else None,
        }
        return tensors

    def expected(self, tensors: Tensors) -> Results:
        u, delta, A, B, state = (_double(tensors, name) for name in ("u", "delta", "A", "B", "state"))
        C = _double(tensors, "C") if self.wanted else B
        D, z, bias = (None if tensors[name] is None else _double(tensors, name) for name in ("D", "z", "delta_bias"))
        y, last = selective_scan_reference(u, delta, A, B, C, state, D, z, bias, "s" in self.options)
        return (y if self.wanted else None), last

    def params(self) -> SelectiveScanParams:
        sizes = (self.batch, self.channels, self.tokens, self.states)
        return SelectiveScanParams(*sizes, NUMBERS[self.dtype], "s" in self.options)

    def run(self, library: ScanLibrary, tensors: Tensors, in_place: bool = False, stream: int = 0) -> Results:
        params = self.params()
        y = Guarded(given(tensors, "u")) if self.wanted else None
        last = Guarded(given(tensors, "state"), filled=in_place)
        for name, tensor in tensors.items():
            setattr(params, name, tensor.data_ptr() if tensor is not None else 0)
        params.y = y.tensor.data_ptr() if y else 0
        params.last_state = last.tensor.data_ptr()
        if in_place:
            params.state = params.last_state
        library.run(params, stream)
        return (y.check("y") if y else None), last.check("last_state")


Case = GatedCase | SelectiveCase


class Guarded:
    """A tensor of NaN like another, or `filled` with its numbers, between bytes that nobody may write."""

    def __init__(self, like: Tensor, filled: bool = False) -> None:
        size = like.numel() * like.element_size()
        self._bytes = torch.full((size + 2 * GUARD,), CANARY, dtype=torch.uint8, device=like.device)
        self._bytes[GUARD : GUARD + size] = 0xFF
        self.tensor = self._bytes[GUARD : GUARD + size].view(like.dtype).view(like.shape)
        if filled:
            self.tensor.copy_(like)

    def check(self, name: str) -> Tensor:
        """Raises RuntimeError where something was written beside the tensor."""
        for where, edge in (("before", self._bytes[:GUARD]), ("behind", self._bytes[-GUARD:])):
            if not bool((edge == CANARY).all()):
                raise RuntimeError(f"{name}: got writes {where} it, expected none")
        return self.tensor


def name(case: Case) -> str:
    """Its dtype and tokens, and what is not as usual."""
    odd = {f.name: value for f in fields(case) if (value := getattr(case, f.name)) != f.default}
    return "-".join([odd.pop("dtype"), str(odd.pop("tokens")), *(f"{key}={value}" for key, value in odd.items())])


def on(device: str, tensors: Tensors) -> Tensors:
    return {name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()}


def given(tensors: Tensors, name: str) -> Tensor:
    """A tensor that is not one of those left out."""
    tensor = tensors[name]
    assert tensor is not None, f"{name}: got None, expected a tensor"
    return tensor


def errors(actual: Results, expected: Results) -> tuple[float, float]:
    """Relative, of the output (0 where none is wanted) and of the final state; NaN where there is NaN."""
    return _error(actual[0], expected[0]), _error(actual[1], expected[1])


def parts(case: Case, tensors: Tensors, first: int) -> list[tuple[Case, Tensors]]:
    """Two calls in place of one, over `first` tokens and the others; the second is to be given the first's state."""
    axis = 1 if isinstance(case, GatedCase) else 2
    whole = {"state", "A", "D", "delta_bias"}
    calls: list[tuple[Case, Tensors]] = []
    for start, stop in ((0, first), (first, case.tokens)):
        cut: Tensors = {
            name: x if x is None or name in whole else x.narrow(axis, start, stop - start).contiguous()
            for name, x in tensors.items()
        }
        calls.append((replace(case, tokens=stop - start), cut))
    return calls


def gated_cases() -> list[GatedCase]:
    """Every kernel, odd sizes, what goes wrong in other implementations."""
    cases = []
    for dtype in TORCH_DTYPES:
        for tokens, dims in ((1, (32, 32)), (15, (64, 128)), (33, (32, 48)), (97, (128, 64)), (130, (128, 128))):
            for wanted in (True, False):
                cases.append(GatedCase(dtype, tokens, *dims, batch=2, wanted=wanted, correlation=0.9))
        cases += [GatedCase(dtype, 97, gates=gates, correlation=0.9) for gates in ("extreme", "forgets", "keeps")]
        cases += [GatedCase(dtype, 70, normalize=False, heads=3), GatedCase(dtype, 70, key_norms="uneven")]
        cases.append(GatedCase(dtype, 1560, 128, 128, heads=1, correlation=0.9, gates="keeps"))
    return cases


def selective_cases() -> list[SelectiveCase]:
    cases = []
    for dtype in TORCH_DTYPES:
        # One token; rows that do and do not start at multiples of 16 bytes; less and more than a chunk; many states.
        for tokens, states in ((1, 16), (1, 64), (1, 5), (2, 7), (128, 16), (129, 8), (300, 64), (520, 24)):
            cases.append(SelectiveCase(dtype, tokens, states=states))
            cases.append(SelectiveCase(dtype, tokens, states=states, channels=3, wanted=False))
        cases += [SelectiveCase(dtype, 130, options=options) for options in ("", "D", "z", "b", "s", "Db")]
        cases += [SelectiveCase(dtype, 130, steps="extreme"), SelectiveCase(dtype, 1500, channels=4, steps="small")]
        cases.append(SelectiveCase(dtype, 20, channels=3, states=256))
    return cases


def _double(tensors: Tensors, name: str) -> Tensor:
    return given(tensors, name).double()


def _error(actual: Tensor | None, expected: Tensor | None) -> float:
    if actual is None or expected is None:
        return 0.0
    return float((actual.double() - expected).norm() / expected.norm())
