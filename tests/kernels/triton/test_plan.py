"""Plans against the Python code that they were made of: the same launches, argument by argument, by what each means."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from intermoe import backends
from intermoe.benchmarks.harness import host, standin
from intermoe.kernels import triton as package
from intermoe.kernels.contract import Kind, Needs, Route, Select
from intermoe.kernels.triton import configs, launch, plan, registry
from intermoe.kernels.triton.registry import INTERPRETED
from intermoe.kernels.triton.together import Layout, Together
from intermoe.ops.moe import moe

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the Python code")


TOGETHER = backends.available()["native"].usable and standin.library() is not None
"""Whether the native library is here, and a compiler for the driver's stand-in."""


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory in between is used twice, so that a pointer tells what it points to."""

    def one_by_one(between: list[plan.Between]) -> tuple[list[int], int]:
        ends = list(itertools.accumulate(plan.aligned(one.size) for one in between))
        return [0, *ends][: len(between)], ends[-1] if ends else 0

    monkeypatch.setattr(plan, "placed", one_by_one)


ASKED = {
    "all": Needs(*[True] * 7),
    "frozen experts": Needs(*[True] * 5, False, False),
    "experts alone": Needs(*[False] * 5, True, True),
}


def meaning(launched: list[standin.Launch], known: dict[str, Any]) -> list[Any]:
    """Launches with every pointer by what it points to: a name, or a number for memory in between, by its first use."""
    names = {t.data_ptr(): name for name, t in known.items() if isinstance(t, Tensor) and t.numel()}
    between: dict[int, str] = {}

    def told(name: str, value: Any) -> Any:
        if not name.endswith("_ptr"):
            return value
        pointer = value.data_ptr() if isinstance(value, Tensor) else value
        if not pointer:
            return None
        return names.get(pointer) or between.setdefault(pointer, f"between {len(between)}")

    return [
        (one.name, one.grid, one.threads, one.shared, {key: told(key, value) for key, value in one.arguments.items()})
        for one in launched
    ]  # fmt: skip


def call(driver: standin.Driver, arguments: Any, needs: Needs | None, of_logits: bool = False) -> list[Any]:
    """What a call launches, and its results by name with shapes and dtypes."""
    route, select, experts = arguments
    known = {f"input {i}": t for i, t in enumerate((*route[:5], *select[:2], *experts[:2]))}
    driver.launches.clear()
    with torch.no_grad(), plan.Recorder():  # which holds all memory, so that no address means two things
        if needs is None:
            out, counts = package.moe_inference(route, select, experts)
            known |= {"out": out, "counts": counts}
        else:
            out, counts, saved = package.moe_forward(route, select, experts)
            grad, grad_logits = torch.zeros_like(out), torch.zeros_like(saved.logits) if of_logits else None
            grads = package.moe_backward(grad, grad_logits, route, experts, saved, needs)
            known |= {"out": out, "counts": counts, "grad": grad, "grad_logits": grad_logits, **saved._asdict()}
            known |= {f"gradient {name}": t for name, t in zip(needs._fields, grads, strict=True)}
    shapes = {name: (t.shape, t.dtype, t.stride()) for name, t in known.items() if isinstance(t, Tensor)}
    return [meaning(driver.launches, known), shapes]


def both(shape: tuple[Any, ...], needs: Needs | None, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python code twice and the plan twice, of one kind of call: the plan with other tensors each time."""
    with standin.stand_in(pairs=pairs) as driver:
        arguments = [host._arguments(shape, torch.bfloat16) for _ in range(3)]
        with monkeypatch.context() as patched:
            patched.setattr(plan, "INTERPRETED", True)  # no plans
            wanted = call(driver, arguments[0], needs)
            assert call(driver, arguments[0], needs) == wanted
        assert not plan._plans
        call(driver, arguments[0], needs)
        ran = []
        original = plan.Plan.run
        monkeypatch.setattr(plan.Plan, "run", lambda self, inputs: (ran.append(self), original(self, inputs))[1])
        for other in arguments:
            for _ in range(2):  # in the exact mode the parts of a call have plans from its second run on
                assert call(driver, other, needs) == wanted
        assert ran
        assert {one.together for one in driver.launches} == {TOGETHER}, (
            "and all through one call of the driver's library"
        )


