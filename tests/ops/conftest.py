"""Every backend that has kernels, and inputs that make routing non-trivial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import backends
from intermoe.ops.moe import Experts, Route, Select

# tokens, dim, experts, expert_dim, rows: and why.
SHAPES = [
    (64, 32, 4, 48, 4),  # whole vectors of every instruction set
    (63, 7, 5, 9, 9),  # odd everything: tail masks
    (1, 1, 1, 1, 1),  # the smallest
    (0, 8, 4, 8, 1),  # no tokens
    (530, 17, 3, 33, 2),  # more tokens than a block of the selection and of the sums
    (20, 16, 64, 8, 20),  # more experts than tokens; a row of the condition per token
]


@dataclass
class Case:
    """Tensors of one call of ``intermoe.ops.moe.moe``, in the order of ``NAMES``."""

    hidden: Tensor
    router_weight: Tensor
    router_offset: Tensor
    scale: Tensor
    shift: Tensor
    selection_bias: Tensor
    w_gate_up: Tensor
    w_down: Tensor
    valid: Tensor

    def values(self) -> list[Tensor]:
        return [getattr(self, name) for name in NAMES]

    def steps(self, **options: bool) -> tuple[Route, Select, Experts]:
        """Arguments of the operation; the options are those of ``Experts``."""
        return steps_of(self.values(), self.valid, **options)


NAMES = ("hidden", "router_weight", "router_offset", "scale", "shift", "selection_bias", "w_gate_up", "w_down")


def steps_of(
    values: Sequence[Tensor | None], valid: Tensor | None = None, *, normalise: bool = True, **options: Any
) -> tuple[Route, Select, Experts]:
    """Arguments of the operation from values in the order of ``NAMES``; without normalisation scale and shift drop."""
    *route, bias, w_gate_up, w_down = values
    route = route if normalise else [*route[:3], None, None]
    select = Select(None if valid is not None and valid.dim() == 2 else bias, valid)
    return Route(*route, normalise), select, Experts(w_gate_up, w_down, **options)


@pytest.fixture(name="steps_of")
def steps_of_fixture():
    return steps_of


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def case(request: pytest.FixtureRequest) -> Case:
    """Tokens with anything from no expert to all of them, in float32."""
    return draw(*request.param)


def draw(tokens: int, dim: int, experts: int, expert_dim: int, rows: int, seed: int = 0) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    bias = torch.full((experts,), -0.5)
    bias[0] = -0.999  # an expert that hardly any token takes
    return Case(
        hidden=normal(tokens, dim) + 0.5,
        router_weight=normal(experts, dim, scale=dim**-0.5),
        router_offset=normal(rows, experts),
        scale=normal(rows, dim, scale=0.5),
        shift=normal(rows, dim, scale=0.5),
        selection_bias=bias,
        w_gate_up=normal(experts, 2 * expert_dim, dim, scale=dim**-0.5),
        w_down=normal(experts, dim, expert_dim, scale=expert_dim**-0.5),
        valid=torch.rand(tokens, generator=g) > 0.2,
    )


@pytest.fixture(params=["native", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend with kernels that is usable on this machine's CPU."""
    status = backends.available()[request.param]
    if "cpu" not in status.devices:
        pytest.skip(f"{request.param} backend does not serve the CPU here: {status.reason}")
    return request.param


@pytest.fixture
def steps(backend: str) -> ModuleType:
    """The step functions of the backend."""
    return backends.load(backend)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest, backend: str) -> torch.dtype:
    """A storage type that the backend serves."""
    try:
        backends.resolve(torch.device("cpu"), request.param, backend)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    return request.param


@pytest.fixture
def tolerance():
    """Bound of the relative error of a sum of ``terms`` products whose inputs and result are stored in ``dtype``."""

    def bound(dtype: torch.dtype, terms: int) -> float:
        if dtype == torch.float32:
            return 1e-5
        return 4 * torch.finfo(dtype).eps * max(terms, 1) ** 0.5

    return bound
