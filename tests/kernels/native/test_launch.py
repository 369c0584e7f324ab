"""Kernels of another compiler, all launches of a call at once: what a driver is handed, by one that writes it down."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from intermoe import backends
from intermoe.kernels.native import library

MOST_PLACES, MOST_PARAMETERS = 256, 64
START = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)  # fmt: skip
Launch = Callable[..., tuple[int, list[Any]]]


@pytest.fixture
def launch() -> Launch:
    """``launch(places, launches, bases, answers)``: the library's answer, and what the driver was handed."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")

    def run(
        places: list[tuple[int, int]], launches: list[list[int]], bases: list[int], answers: tuple[int, ...] = (0, 0)
    ) -> tuple[int, list[Any]]:
        handed: list[Any] = []
        counts = [one[6] for one in launches]

        def start(function: int, *sizes: Any) -> int:
            *sizes, stream, parameters, extra = sizes
            count = counts[len(handed)]
            values = [ctypes.c_int64.from_address(parameters[i]).value for i in range(count)]
            handed.append((function, sizes, stream, values, extra))
            return answers[len(handed) - 1]

        driver = START(start)
        numbers = [
            len(launches),
            len(places),
            *(n for place in places for n in place),
            *(n for one in launches for n in one),
        ]
        program = (ctypes.c_int64 * len(numbers))(*numbers)
        address = ctypes.cast(driver, ctypes.c_void_p).value
        answer = library.load().intermoe_launch(address, program, (ctypes.c_int64 * len(bases))(*bases), 99)
        return answer, handed

    return run


def test_a_driver_is_handed_every_size_and_parameter(launch: Launch) -> None:
    """Parameters are places, which lie some bytes behind a base, or numbers that stand in the program itself."""
    places = [(0, 0), (1, 256), (0, 16)]
    first = [4711, 3, 2, 1, 128, 8, 3, 1, -17, 2]
    second = [4712, 5, 6, 7, 64, 0, 1, 0]
    answer, handed = launch(places, [first, second], [1000, 2000])
    assert answer == 0
    assert handed == [
        (4711, [3, 2, 1, 128, 1, 1, 8], 99, [2256, 2, 1016], None),  # 17 numbers on stands the last source: 2
        (4712, [5, 6, 7, 64, 1, 1, 0], 99, [1000], None),
    ]


def test_the_most_places_and_parameters(launch: Launch) -> None:
    places = [(0, number) for number in range(MOST_PLACES)]
    sources = range(MOST_PLACES - MOST_PARAMETERS, MOST_PLACES)
    answer, ((_, _, _, values, _),) = launch(places, [[1, 1, 1, 1, 32, 0, MOST_PARAMETERS, *sources]], [500])
    assert (answer, values) == (0, [500 + source for source in sources])
    assert launch([*places, (0, 0)], [[1, 1, 1, 1, 32, 0, 0]], [500]) == (-1, [])
    assert library.load().intermoe_last_error() == b"places: expected at most 256"
    assert launch(places, [[1, 1, 1, 1, 32, 0, MOST_PARAMETERS + 1, *sources, 0]], [500]) == (-1, [])
    assert library.load().intermoe_last_error() == b"parameters: expected at most 64"


@pytest.mark.parametrize(
    ("answers", "answer", "started"),
    [((7, 0), 7, 1), ((0, 7), -1, 2)],  # of the first it can be tried again; after that something has run
)
def test_what_a_driver_refuses_is_told(launch: Launch, answers: tuple[int, ...], answer: int, started: int) -> None:
    found, handed = launch([], [[1, 1, 1, 1, 32, 0, 0]] * 2, [0], answers)
    assert (found, len(handed)) == (answer, started)
    assert library.load().intermoe_last_error().decode() == f"launch {started} of 2: the CUDA driver says 7"


def test_a_library_that_is_not_there_is_told() -> None:
    if not backends.available()["native"].usable:
        pytest.skip("native backend: not usable")
    assert library.load().intermoe_open_driver(b"libthereisnosuchdriver.so") == 0
    assert b"libthereisnosuchdriver.so" in library.load().intermoe_last_error()
