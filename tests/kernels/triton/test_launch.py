"""What tells compiled kernels apart: through a stand-in for Triton's kernels, so no GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
launches = pytest.importorskip("intermoe.kernels.triton.launch")


class Compiled:
    """A compiled kernel: started with all arguments on a grid."""

    def __init__(self, log: list[tuple[Any, ...]], number: int) -> None:
        self.log, self.number = log, number

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *arguments: self.log.append(("started", self.number, grid, arguments))


class Kernel:
    """A jitted kernel: compiles, starts, and hands out what it compiled."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.compiled = 0
        self.arg_names = ["x_ptr", "y_ptr", "count", "BLOCK", "FLAG"]

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def compile_and_start(*arguments: Any, **constants: Any) -> Compiled:
            self.compiled += 1
            self.log.append(("compiled", self.compiled, grid, arguments, constants))
            return Compiled(self.log, self.compiled)

        return compile_and_start


class Somewhere(torch.Tensor):
    """A tensor that says it lies on another device, or off a boundary of 16 bytes."""

    number, offset = 0, 0

    def get_device(self) -> int:
        return self.number

    def data_ptr(self) -> int:
        return 4096 + self.offset


def tensor(dtype: torch.dtype = torch.float32, device: int = 0, offset: int = 0) -> Somewhere:
    made = torch.zeros(4, dtype=dtype).as_subclass(Somewhere)
    made.number, made.offset = device, offset
    return made


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(launches, "_compiled", {})
    return Kernel()


CONSTANTS = {"BLOCK": 16, "FLAG": True, "num_warps": 4}
FIRST = ((tensor(), tensor(), 7), CONSTANTS)
OTHERS = {
    "dtype of the first": ((tensor(torch.float16), tensor(), 7), CONSTANTS),
    "dtype of the second": ((tensor(), tensor(torch.bfloat16), 7), CONSTANTS),
    "half types are two": ((tensor(torch.bfloat16), tensor(), 7), CONSTANTS),
    "index type": ((tensor(torch.int64), tensor(), 7), CONSTANTS),
    "device": ((tensor(device=1), tensor(device=1), 7), CONSTANTS),
    "alignment of the first": ((tensor(offset=4), tensor(), 7), CONSTANTS),
    "alignment of the second": ((tensor(), tensor(offset=8), 7), CONSTANTS),
    "absent": ((tensor(), None, 7), CONSTANTS),
    "width of a number": ((tensor(), tensor(), 2**31), CONSTANTS),
    "type of a number": ((tensor(), tensor(), 7.0), CONSTANTS),
    "a size": ((tensor(), tensor(), 7), {**CONSTANTS, "BLOCK": 32}),
    "a flag": ((tensor(), tensor(), 7), {**CONSTANTS, "FLAG": False}),
    "warps": ((tensor(), tensor(), 7), {**CONSTANTS, "num_warps": 8}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_compiled_differently_is_kept_apart(kernel: Kernel, name: str) -> None:
    for arguments, constants in (FIRST, OTHERS[name], FIRST, OTHERS[name]):
        launches.launch(kernel, (3, 1, 1), arguments, constants)
    assert [entry[:2] for entry in kernel.log] == [("compiled", 1), ("compiled", 2), ("started", 1), ("started", 2)]


def test_all_kinds_at_once_are_kept_apart(kernel: Kernel) -> None:
    for _ in range(2):
        for arguments, constants in (FIRST, *OTHERS.values()):
            launches.launch(kernel, (1, 1, 1), arguments, constants)
    assert kernel.compiled == len(OTHERS) + 1
    assert len(kernel.log) == 2 * kernel.compiled


def test_kernels_are_kept_apart(kernel: Kernel) -> None:
    other = Kernel()
    for one in (kernel, other, kernel, other):
        launches.launch(one, (1, 1, 1), *FIRST)
    assert [k.log[0][0] for k in (kernel, other)] == ["compiled", "compiled"]
    assert [k.log[1][0] for k in (kernel, other)] == ["started", "started"]


def test_what_is_compiled_alike_is_compiled_once(kernel: Kernel) -> None:
    """Counts and values are not looked at; arguments, grid and constants are those of the call."""
    for count, grid in ((7, (3, 1, 1)), (16, (4, 2, 1)), (2**31 - 1, (5, 1, 1))):
        arguments = (tensor(), tensor(), count)
        launches.launch(kernel, grid, arguments, CONSTANTS)
        assert kernel.log[-1][2] == grid
        assert all(found is given for found, given in zip(kernel.log[-1][3], arguments, strict=False))
    assert kernel.compiled == 1
    assert kernel.log[0][4] == {**CONSTANTS, "enable_fp_fusion": True}
    constants = (16, True) if launches._TAKES_CONSTANTS else ()
    assert kernel.log[1][3][3:] == constants, "options are no arguments of a compiled kernel"


def test_nothing_starts_on_an_empty_grid(kernel: Kernel) -> None:
    for grid in ((0, 1, 1), (1, 0, 1)):
        launches.launch(kernel, grid, *FIRST)
    assert not kernel.log
