"""Every kernel with every shipped configuration compiles for every supported card, without a GPU, and fits it."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

pytest.importorskip("triton")
aot = pytest.importorskip("intermoe.kernels.triton.aot")

SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}
"""Shared memory in bytes that one block may use."""


def problems(job: tuple[int, int]) -> str | None:
    """Compile one specimen of an architecture; what is wrong with it, if anything."""
    architecture, index = job
    precision, specimen = list(aot.specimens(architecture))[index]
    resources = aot.compile_specimen(specimen, architecture)
    if resources.stack or resources.shared > SHARED_LIMITS[architecture]:
        return f"sm_{architecture} {precision} {specimen}: {resources}"
    return None


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter compiles nothing")
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
def test_nothing_spills_and_everything_fits(architecture: int) -> None:
    listed = enumerate(aot.specimens(architecture))
    # sm_120 runs the tiles of sm_86 and is supported on the same terms; half types stand for all there
    jobs = [(architecture, index) for index, (kind, _) in listed if architecture != 120 or kind == "half"]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [problem for problem in pool.map(problems, jobs, chunksize=4) if problem]
    assert not found, "\n".join(found)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter compiles nothing")
@pytest.mark.parametrize("kernel", ["up", "grad_hidden", "grad_weight"])
def test_sizes_that_align_with_nothing_compile(kernel: str) -> None:
    tile = aot.configs.tile(86, kernel, "half", "medium")
    for specimen in aot.grouped_specimens(kernel, "half", tile, aligned=False)[:1]:
        assert aot.compile_specimen(specimen, 86).shared <= SHARED_LIMITS[86]
