"""Every number and line of a report by hand: no two may be exchanged, none left out or of another unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intermoe.benchmarks import bench_loader, forms, grid, models
from intermoe.benchmarks.harness import case as harness
from intermoe.benchmarks.harness import goals, profiling, report, suite, timing, work
from intermoe.benchmarks.harness.case import Case, Contest, Scope, tolerance
from intermoe.benchmarks.harness.report import Report, Row, Skipped
from intermoe.benchmarks.harness.timing import Ceilings
from intermoe.benchmarks.harness.work import Shape, Work
from intermoe.data import DATA_SETS

CPU = torch.device("cpu")


def test_every_field_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our rounds take 10 to 20 s, a graph's half of that, the dense network's thrice."""
    ours = [10.0 + number for number in range(11)]
    times = {"ours": ours, "graph": [t / 2 for t in ours], "dense": [3 * t for t in ours]}
    entries: dict[str, Any] = {name: lambda _, name=name: (name,) for name in times}
    monkeypatch.setattr(harness, "take_turns", lambda clocks, budget: {name: clocks[name]() for name in clocks})
    monkeypatch.setattr(harness, "clock_of", lambda call, device, sets: lambda: times[call(0)[0]])
    monkeypatch.setattr(harness, "peak_memory", lambda call, device: {"ours": 70, "dense": 90}[call(0)[0]])
    monkeypatch.setattr(harness, "host_reads", lambda call, device: {"ours": 2, "dense": 3}[call(0)[0]])
    contest = Contest(
        entries,
        None,
        0.0,
        [Work(24.0, 20.0), Work(0.0, 30.0)],
        tokens=45,
        seconds_of_motion=5.0,
        others={"dense": "no routing"},
        other_work={"dense": [Work(90.0, 9.0)]},
        graphs=frozenset(["graph"]),
    )
    given = Case("moe", "forward", torch.float32, {"S": 45}, lambda: contest)
    made = harness.timed(given, contest, entries, {"ours": 1e-7}, Ceilings(10.0, {"float32": 2.0}), Scope(CPU, "quick"))
    same = {"step": "moe", "call": "forward", "dtype": "float32", "shape": {"S": 45}, "rounds": 11}
    assert [row.to_dict() for row in made] == [
        {
            **same, "entry": "ours", "median": 15.0, "low": 11.0, "high": 19.0,
            "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0,
            "tokens_per_second": 3.0, "seconds_per_second": 3.0, "flop_per_second": 1.6, "intensity": 24 / 50,
            "bound_share": (12 + 3) / 15, "peak_bytes": 70, "host_reads": 2, "difference": 1e-7, "note": "",
        },
        {
            **same, "entry": "graph", "median": 7.5, "low": 5.5, "high": 9.5,
            "ratio": 0.5, "ratio_low": 0.5, "ratio_high": 0.5,
            "tokens_per_second": 6.0, "seconds_per_second": 1.5, "flop_per_second": 3.2, "intensity": 24 / 50,
            "bound_share": 2.0, "peak_bytes": None, "host_reads": 0, "difference": None, "note": "",
        },
        {
            **same, "entry": "dense", "median": 45.0, "low": 33.0, "high": 57.0,
            "ratio": 3.0, "ratio_low": 3.0, "ratio_high": 3.0,
            "tokens_per_second": 1.0, "seconds_per_second": 9.0, "flop_per_second": 2.0, "intensity": 10.0,
            "bound_share": 1.0, "peak_bytes": 90, "host_reads": 3, "difference": None, "note": "no routing",
        },
    ]  # fmt: skip


def test_every_cell_of_the_table(make_row: Callable[..., Row]) -> None:
    row = make_row(
        "loop", 2e-3, low=1e-3, high=4e-3, ratio=1.25, tokens_per_second=5e6, flop_per_second=6e9, bound_share=0.7,
        peak_bytes=8000, host_reads=9, seconds_per_second=0.011, difference=1.2e-7, note="no routing",
    )  # fmt: skip
    bare = make_row("loop", 2.0, flop_per_second=None, bound_share=None)
    nothing = make_row(
        "loop", 0.0, tokens_per_second=0.0, flop_per_second=0.0, bound_share=0.0,
        peak_bytes=0, host_reads=0, seconds_per_second=0.0, difference=0.0,
    )  # fmt: skip
    assert report.table([row, bare, nothing]) == [
        "| case | entry | median | middle 80 % | ratio | tokens/s | FLOP/s | of bound | peak memory | host reads "
        "| s per s | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| moe forward float32 S=300 | loop (no routing) | 2 ms | 1 ms – 4 ms | 1.25 | 5 M | 6 G | 70% | 8 kB | 9 "
        "| 0.011 | 1.2e-07 |",
        "| moe forward float32 S=300 | loop | 2 s | 1.8 s – 2.2 s | 1.00 |  |  |  |  |  |  |  |",
        # what was counted and is none is told; what was not counted is not
        "| moe forward float32 S=300 | loop | 0 s | 0 s – 0 s | 1.00 | 0  | 0  | 0% | 0 B | 0 | 0 | 0.0e+00 |",
    ]


