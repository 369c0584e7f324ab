"""Every kernel with every shipped configuration compiles for every supported card, without a GPU, and fits it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

pytest.importorskip("triton")
aot = pytest.importorskip("intermoe.kernels.triton.aot")
INTERPRETED = aot.INTERPRETED

SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}
"""Shared memory in bytes that one block may use."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes for all cards: to start them takes longer than a card's kernels."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        yield processes


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
def test_nothing_spills_and_everything_fits(architecture: int, pool: ProcessPoolExecutor) -> None:
    # sm_120 runs the tiles of sm_86 and is supported on the same terms; half types stand for all there
    every = list(enumerate(aot.specimens(architecture)))
    listed = [(index, kind, specimen) for index, (kind, specimen) in every if architecture != 120 or kind == "half"]
    jobs = [(architecture, index) for index, _, _ in listed]
    found = list(pool.map(aot.compile_numbered, jobs, chunksize=4))
    assert len(found) == len(listed) > 10
    wrong = [
        f"sm_{architecture} {kind} {specimen}: {resources}"
        for (_, kind, specimen), resources in zip(listed, found, strict=True)
        if resources.stack or resources.shared > SHARED_LIMITS[architecture]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
@pytest.mark.parametrize("kernel", ["up", "grad_hidden", "grad_weight"])
def test_sizes_that_align_with_nothing_compile(kernel: str) -> None:
    tile = aot.configs.tile(86, kernel, "half", "medium")
    for specimen in aot.grouped_specimens(kernel, "half", tile, dim=97, expert_dim=63)[:1]:
        assert aot.compile_specimen(specimen, 86).shared <= SHARED_LIMITS[86]


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
def test_only_products_that_may_be_of_tf32_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router's gradient never; the experts' where the precision says so. Read off the code that is made."""
    made: list[Any] = []

    def compiled(*args: Any, **options: Any) -> Any:
        made.append(compile_it(*args, **options))
        return made[-1]

    compile_it = aot.triton.compile
    monkeypatch.setattr(aot.triton, "compile", compiled)

    def of_tf32(specimen: Any) -> bool:
        aot.compile_specimen(specimen, 80)
        return "tf32" in made[-1].asm["ptx"]

    (router,) = (each for each in aot.tokenwise_specimens("fp32") if each.name == "route grad_router")
    assert not of_tf32(router)
    for kernel in ("up", "down", "grad_weight"):
        for precision in ("ieee", "tf32"):
            tile = aot.configs.tile(80, kernel, precision, "small")
            specimen = aot.grouped_specimens(kernel, precision, tile, dim=32, expert_dim=32)[0]
            assert of_tf32(specimen) == (precision == "tf32"), (kernel, precision)