@pytest.mark.parametrize("shape", [host.PROMPT, host.TRAINING, host.STATIC], ids=["prompt", "exact", "static"])
@pytest.mark.parametrize("asked", [None, *ASKED])
def test_a_plan_launches_what_the_python_code_does(
    shape: tuple[Any, ...], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(shape, None if asked is None else ASKED[asked], 1000, monkeypatch)


def test_options_are_plans_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of a call is launched as the Python code launches it, also when plans of the others are there."""
    route, select, experts = host._arguments(host.PROMPT, torch.bfloat16)
    valid = torch.ones(300, dtype=torch.bool)
    changed = [
        (route, select, experts),
        (route._replace(scale=None, shift=None), select, experts),
        (Route(*route[:3], normalise=False), select, experts),
        (route, Select(select.selection_bias, valid), experts),
        (route, Select(None, valid[:, None].expand(300, 8).contiguous()), experts),
        (route, select, experts._replace(recompute=True)),
        (route._replace(hidden=torch.cat([route.hidden[:1], route.hidden])[1:]), select, experts),
    ]
    off = torch.cat([route.hidden.flatten()[:1], route.hidden.flatten()])[1:].view(300, 64)
    changed.append((route._replace(hidden=off), select, experts))  # off a boundary of 16 bytes
    with standin.stand_in() as driver:
        for of_logits in (False, True, False):
            for one in changed:
                found = call(driver, one, ASKED["all"], of_logits)
                with monkeypatch.context() as patched:
                    patched.setattr(plan, "INTERPRETED", True)
                    assert call(driver, one, ASKED["all"], of_logits) == found


@pytest.mark.parametrize("pairs", [None, 9600], ids=["exact", "static"])
def test_half_type_experts_of_wide_tokens_have_plans(pairs: int | None) -> None:
    """As under autocast: no cast is left over."""
    with standin.stand_in(pairs=1000):
        route, select, experts = host._arguments((*host.TRAINING[:-1], pairs), torch.bfloat16)
        call_of = (route._replace(hidden=route.hidden.float()), select, experts)
        driver = standin.Driver()
        for _ in range(2):
            call(driver, call_of, ASKED["all"])
        found = {key[0].__name__: made is not None for key, made in plan._plans.items()}
        assert found == dict.fromkeys(["_steps", "_gradients"] if pairs else ["_choose", "_apply", "_gradients"], True)


def public(driver: standin.Driver, arguments: Any, trained: bool) -> list[Any]:
    """What a call of the public operation launches, with its gradients where ``trained``."""
    route, select, experts = arguments
    given = [t for t in (*route[:5], *experts[:2]) if t is not None]
    known = {f"input {i}": t for i, t in enumerate((*given, *(t for t in select[:2] if t is not None)))}
    driver.launches.clear()
    with plan.Recorder(), torch.set_grad_enabled(trained):  # which holds all memory
        leaves = [t.requires_grad_(trained) for t in given]
        result = moe(route, select, experts, backend="triton")
        known |= {"out": result.out, "counts": result.counts}
        if trained:
            known["grad"] = torch.zeros_like(result.out)
            grads = torch.autograd.grad(result.out, leaves, known["grad"])
            known |= {f"gradient {i}": t for i, t in enumerate(grads)}
    return meaning(driver.launches, known)


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("shape", [host.PROMPT, host.TRAINING], ids=["prompt", "exact"])
def test_plans_of_the_public_operation(shape: tuple[Any, ...], trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one kind share plans; of other layouts, options or numbers of pairs they do not."""
    monkeypatch.setattr("intermoe.ops.operators.is_watched", lambda tensors: False)  # the recorder only holds memory
    monkeypatch.setattr("intermoe.ops.operators.is_plain", lambda *arguments: True)
    route, select, experts = host._arguments(shape, torch.bfloat16)
    off = torch.cat([route.hidden.flatten()[:1], route.hidden.flatten()])[1:].view_as(route.hidden)
    changed = [
        (route, select, experts),
        host._arguments(shape, torch.bfloat16),
        (route._replace(hidden=off), select, experts),
        (route._replace(scale=None, shift=None), select, experts),
        (route, select, experts._replace(recompute=True)),
        (route, select._replace(valid=torch.ones(shape[0], dtype=torch.bool)), experts),
    ]
    with standin.stand_in() as driver:
        for pairs in (1000, 2000, 1000):
            driver.pairs = pairs
            for one in changed:
                found = public(driver, one, trained)
                with monkeypatch.context() as patched:
                    patched.setattr(plan, "INTERPRETED", True)
                    assert public(driver, one, trained) == found
        assert any(plan._plans.values())


def test_a_parameter_that_changed_after_the_forward_takes_no_plan() -> None:
    with standin.stand_in():
        route, select, experts = host._arguments(host.PROMPT, torch.bfloat16)
        experts.w_down.requires_grad_()
        for _ in range(3):
            moe(route, select, experts, backend="triton").out.backward(torch.ones(300, 64, dtype=torch.bfloat16))
        out = moe(route, select, experts, backend="triton").out
        experts.w_down.data = experts.w_down.data.float()
        with pytest.raises(TypeError, match="w_down: expected the dtype of tokens"):
            out.backward(route.hidden)


def test_what_hooks_hand_back_takes_no_plan() -> None:
    """They may hand back tensors that lie otherwise."""
    with standin.stand_in() as driver:
        route, select, experts = host._arguments(host.PROMPT, torch.bfloat16)
        experts.w_down.requires_grad_()
        for _ in range(3):
            moe(route, select, experts, backend="triton").out.backward(torch.ones(300, 64, dtype=torch.bfloat16))
        turned: list[Tensor] = []

        def unpack(x: Tensor) -> Tensor:
            turned.append(x.transpose(0, -1).contiguous().transpose(0, -1))
            return turned[-1]

        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            out = moe(route, select, experts, backend="triton").out
        driver.launches.clear()
        out.backward(route.hidden)
        strided = {t.data_ptr() for t in turned if not t.is_contiguous()}
        pointers = [v for one in driver.launches for key, v in one.arguments.items() if key.endswith("_ptr")]
        assert driver.launches
        assert strided.isdisjoint(v.data_ptr() if isinstance(v, Tensor) else v for v in pointers)


def test_copies_are_not_left_out() -> None:
    """A call that copies into dense memory has no plan: the copy would be that of the first call."""
    with standin.stand_in():
        route, select, experts = host._arguments(host.PROMPT, torch.bfloat16)
        strided = route._replace(scale=torch.randn(4, 128)[:, :64])
        for _ in range(2):
            package.moe_inference(strided, select, experts)
        found = {key[0].__name__: made is not None for key, made in plan._plans.items()}
        assert found == {"_steps": False, "_choose": False, "_apply": True}, "the parts without a copy have plans"


def started(tensor: Tensor) -> None:
    """Of a kernel that takes this."""
    kernel = SimpleNamespace(fn=SimpleNamespace(__name__="kernel"), arg_names=["x_ptr"])
    launch.launch(kernel, (1, 1, 1), (tensor,), {})


@pytest.mark.parametrize(
    ("function", "repeated"),
    [
        (lambda x: (torch.empty_like(x),), True),
        (lambda x: (x,), True),
        (lambda x: (None, x.new_empty(3)), True),
        (lambda x: (x.view(-1),), False),  # an input under another name
        (lambda x: (x.new_empty(8)[:4],), False),  # not all that was allocated
        (lambda x: (started(x.detach()), x)[1:], True),
        (lambda x: (started(x[1:]), x)[1:], True),  # at a distance from its start
        (lambda x: (started(x.t()[1:]), x)[1:], False),
        (lambda x: (started(x.new_empty(8)[4:]), x)[1:], False),
        (lambda x: (x + 1,), False),
    ],
)
def test_what_cannot_be_told_from_pointers_has_no_plan(function: Any, repeated: bool) -> None:
    with standin.stand_in():
        plan.planned(function)(torch.zeros(2, 4))
        assert [made is not None for made in plan._plans.values()] == [repeated]


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "in one piece"])
def test_what_lies_within_an_input_is_at_the_same_distance_in_every_call(joined: bool) -> None:
    """Of an input of its own, and of several that are kept together."""

    def within(x: Tensor, kept: Together) -> list[Tensor]:
        return [one[first:] for one in (x, *kept.tensors()) for first in (0, 1, 3)]

    def function(x: Tensor, kept: Together) -> tuple[Tensor]:
        for one in within(x, kept):
            started(one)
        return (x.new_empty(2),)

    planned = plan.planned(function)
    with standin.stand_in() as driver:
        for _ in range(3):
            parts = (torch.zeros(5), torch.zeros(7), torch.zeros(9, dtype=torch.int64))
            layout = Layout(parts)
            memory = torch.zeros(layout.size, dtype=torch.uint8)
            given = torch.zeros(6), Together.of(memory, layout) if joined else Together(*parts)
            driver.launches.clear()
            planned(*given)
            pointers = [one.arguments["x_ptr"] for one in driver.launches]
            found = [one.data_ptr() if isinstance(one, Tensor) else one for one in pointers]
            assert found == [one.data_ptr() for one in within(*given)]
        assert [made is not None for made in plan._plans.values()] == [True]