AMX = "No AMX on this machine: bfloat16 products run without matrix units."


@pytest.mark.parametrize(
    ("machine", "more"),
    [
        ({}, ["As found: 3000 MHz.", AMX]),
        ({"amx": True}, ["As found: 3000 MHz."]),
        ({"kind": "cuda", "driver": "570", "clocks": "SM 1 MHz"}, ["As found: driver 570, SM 1 MHz."]),
        ({"clocks": None}, [AMX]),
    ],
)
def test_every_condition(make_report: Callable[..., Report], machine: dict[str, Any], more: list[str]) -> None:
    run = make_report()
    run = replace(run, machine=replace(run.machine, **machine), to_do=3)
    assert report.conditions(run) == [
        "Some CPU (R) @ 3 GHz, Linux, 2 threads, AVX2; torch 2.6.",
        "Ceilings measured in the same run: copy 20 GB/s; large product 100 GFLOP/s float32, 2 GFLOP/s bfloat16.",
        "Date 2026-01-02T03:04:05Z, level default, float32 products highest.",
        *more,
        "The run ended early: 3 cases were not reached.",
    ]


def test_every_section(make_report: Callable[..., Report], make_row: Callable[..., Row]) -> None:
    """What failed is told first and once; what was skipped by how many cases have one entry and reason in common."""
    rows = [make_row(step=step, ratio=1.5, ratio_low=1.25) for step in ("vae", "loader", "vae")]
    absent = [Skipped(f"case {number}", "megablocks", "not\nhere") for number in range(2)]
    run = replace(
        make_report(*rows), to_do=0, skipped=(*absent, Skipped("b", "all", "no room"), Skipped("c", "x", "wrong", True))
    )
    head = ["# Benchmarks on Some CPU (R) @ 3 GHz", "", *(f"- {line}" for line in report.conditions(run)), ""]
    assert report.markdown(run).splitlines() == [
        *head,
        *("## Failed", "", "| case | entry | what |", "|---|---|---|", "| c | x | wrong |", ""),
        *("## vae", "", *report.table([rows[0], rows[2]]), "", "## loader", "", *report.table(rows[1:2]), ""),
        *("## Skipped", "", "| entry | cases | reason |", "|---|---|---|", "| megablocks | 2 | not here |"),
        "| all | 1 | no room |",
    ]
    assert report.line(run, rows[0].case) == f"{rows[0].case}: native 2 s (1.50), native 2 s (1.50)"
    assert report.line(run, "c") == "c: x FAILED: wrong"
    assert report.line(run, "b") == "b: no room"


