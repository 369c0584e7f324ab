"""Every other system's network at its published size: equal to a plain transcription of its equations, and as fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import official
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.in2in.network import In2IN
from intermoe.systems.intergen.official import PUBLISHED as INTERGEN
from intermoe.systems.intermask.official import PUBLISHED as INTERMASK
from intermoe.systems.timotion.official import PUBLISHED as TIMOTION
from tests.systems.transcriptions import (
    PlainComMDM,
    PlainInterGenLayer,
    PlainInterMask,
    PlainMDM,
    PlainNetwork,
    PlainTIMotionLayer,
)

TOLERANCE = 1e-5
ROUNDS, FEWEST_ROUNDS = 20, 5

Error = Callable[[Any, Any], float]
State = dict[str, Tensor]


def in2in_of(state: State) -> nn.Module:
    """in2IN has InterGen's weights, and no published names."""
    intergen: Any = official.load_network("intergen", state, INTERGEN)
    with torch.device("meta"):
        network = In2IN(intergen.config).eval()
    network.load_state_dict(intergen.state_dict(), assign=True)
    return network


def intermask_of(state: State) -> nn.Module:
    frequencies = {"position_enc.positional_encoding.inv_freq": 10000.0 ** (-torch.arange(0, 192, 2) / 192)}
    return official.load_network("intermask", {**state, **frequencies}, INTERMASK)


FULL_SIZE: dict[str, tuple[Callable[[], nn.Module], Callable[[State], nn.Module], tuple[str, str], float]] = {
    "intergen": (
        lambda: PlainNetwork(PlainInterGenLayer, INTERGEN),
        lambda state: official.load_network("intergen", state, INTERGEN),
        ("intergen", "keys"),
        171.35,
    ),
    "timotion": (
        lambda: PlainNetwork(PlainTIMotionLayer, TIMOTION),
        lambda state: official.load_network("timotion", state, TIMOTION),
        ("timotion", "keys"),
        66.27,
    ),
    "in2in": (lambda: PlainNetwork(PlainInterGenLayer, INTERGEN), in2in_of, ("intergen", "keys"), 171.35),
    "mdm": (
        PlainMDM,
        lambda state: official.load_network("mdm", state, {}),
        ("commdm", "keys_mdm_backbone"),
        17.88,
    ),
    "commdm": (PlainComMDM, lambda state: official.load_network("commdm", state, {}), ("commdm", "keys"), 22.62),
    "intermask": (PlainInterMask, intermask_of, ("intermask", "keys_transformer"), 43.2),
}
"""The transcription, ours of its weights, the published list of keys, and the published millions of weights."""


def drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    """Random weights; every one is a piece of the same noise, because drawing this many takes seconds."""
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    noise = 0.04 * torch.randn(largest + len(shapes), generator=torch.Generator().manual_seed(0))
    pieces = {
        key: noise[start : start + torch.Size(shape).numel()].view(shape)
        for start, (key, shape) in enumerate(shapes.items())
    }
    scales = {key: 1 + piece for key, piece in pieces.items() if key.endswith("weight") and piece.dim() == 1}
    return {**pieces, **scales}


def call_of(system: str) -> tuple[Tensor, ...]:
    """A motion of 64 frames of which the last four are padding."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    mask, timesteps = torch.arange(64)[None] < 60, torch.tensor([480])
    if system == "intermask":
        return torch.randint(1025, (1, 2, 5, 16), generator=generator), normal(1, 768), mask[:, ::4]
    if system in ("mdm", "commdm"):
        return normal(1, 1 if system == "mdm" else 2, 64, 263), timesteps, normal(1, 512), mask
    return normal(1, 2, 64, 262), timesteps, normal(1, *([3] if system == "in2in" else []), 768), mask


def published_shapes(listed: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Of a network's weights: without the prefix that some have, text encoder and tables."""
    prefix = "decoder.net." if any(key.startswith("decoder.net.") for key in listed) else ""
    others = ("clipTrans.", "clipln.")
    return {
        key.removeprefix(prefix): tuple(shape)
        for key, shape in listed.items()
        if key.startswith(prefix) and not key.startswith(others) and not key.endswith((".pe", "inv_freq"))
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take processor time, the more of it the busier the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("system", FULL_SIZE)
@torch.no_grad()
def test_full_size_equals_a_plain_transcription_and_is_as_fast(
    system: str, golden: Callable[[str], Any], relative_error: Error
) -> None:
    build, load, (file, keys), millions = FULL_SIZE[system]
    with SkipRandomInit():
        plain = build().eval()
    shapes = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    assert published_shapes(golden(f"peers/keys_{file}.json")[keys]) == shapes
    state = drawn(shapes)
    plain.load_state_dict(state)  # into memory of its own, as ours: the pieces of the noise overlap
    network = load(state)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)

    arguments = call_of(system)
    seen = arguments[-1][:, None, None] if system == "intermask" else arguments[-1][:, None]
    found, expected = network(*arguments), plain(*arguments)
    seen = seen.expand(found.shape[:-1])
    assert relative_error(found[seen], expected[seen]) < TOLERANCE

    seconds: dict[nn.Module, list[float]] = {network: [], plain: []}
    for done in range(1, ROUNDS + 1):  # the best of each, of processor time: what else the machine does is not counted
        for which, taken in seconds.items():
            start = time.process_time()
            which(*arguments)
            taken.append(time.process_time() - start)
        if done >= FEWEST_ROUNDS and min(seconds[network]) <= min(seconds[plain]):
            break
    print(f"{system}: {min(seconds[network]) / min(seconds[plain]):.2f}")  # docs/systems.md
    assert min(seconds[network]) <= min(seconds[plain])