def test_other_tiles_and_precisions_make_other_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin.stand_in() as driver:
        arguments = host._arguments(host.PROMPT, torch.float32)
        grids = []
        before = torch.get_float32_matmul_precision()
        for precision in ("high", "highest", "high"):
            torch.set_float32_matmul_precision(precision)
            try:
                for _ in range(2):
                    call(driver, arguments, None)
            finally:
                torch.set_float32_matmul_precision(before)
            grids.append([one.grid for one in driver.launches])
        assert grids[0] != grids[1]
        assert grids[0] == grids[2]
        configs._replace_user_table({})
        assert not plan._plans


def test_an_overflow_is_found_by_a_planned_call_too() -> None:
    from intermoe.kernels.triton.overflow import overflow_flag

    with standin.stand_in():
        arguments = host._arguments(host.STATIC, torch.bfloat16)
        for _ in range(2):
            package.moe_inference(*arguments)
        overflow_flag(torch.device("cpu")).numbers[:] = (9601, 9600)
        with pytest.raises(RuntimeError, match="9601"):
            package.moe_inference(*arguments)


def test_room_for_pairs_is_a_little_more_and_takes_few_values() -> None:
    for pairs in (0, 1, 15, 16, 17, 1000, 9599, 9601, 76799):
        assert pairs <= registry.room(pairs, 9600, 8) <= max(pairs * 33 / 32 + 1, pairs + 15)
    assert registry.room(1000, 59, 17) == 1003
    assert registry.room(9500, 9600, 8) == registry.room(9600, 9600, 8) == 9600
    assert len({registry.room(pairs, 9600, 8) for pairs in range(8192, 16384)}) <= 34