def test_ceilings_are_the_best_that_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy reads and writes 2^20 numbers of 4 bytes in 0.5 s; a product of 256 has 2 * 256^3 operations in 0.01 s."""
    taken: list[float] = []

    def best(call: Any, device: torch.device) -> float:
        call(0)
        return taken.pop(0)

    monkeypatch.setattr(timing, "_best", best)
    monkeypatch.setattr(timing, "_ways", lambda dtype, device: ["torch", "float32"])
    taken += [0.04, 0.01, 0.02, 0.08, 0.5]  # two products of each type, then the copy
    found = timing.ceilings(CPU, (torch.float32, torch.bfloat16), small=True)
    assert found == Ceilings(2 * 4 * 2**20 / 0.5, {"float32": 2 * 256**3 / 0.01, "bfloat16": 2 * 256**3 / 0.02})
    taken += [0.001, 0.001, 0.004, 0.009, 0.9, 0.9]  # the largest is the fastest but one
    assert timing._product_rate((256, 512, 1536), torch.float32, CPU) == 2 * 512**3 / 0.004


@pytest.mark.parametrize(("precision", "element"), [("half", 2), ("tf32", 4)])
def test_bytes_of_every_launch_that_multiplies_nothing(precision: str, element: int) -> None:
    """By what each reads and writes, in numbers of the storage type; the router's are of 8 experts in float32."""
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline

    tokens, d, f = 9600, 768, 1024
    weights = 3 * 8 * f * d
    rounded = [("round tokens", 2 * tokens * d), ("round weights", 2 * weights)] if precision == "tf32" else []
    selection = ("select", tokens * 8 * 20 / element)
    combine = ("combine", 2 * tokens * d)
    expected = {
        "forward": [("route", 2 * tokens * d), selection, selection, *rounded, combine],
        "backward": [
            *rounded, *rounded[:1], ("swiglu_backward", 6 * tokens * f), combine, selection,
            ("route grad_input", 3 * tokens * d), ("route grad_router", tokens * d),
        ],
    }  # fmt: skip
    expected["inference"] = expected["forward"]
    for direction, launches in expected.items():
        found = [w for w in roofline.launches(direction, 86, precision, tokens) if w.product is None]
        assert [(w.name, w.bytes / element) for w in found] == launches
        assert all(w.flops == w.padded_flops == 0 for w in found)


@pytest.mark.parametrize(("precision", "element"), [("half", 2), ("tf32", 4)])
def test_bytes_of_every_product(precision: str, element: int) -> None:
    """By what each reads and writes; the activation and its gradient are passes of their own but in the forward."""
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline

    pairs, d, f = 9600, 768, 1024
    narrow, wide, up, down = pairs * d, pairs * f, 8 * 2 * f * d, 8 * d * f
    expected = {
        "up": narrow + up + 2 * wide + wide,  # pairs, weights; pre-activations and activations
        "up inference": narrow + up + wide,
        "down": wide + down + narrow,
        "grad_hidden": narrow + down + wide,
        "grad_pairs": 2 * wide + up + narrow,
        "grad_weight up": 2 * wide + narrow + up,
        "grad_weight down": narrow + wide + down,
    }
    found = {name: roofline.grouped(name, 86, precision, pairs).bytes / element for name in expected}
    assert found == expected


