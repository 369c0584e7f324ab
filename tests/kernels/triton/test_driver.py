"""Launches through the CUDA driver's library: by a stand-in for it, of kernels that are stood in for or compiled."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from intermoe import backends
from intermoe.benchmarks.harness import host, standin
from intermoe.kernels.triton import aot, driver
from intermoe.kernels.triton.registry import INTERPRETED

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter starts nothing"),
    pytest.mark.skipif(
        not backends.available()["native"].usable or standin.library() is None,
        reason="needs the native library, and a C++ compiler for the driver's stand-in",
    ),
]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged once is logged again."""
    driver._tell.cache_clear()
    caplog.set_level(logging.WARNING, driver.__name__)
    return caplog


def launched(count: int = 4, together: bool = True) -> list[standin.Launch]:
    """Of the last of so many calls."""
    with standin.stand_in(together=together) as recorded:
        inference = host.calls("triton", host.PROMPT, torch.bfloat16)["inference"]
        for _ in range(count):
            recorded.launches.clear()
            inference()
        return recorded.launches


def test_without_the_library_kernels_start_one_by_one_and_the_log_says_so_once(told: pytest.LogCaptureFixture) -> None:
    found = launched(together=False)
    assert [one.together for one in found] == [False] * 6
    assert len(told.messages) == 1
    assert "one by one" in told.messages[0]
    assert "none: a stand-in" in told.messages[0], "the name of the library that there is not"


def test_a_thread_without_a_context_goes_through_the_launcher_that_makes_one() -> None:
    with standin.stand_in() as recorded:
        inference = host.calls("triton", host.PROMPT, torch.bfloat16)["inference"]
        for answer, together in ((0, True), (driver.NO_CONTEXT, False), (0, True)):
            for _ in range(3):
                recorded.launches.clear()
                standin.answer(answer)
                inference()
            assert [one.together for one in recorded.launches] == [together] * 6
        standin.answer(1)
        with pytest.raises(RuntimeError, match="launch 1 of 6: the CUDA driver says 1"):
            inference()
        standin.answer(0)


def compiled(**changes: Any) -> Any:
    """Of a pointer and a 32-bit number, with Triton's two pointers to scratch memory."""
    metadata = {"num_warps": 4, "shared": 8, "num_ctas": 1, "global_scratch_size": 0, **changes}
    kinds = metadata.pop("types", ["u64 .ptr .global .align 1", "u32", "u64", "u64"])
    threads = metadata.pop("threads", 128)
    lines = ",\n".join(f"\t.param .{kind} name_param_{i}" for i, kind in enumerate(kinds))
    code = f".visible .entry name(\n{lines}\n)\n.reqntid {threads}\n{{"
    return SimpleNamespace(metadata=SimpleNamespace(**metadata), function=4711, asm={"ptx": code})


def numbers_of(one: Any, sources: list[driver.Source]) -> list[int] | None:
    with standin.stand_in():
        started = SimpleNamespace(compiled=one, grid=(3, 2, 1))
        found = driver.program([(started, sources)], [(0, 0), (1, 256)], 2, torch.device("cpu"))
    return None if found is None else list(found._memory)


def test_a_program_lists_places_and_launches() -> None:
    found = numbers_of(compiled(), [(False, 1), (True, None), (True, 7)])
    head = [1, 2, 0, 0, 1, 256, 4711, 3, 2, 1, 128, 8, 4]
    assert found == [*head, 1, -17, -18, -19, 7, 0, 0], "a place, and where the number and no scratch memory stand"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_ctas": 2}, "num_ctas=2"),
        ({"global_scratch_size": 64}, "global_scratch_size=64"),
        ({"profile_scratch_size": 8}, "profile_scratch_size=8"),
        ({"launch_pdl": True}, "launch_pdl=True"),
        ({"launch_cooperative_grid": True}, "launch_cooperative_grid=True"),
        ({"threads": 256}, "4 warps and 256 threads"),
        ({"types": ["u64", "u32", "u32"]}, "2 arguments and parameters"),
        ({"types": ["u64"]}, "2 arguments and parameters"),
        ({"types": ["u32", "u32"]}, "a pointer for a parameter of type u32"),
        ({"types": ["u64", "f32"]}, "7 for a parameter of type f32"),
    ],
)
def test_what_is_not_known_is_not_started(change: dict[str, Any], reason: str, told: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert numbers_of(compiled(**change), [(False, 1), (True, 7)]) is None
    assert [reason in message for message in told.messages] == [True]


def test_parameters_are_read_in_the_code_that_triton_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kernel with pointers, counts and a float."""
    made: list[Any] = []
    compile_ahead = aot.triton.compile
    monkeypatch.setattr(aot.triton, "compile", lambda *a, **k: made.append(compile_ahead(*a, **k)) or made[-1])
    specimen = next(one for one in aot.tokenwise_specimens("bf16") if one.name == "route")
    aot.compile_specimen(specimen, 86)
    threads, _, kinds = driver._needs(made[0])
    assert threads == 32 * specimen.num_warps
    assert kinds[:13] == ["u64"] * 9 + ["u32"] * 3 + ["f32"]
    assert set(kinds[13:]) <= {"u64"}


def test_without_the_native_library_its_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are then started one by one."""

    def absent() -> None:
        raise driver.library.LibraryUnavailable("no library was built", "build it")

    monkeypatch.setattr(driver.library, "load", absent)
    with pytest.raises(driver.Unknown, match=r"^no library was built"):
        driver._opened.__wrapped__("libcuda.so.1")