@pytest.mark.parametrize(("start", "planned"), [(4, True), (5, True), (3, False)])
def test_neighbours_in_memory_are_told_apart_and_what_overlaps_is_not(start: int, planned: bool) -> None:
    """Views of one piece, as of weights that lie in one: the second begins where the first ends, behind it, within."""
    whole = torch.zeros(12)
    with standin.stand_in():
        plan.planned(lambda x, y: (x.new_empty(3),))(whole[:4], whole[start : start + 4])
        assert [made is not None for made in plan._plans.values()] == [True] * planned


def test_a_tensor_given_twice_is_not_taken_for_either() -> None:
    """A plan of such a call would read one of them in place of the other ever after."""
    with standin.stand_in() as driver:
        route, select, experts = host._arguments(host.PROMPT, torch.bfloat16)
        experts.w_down.requires_grad_()
        for grad in (route.hidden, route.hidden, *(torch.ones_like(route.hidden) for _ in range(4))):
            driver.launches.clear()
            moe(route, select, experts, backend="triton").out.backward(grad)
            read = next(one.arguments["x_ptr"] for one in driver.launches if one.arguments.get("GATHER"))
            assert (read.data_ptr() if isinstance(read, Tensor) else read) == grad.data_ptr()
        assert driver.launches[-1].together == TOGETHER


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("shape", [host.PROMPT, host.TRAINING, host.STATIC], ids=["prompt", "exact", "static"])
def test_a_call_of_a_known_kind_starts_all_kernels_through_the_library(shape: tuple[Any, ...], trained: bool) -> None:
    with standin.stand_in(pairs=1000) as driver:
        calls = host.calls("triton", shape, torch.bfloat16)
        for _ in range(4):
            driver.launches.clear()
            calls["forward + backward" if trained else "inference"]()
        assert len(driver.launches) == (16 if trained else 6)
        assert {one.together for one in driver.launches} == {TOGETHER}