def test_tiles_of_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of 64 rows, 128 columns and 32 of the sum; 1000 tokens are 125 rows of each of 8 experts, two tiles."""
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import roofline
    from intermoe.kernels.triton.configs import Tile

    monkeypatch.setattr(roofline.configs, "tile", lambda *_: Tile(64, 128, 32, 4, 3))
    d, f, rows, element = 768, 1024, 125, 2
    up, down = 4 * 1000 * d * f, 2 * 1000 * d * f
    filled = 128 / rows  # of two tiles of 64 rows, and of four steps of 32
    expected = {  # operations, tiles, and what a tile reads: a step of the sum at a time, of both factors
        "up": (up, 8 * 2 * (f // 128), d * (64 + 2 * 128)),
        "up inference": (up, 8 * 2 * (f // 128), d * (64 + 2 * 128)),
        "down": (down, 8 * 2 * (d // 128), f * (64 + 128)),
        "grad_hidden": (down, 8 * 2 * (f // 128), d * (64 + 128)),
        "grad_pairs": (up, 8 * 2 * (d // 128), 2 * f * (64 + 128)),
        "grad_weight up": (up, 8 * (2 * f // 64) * (d // 128), 128 * (64 + 128)),
        "grad_weight down": (down, 8 * (d // 64) * (f // 128), 128 * (64 + 128)),
    }
    for name, (flop, programs, read) in expected.items():
        found = roofline.grouped(name, 86, "half", 1000)
        assert (found.name, found.flops, found.programs) == (name, flop, programs)
        assert found.padded_flops == pytest.approx(flop * filled), name
        assert found.l2_bytes == pytest.approx(programs * read * element), name


def test_a_profile_says_how_long_it_was_busy() -> None:
    def event(kind: str, name: str, start: float, end: float) -> Any:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(device_type=SimpleNamespace(name=kind), name=name, time_range=span)

    events = [
        event("CUDA", "a", 0.0, 30.0),
        event("CUDA", "b", 70.0, 100.0),
        event("CPU", "c", 0.0, 400.0),
        event("CUDA", "ProfilerStep#1", 0.0, 500.0),
    ]
    averages = SimpleNamespace(table=lambda *, sort_by, row_limit: f"{sort_by} {row_limit}\n")
    profile: Any = SimpleNamespace(events=lambda: events, key_averages=lambda: averages)
    assert profiling.markdown("a block", profile, torch.device("cuda")) == (
        "## a block\n\n100 µs from first to last, 2 launches, 60 µs busy, 40 µs in gaps (40%).\n\n"
        "```text\nself_device_time_total 25\n```\n"
    )
    told = profiling.markdown("a block", profile, CPU)
    assert "400 µs from first to last, 1 launches, 400 µs busy, 0 s in gaps (0%)." in told
    assert "self_cpu_time_total 25" in told


def test_over_the_backend_is_what_the_operation_adds() -> None:
    pytest.importorskip("triton")
    from intermoe.benchmarks.harness import host

    times = {
        "inference": 12.34,
        "inference, backend": 10.0,
        "forward + backward": 50.0,
        "forward + backward, backend": 20,
    }
    assert host._row("a case", times) == {
        "case": "a case",
        "microseconds": {**times, "inference": 12.3},
        "over the backend": {"inference": 2.3, "forward + backward": 30.0},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("everything", [True, False])
def test_what_competes_with_triton(dtype: torch.dtype, everything: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its static mode has room for a quarter more pairs than there are, and for one more of each expert."""
    asked: list[dict[str, Any]] = []

    def ours(**options: Any) -> forms.Form:
        asked.append(options)
        return forms.Form(lambda x: x.hidden)

    monkeypatch.setattr(forms, "ours", ours)
    monkeypatch.setattr(forms, "usable_backends", lambda *_: (["triton", "native", "reference"], {}))
    shape = Shape(48, dim=8, experts=3, width=4, capacity=1.5)
    found, _ = forms.competitors(shape, forms.draw(shape, dtype, CPU), everything=everything)
    named = {
        "triton": {"backend": "triton"},
        **({name: {"backend": name} for name in ("native", "reference")} if everything else {}),
        **({"triton, recompute": {"backend": "triton", "recompute": True}} if everything else {}),
        "triton, static": {"backend": "triton", "max_pairs": 90 + 3},
        **({"triton, half sums": {"backend": "triton", "half_sums": True}} if dtype == torch.float16 else {}),
    }
    assert dict(zip(found, asked, strict=False)) == named
    assert [name for name in found if name not in named][:2] == ["authors' form", "expert loop"]
    assert {name: form.note for name, form in found.items() if form.note} == {"dense network": "no routing"}


def test_guidance_asks_the_denoiser_with_text_then_without() -> None:
    config = models.TINY
    for batch, told in ((2, 1), (4, 2), (1, 1)):
        x, timesteps, text = models.denoiser_inputs(config, batch, 3, 5, torch.bfloat16, CPU)
        assert (x.shape, x.dtype) == ((batch, 3, 5, config.input_dim), torch.bfloat16)
        assert (text.shape, text.dtype) == ((batch, config.text_dim), torch.bfloat16)
        assert timesteps.tolist() == [500] * batch
        assert text.any(dim=1).tolist() == [True] * told + [False] * (batch - told)


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("cpu", "quick", {"float32": ([48], [48]), "bfloat16": ([48], [48])}),
        ("cpu", "default", {"float32": ([300, 4800], [300, 4800]), "bfloat16": ([300, 4800], [])}),
        (
            "cpu",
            "full",
            {"float32": ([150, 300, 4800, 9600, 19200],) * 2, "bfloat16": ([150, 300, 4800],) * 2},
        ),
        ("cuda", "default", {name: ([300, 4800, 9600],) * 2 for name in ("float32", "bfloat16")}),
        (
            "cuda",
            "full",
            {name: ([150, 300, 4800, 9600, 19200],) * 2 for name in ("float32", "bfloat16", "float16")},
        ),
    ],
)
def test_which_sizes_and_types_a_level_has(
    kind: str, level: str, expected: dict[str, tuple[list[int], list[int]]]
) -> None:
    """A default run on a CPU has no time for half types with backward, and none has for them in large pools."""
    listed = suite.cases(Scope(torch.device(kind), level), ("moe", "experts"))
    for step, calls in (("moe", ("forward", "forward + backward")), ("experts", ("forward", "backward"))):
        found = {
            name: tuple(
                [c.shape["S"] for c in listed if (c.step, c.call, c.dtype) == (step, call, dtype)] for call in calls
            )
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16))
        }
        assert {name: sizes for name, sizes in found.items() if sizes != ([], [])} == expected


