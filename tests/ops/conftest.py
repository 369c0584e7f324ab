"""Every backend that has kernels, in every variant that this machine runs, and inputs that make routing non-trivial."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe import backends
from intermoe.kernels.native import library
from intermoe.ops.moe import Experts, Route, Select

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
VARIANTS = ("baseline", "avx2", "avx512")
"""Of the native library, by the number that forces them."""

# tokens, dim, experts, expert_dim, rows: and why.
SHAPES = [
    (64, 32, 4, 48, 4),  # whole vectors of every instruction set
    (63, 7, 5, 9, 9),  # odd everything: tail masks
    (1, 1, 1, 1, 1),  # the smallest
    (0, 8, 4, 8, 1),  # no tokens
    (530, 17, 3, 33, 2),  # more tokens than a block of the selection and of the sums
    (20, 16, 64, 8, 20),  # more experts than tokens; a row of the condition per token
]

# For Triton's interpreter, which takes milliseconds a program; ``tests/kernels/triton/interpreter`` has more.
FEW_SHAPES = [
    (34, 19, 3, 21, 17),  # odd everything; more tokens than a block of the selection; several rows
    (1, 1, 1, 1, 1),  # the smallest
    (0, 8, 4, 8, 1),  # no tokens
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

    def to(self, device: torch.device) -> Case:
        """The case itself, from now on there."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self

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


def choices(fixture: str, backend: str) -> list[Any]:
    """What a fixture goes through for a backend."""
    interpreted = backend == "triton" and INTERPRETED
    halves = [torch.float16] if interpreted else [torch.float16, torch.bfloat16]  # the interpreter has no bfloat16
    return {
        "case": FEW_SHAPES if interpreted else SHAPES,
        "dtype": [torch.float32, *halves],
        "own_products": ["own", "torch", "float32"] if backend.startswith("native") else [""],
        "limit": [0, 1 << 30] if backend.startswith("native") else [0],
    }[fixture]


def spelled(values: tuple[Any, ...]) -> str:
    words = ("x".join(map(str, v)) if isinstance(v, tuple) else str(v).removeprefix("torch.") for v in values)
    return "-".join(words)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Steps run in every native variant, the whole operation in this machine's; Triton where this process has it.

    ``tests/kernels/triton/test_interpreter.py`` runs this folder once more in Triton's interpreter.
    """
    if any(mark.args[0] == "backend" for mark in metafunc.definition.iter_markers("parametrize")):
        return
    more = [name for name in ("case", "dtype", "own_products", "limit") if name in metafunc.fixturenames]
    if "backend" in metafunc.fixturenames:
        native = [f"native {variant}" for variant in VARIANTS] if "steps" in metafunc.fixturenames else ["native"]
        triton = ["triton"] if backends.available()["triton"].usable else []
        found = [
            (backend, *values)
            for backend in (*native, *triton)
            for values in itertools.product(*(choices(name, backend) for name in more))
        ]
        metafunc.parametrize(("backend", *more), found, indirect=True, ids=map(spelled, found))
    elif "case" in more:
        metafunc.parametrize("case", SHAPES, indirect=True, ids=lambda shape: "x".join(map(str, shape)))


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """Tokens with anything from no expert to all of them, in float32."""
    return draw(*request.param)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a backend with kernels; the native one in the variant that the parameter names, if it does."""
    name, _, variant = request.param.partition(" ")
    if not backends.available()[name].usable:
        pytest.skip(f"{name} backend: {backends.available()[name].reason}")
    if not variant:
        yield name
        return
    native, own = library.load(), VARIANTS.index(library.instruction_set())
    if native.intermoe_use_instruction_set(VARIANTS.index(variant)) != 0:
        pytest.skip(f"{variant}: {native.intermoe_last_error().decode()}")
    yield name
    native.intermoe_use_instruction_set(own)


@pytest.fixture
def steps(backend: str) -> Any:
    """The step functions of the backend, which take and give tensors of the CPU wherever they run."""
    module = backends.load(backend)
    if "cpu" in backends.available()[backend].devices:
        return module

    def moved(name: str) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            out = getattr(module, name)(*(v.cuda() if isinstance(v, Tensor) else v for v in values), **options)
            return out.cpu() if isinstance(out, Tensor) else tuple(v.cpu() if isinstance(v, Tensor) else v for v in out)

        return call

    return SimpleNamespace(**{name: moved(name) for name in dir(module) if callable(getattr(module, name))})


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """A storage type that the backend serves."""
    return request.param