def test_what_is_kept_lies_together_and_is_what_was_saved() -> None:
    with standin.stand_in(pairs=1000):
        route, select, experts = host._arguments(host.TRAINING, torch.bfloat16)
        kind = Kind()
        plain = package.moe_forward(route, select, experts)[2]
        for _ in range(3):
            kept = package.moe_forward(route, select, experts, kind)[2]
        for name, wanted, found in zip(plain._fields, plain, kept.saved(), strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
        memory = {t.untyped_storage().data_ptr() for t in (*kept.saved(), kept.h) if t.numel()}
        assert len(memory) == 5, "logits, slots, tokens, h, and the others"


def kinds(*calls: tuple[Any, ...]) -> int:
    """How many plans there are of calls with these tensors."""
    made: list[tuple[Any, ...]] = []

    def step(*tensors: Any) -> tuple[Tensor]:
        made.append(tensors)
        return (torch.empty(3),)

    with standin.stand_in():
        planned = plan.planned(step)
        for call in calls:
            planned(*call)
        return len(made)


def test_a_plan_is_of_tensors_alike_in_shape_type_strides_and_alignment() -> None:
    """Code for dense tensors or for addresses of a multiple of 16 bytes is wrong for others."""
    whole = torch.zeros(64)
    assert whole.data_ptr() % 16 == 0
    assert kinds((whole[:4],), (whole[4:8],), (whole[32:36],)) == 1
    for other in (whole[:5], whole[:4].double(), whole[2:6], whole[1:5], whole[:8:2]):
        assert kinds((whole[:4],), (other,)) == 2
    square = whole[:16].view(4, 4)
    assert kinds((square,), (square.t(),)) == 2


def test_a_plan_is_of_options_alike_by_their_values() -> None:
    made: list[tuple[int, bool]] = []

    def function(x: Tensor, *, size: int, flag: bool) -> tuple[Tensor, ...]:
        made.append((size, flag))
        return (x.new_empty(size),)

    options = [(3, False), (4, False), (3, True), (4, True)]
    with standin.stand_in():
        planned = plan.planned(function)
        for size, flag in (*options, *options):
            assert planned(torch.zeros(2), size=size, flag=flag)[0].shape == (size,)
    assert made == options


def test_plans_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_PLANS", 3)
    with standin.stand_in():
        planned = plan.planned(lambda x: (torch.empty_like(x),))
        for length in range(1, 9):
            planned(torch.zeros(length))
            assert 0 < len(plan._plans) <= 3


def test_an_input_that_is_a_result_is_that_of_the_call() -> None:
    with standin.stand_in():
        planned = plan.planned(lambda x, y: (y, torch.empty_like(x), None, x))
        for _ in range(3):
            x, y = torch.zeros(2), torch.ones(2)
            results = planned(x, y)
            assert results[0] is y
            assert results[2] is None
            assert results[3] is x


def planned_empty(x: Tensor) -> Tensor:
    """Memory that a plan allocates."""
    planned = plan.planned(lambda x: (torch.empty_like(x),))
    planned(x)
    (made,) = planned(x)
    assert (made.shape, made.dtype, made.device) == (x.shape, x.dtype, x.device)
    return made


def test_what_a_plan_allocates_is_filled_where_torch_says_so(nan_filled_memory: None) -> None:
    with standin.stand_in():
        assert planned_empty(torch.zeros(4, 16)).isnan().all()


def test_modes_see_what_a_plan_allocates() -> None:
    with standin.stand_in():
        planned, x = plan.planned(lambda x: (torch.empty_like(x),)), torch.zeros(3)
        planned(x)
        with plan.Recorder() as seen:
            (made,) = planned(x)
        assert [one.data_ptr() for one in seen.buffers] == [made.data_ptr()]


def test_what_a_plan_allocates_is_of_inference_within_inference() -> None:
    """Else it could not be told from what a gradient may be asked for."""
    with standin.stand_in():
        assert not planned_empty(torch.zeros(3)).is_inference()
        with torch.inference_mode():
            assert planned_empty(torch.zeros(5)).is_inference()