SECONDS = 16 / 30  # of motion in a quick run
STEPS: dict[str, Callable[[Shape, int], list[Work]]] = {
    "moe forward": lambda shape, element: work.moe(shape, element, False),
    "moe forward + backward": lambda shape, element: work.moe(shape, element, True),
    "route forward": work.route,
    "route backward": work.route_backward,
    "select forward": lambda shape, element: work.select(shape),
    "select backward": lambda shape, element: work.select_backward(shape),
    "experts forward": lambda shape, element: work.experts(shape, element, False),
    "experts backward": work.experts_backward,
    "combine forward": work.combine,
    "combine backward": work.combine_backward,
    "scaling tokens, forward": lambda shape, element: work.moe(shape, element, False),
    "scaling tokens, forward + backward": lambda shape, element: work.moe(shape, element, True),
    "scaling experts": lambda shape, element: work.moe(shape, element, False),
    "scaling capacity": lambda shape, element: work.moe(shape, element, False),
}
OTHERS: dict[str, tuple[int | None, float | None]] = {
    "denoiser call with guidance": (2 * 2 * 75, None),
    "denoiser call with levels": (2 * 2 * 75, None),
    "vae decode": (None, SECONDS),
    "vae encode": (None, SECONDS),
    "training denoiser step": (4 * 2 * 75, None),
    "export npz": (None, SECONDS),
    "export bvh": (None, SECONDS),
    "generation published size": (None, SECONDS),
    "loader solo, sequences": (64, None),
}
"""Tokens of a call, and seconds of motion."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_every_case_counts(dtype: torch.dtype) -> None:
    """The work of its own direction, size and type, its tokens, and the seconds of motion that it makes."""
    listed = {f"{c.step} {c.call}": c for c in suite.cases(Scope(CPU, "quick")) if c.dtype == dtype}
    element, half = dtype.itemsize, dtype == torch.bfloat16
    for name, counted in STEPS.items():
        if half and name.startswith(("select", "scaling")):
            assert name not in listed
            continue
        given, shape = listed[name].prepare(), listed[name].shape
        sizes = {key: int(shape[key]) for key in "SDEF"}
        rows = 1 if name.startswith("scaling tokens") else 4
        own = Shape(*sizes.values(), capacity=shape.get("capacity", 1.0), rows=rows)
        assert given.work == counted(own, element), name
        assert (given.tokens, given.seconds_of_motion) == (own.tokens, None), name
        assert given.tolerance == tolerance(dtype), name
        if name.startswith("moe"):
            dense = work.dense(own, element, name.endswith("backward"))
            assert given.other_work == {"dense network": dense, "dense network, graph": dense}
    for name, expected in OTHERS.items():
        if half and not name.startswith("denoiser"):
            continue
        given = listed[name].prepare()
        assert (given.tokens, given.seconds_of_motion) == expected, name
    (whole,) = listed["denoiser call with guidance"].prepare().work or ()
    weights = models.build_denoiser(models.TINY, dtype, CPU).parameters()
    assert whole.bytes == sum(p.numel() * (4 if p.dtype == torch.float32 else 2) for p in weights)
    assert whole.flop > 0


def test_a_network_is_counted_by_its_products_and_its_parameters() -> None:
    """4 rows of 3 numbers to 5: two operations a multiplication; 15 weights and 5 biases of 2 bytes."""
    network = torch.nn.Linear(3, 5).bfloat16()
    twice = models.counted(lambda: network(torch.zeros(4, 3, dtype=torch.bfloat16)), network, network)
    assert twice == [Work(2 * 4 * 3 * 5, 2 * 2 * 20)]


@pytest.mark.parametrize("windows", [False, True])
def test_a_loader_counts_what_a_batch_holds(windows: bool) -> None:
    """However many sequences there are."""
    contest = bench_loader.loading(DATA_SETS["solo"], windows, 70, (0,))
    (motion,) = contest.entries["0 workers"](0)
    assert len(motion) == contest.tokens == bench_loader.BATCH
    longest = bench_loader.WINDOW if windows else bench_loader.FRAMES
    assert longest <= motion.shape[2] < longest + 8  # padded


class Asked(goals.Rows):
    """Any row there could be; notes which are asked for."""

    def __init__(self, row: Row) -> None:
        super().__init__([])
        self.row, self.asked = row, set[tuple[str, str, int, str]]()

    def moe(self, call: str, dtype: str, tokens: int, entry: str) -> Row:
        self.asked.add((call, dtype, tokens, entry))
        return self.row

    def ours(self, call: str, dtype: str, tokens: int) -> Row:
        return self.moe(call, dtype, tokens, "ours")


@pytest.mark.parametrize("kind", list(goals.GOALS))
def test_goals_are_called_by_what_they_measure(kind: str, make_row: Callable[..., Row]) -> None:
    """Direction, size, type and what stands beside it; products in float32 are TF32 on a GPU."""
    single = "TF32" if kind == "cuda" else "float32"
    told = [goal for goal in goals.GOALS[kind] if "S=" in goal.name]
    assert len({goal.name for goal in goals.GOALS[kind]}) == len(goals.GOALS[kind]) > len(told) >= 9
    for goal in told:
        rows = Asked(make_row(peak_bytes=1, host_reads=1))
        goal.measure(rows)
        ((call, dtype, tokens),) = {asked[:3] for asked in rows.asked}
        assert ("with backward" in goal.name) == (call == "forward + backward"), goal.name
        assert f"S={tokens}" in goal.name
        spoken = single if dtype == "float32" else dtype
        assert spoken in goal.name or "memory" in goal.name, goal.name
        assert dtype == ("float32" if kind == "cpu" else "bfloat16") or "memory" not in goal.name, goal.name
        assert not {"float32", "bfloat16", "TF32"} - {spoken} & set(goal.name.replace(",", "").split()), goal.name
        beside = {entry.partition(",")[0] for _, _, _, entry in rows.asked} - {"ours", "triton"}
        assert all(entry.removesuffix(" network") in goal.name for entry in beside), goal.name
        assert ("in a graph" in goal.name or "in graphs" in goal.name) == any("graph" in each[3] for each in rows.asked)


@pytest.mark.parametrize(
    ("flags", "clock", "amx", "clocks"),
    [
        ("fpu amx_tile avx2", "2999.6", True, "3000 MHz"),
        ("fpu amx_bf16 avx2", "800", False, "800 MHz"),
        ("", None, False, None),
    ],
)
def test_every_field_of_a_machine(
    flags: str, clock: str | None, amx: bool, clocks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"model name": "A CPU", "flags": flags} | ({} if clock is None else {"cpu MHz": clock})
    monkeypatch.setattr(timing, "_processor", lambda: found)
    monkeypatch.setattr(timing.platform, "system", lambda: "Linux")
    monkeypatch.setattr(timing.platform, "release", lambda: "6.1")
    monkeypatch.setattr(timing.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(timing.shutil, "which", lambda tool: f"/bin/{tool}")
    answer = SimpleNamespace(returncode=0, stdout="570.1, 1 MHz, 2 MHz, 3 MHz, 4 W, 50\n")
    asked: list[list[str]] = []
    monkeypatch.setattr(timing.subprocess, "run", lambda command, **_: (asked.append(command), answer)[1])
    cpu = timing.machine(CPU)
    assert replace(cpu, versions={}).to_dict() == {
        "device": "A CPU", "kind": "cpu", "system": "Linux 6.1 x86_64", "threads": 7, "instructions": "AVX512",
        "amx": amx, "float32_products": "high", "driver": None, "clocks": clocks, "versions": {},
    }  # fmt: skip
    assert not asked
    cuda = timing.machine(torch.device("cuda", 2))
    assert (cuda.device, cuda.kind, cuda.driver) == ("card 2", "cuda", "570.1")
    assert cuda.clocks == "SM 1 MHz (at most 3 MHz), memory 2 MHz, power limit 4 W, 50 degrees"
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    assert asked[0] == ["/bin/nvidia-smi", "--id=2", f"--query-gpu={fields}", "--format=csv,noheader"]
    answer.returncode = 1
    assert timing.machine(torch.device("cuda", 2)).clocks is None


@pytest.mark.parametrize(
    ("kind", "tokens", "sets"), [("cpu", 300, 1), ("cuda", 300, 4), ("cuda", 10_000, 4), ("cuda", 10_001, 1)]
)
def test_small_pools_of_a_gpu_take_turns_so_that_no_cache_holds_them(kind: str, tokens: int, sets: int) -> None:
    assert grid.sets_for(Shape(tokens), torch.device(kind)) == sets
