"""Weights that are kept packed are never those of before, and go with the parameter."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from intermoe import InterMoEBlock, backends
from intermoe.kernels.native import library, products
from intermoe.routing.record import record_routing


@pytest.fixture(autouse=True, params=["own", products.ORDERED])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The order in which weights are kept: the library's, or oneDNN's."""
    status = backends.available()["native"]
    if not status.usable:
        pytest.skip(f"native backend: {status.reason}")
    if request.param == products.ORDERED and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "choice", lambda *_: request.param)
    return str(request.param)


def kept(weight: torch.Tensor) -> object | None:
    """What is kept of a weight, in either order."""
    ordered = products.in_onednn_order(weight, 9)
    return products.packed(weight, 9, paired=False) if ordered is None else ordered[0]


def step(optimiser: type[torch.optim.Optimizer], **options: object) -> Callable[[nn.Parameter], None]:
    def change(weight: nn.Parameter) -> None:
        weight.grad = torch.ones_like(weight)
        optimiser([weight], lr=0.5, **options).step()

    return change


def edit(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[3, 5] = 7.0  # one element that no probe looks at


def edit_in_inference_mode(weight: nn.Parameter) -> None:
    with torch.inference_mode():
        weight[3, 5] = 7.0


def load(weight: nn.Parameter) -> None:
    module = nn.Module()
    module.weight = weight
    module.load_state_dict({"weight": torch.randn(weight.shape)})


def swap(weight: nn.Parameter) -> None:
    weight.data = torch.randn(weight.shape)


def swap_twice(weight: nn.Parameter) -> None:
    """The memory of the first could come to be that of the third."""
    for _ in range(8):
        weight.data = torch.randn(weight.shape)


def cut(weight: nn.Parameter) -> None:
    """Memory, strides, version and elements of what is left stay."""
    weight.data = weight.data[:40]


def behind_the_version(weight: nn.Parameter) -> None:
    weight.data.mul_(2)


@pytest.mark.parametrize(
    "change",
    [step(torch.optim.SGD), step(torch.optim.AdamW, fused=True), edit, edit_in_inference_mode, load, swap, swap_twice,
     cut, behind_the_version],
    ids=["sgd", "fused adamw", "edit", "inference mode", "load_state_dict", "data swap", "data swaps", "rows cut",
         "data.mul_"],
)  # fmt: skip
def test_a_changed_weight_is_never_stale(change: Callable[[nn.Parameter], None]) -> None:
    torch.manual_seed(0)
    weight, x = nn.Parameter(torch.randn(64, 96)), torch.randn(9, 96)
    for _ in range(3):
        before = products.linear(x, weight, None)
    assert kept(weight) is not None
    change(weight)
    for _ in range(3):
        after = products.linear(x, weight, None)
        torch.testing.assert_close(after, x @ weight.detach().T, rtol=1e-4, atol=1e-4)
    assert not torch.equal(before, after)


def test_one_weight_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pairs of columns for the gate's product with what it gates, and as it is for a plain one."""
    monkeypatch.setattr(products, "choice", lambda *_: "own")
    weight = nn.Parameter(torch.randn(64, 48))
    for paired in (True, False, True):
        found = products.packed(weight, 9, paired=paired)
        assert found is not None
        assert torch.equal(found, products._pack(weight.detach(), paired))
    assert not torch.equal(products._pack(weight.detach(), True), products._pack(weight.detach(), False))


def test_packed_from_the_first_use_on() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    first = kept(weight)
    assert first is not None
    assert kept(weight) is first
    assert kept(weight.detach()) is None, "a tensor of the moment is not kept"


def test_the_first_call_rounds_as_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the machine's own table chooses, beside an expert that takes one token, whose product torch sums otherwise."""
    monkeypatch.undo()
    torch.manual_seed(0)
    block = InterMoEBlock(256, num_experts=4, expert_dim=128, cond_dim=32).eval()
    x, condition = torch.randn(1, 400, 256), torch.randn(1, 32)
    low, high, taken = -1.0, 0.0, 0
    with torch.no_grad(), backends.use("native"):
        for _ in range(60):
            block.selection_bias[0] = (low + high) / 2
            with record_routing(block) as record:
                block(x, condition)
            taken = int(record.stacked()[..., 0].sum())
            if taken == 1:
                break
            low, high = ((low + high) / 2, high) if taken < 1 else (low, (low + high) / 2)
        assert taken == 1
        fresh = copy.deepcopy(block)
        first, *later = (fresh(x, condition) for _ in range(3))
    assert all(torch.equal(first, each) for each in later)


def test_freed_with_the_parameter() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    kept(weight)
    held = weakref.ref(kept(weight))
    assert held() is not None
    del weight
    gc.collect()
    assert held() is None


def test_a_transposed_weight_is_another() -> None:
    """Of a square one memory, shape, version and elements stay."""
    weight, x = nn.Parameter(torch.randn(64, 64)), torch.randn(9, 64)
    for _ in range(3):
        products.linear(x, weight, None)
    weight.data = weight.data.t()
    for _ in range(3):
        torch.testing.assert_close(products.linear(x, weight, None), x @ weight.detach().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [64, 96, 256])
def test_probes_look_at_every_column(columns: int) -> None:
    """A column alone is what a scale or a bias of one feature changes."""
    places = products._probes(torch.arange(64 * columns).view(64, columns))
    assert len(set((places % columns).tolist())) > 0.5 * columns
    assert len(places) <= 2 * products.PROBES


def test_a_weight_that_was_made_in_inference_mode_is_used_as_it_is() -> None:
    """It has no version to be known again by."""
    with torch.inference_mode():
        weight, x = nn.Parameter(torch.randn(8, 8), requires_grad=False), torch.randn(3, 8)
        for _ in range(3):
            torch.testing.assert_close(products.linear(x, weight, None), x @ weight.T, rtol=1e-4, atol=1e-4)
    assert kept(weight) is None


def test_another_variant_of_the_library_packs_anew() -> None:
    """Panels are as wide as its vectors: those of another would be read in another order."""
    native = library.load()
    own = ("baseline", "avx2", "avx512").index(library.instruction_set())
    weight, x = nn.Parameter(torch.randn(40, 24)), torch.randn(9, 24)
    try:
        for level in (own, 0, own):
            assert native.intermoe_use_instruction_set(level) == 0
            out = products.linear(x, weight, None)
            torch.testing.assert_close(out, nn.functional.linear(x, weight), rtol=1e-4, atol=1e-4)
    finally:
        native.intermoe_use_instruction_set(own)


def test_experts_of_kept_weights_are_those_of_the_reference(order: str, relative_error, tolerance) -> None:
    """In every segment; no expert's weight stands for another's, and a changed one is seen."""
    torch.manual_seed(0)
    block = InterMoEBlock(64, num_experts=4, expert_dim=48, cond_dim=16).eval()
    x, condition = torch.randn(1, 700, 64), torch.randn(1, 16)
    with torch.no_grad():
        for _ in range(2):
            with backends.use("reference"):
                expected = block(x, condition)
            with backends.use("native"):
                assert relative_error(block(x, condition), expected) <= tolerance(torch.float32)
            assert kept(block.w_down) is not None
            block.w_down[1] *= 2


def test_a_weight_is_kept_in_each_order_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and many may go by two: neither use makes the other anew."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "choice", lambda form, dtype, rows: "own" if rows < 10 else products.ORDERED)
    weight = nn.Parameter(torch.randn(8, 8))
    few, many = products.packed(weight, 9, paired=False), products.in_onednn_order(weight, 99)
    assert few is not None
    assert many is not None
    assert products.packed(weight, 9, paired=False) is few
    assert products.in_onednn_order(weight, 99) is many
    assert products.packed(weight, 99, paired=False) is None
    assert products.in_onednn_order(weight, 9) is None


@pytest.mark.parametrize("change", [edit, swap])
def test_what_was_made_in_another_order_goes_with_what_it_was_made_of(
    change: Callable[[nn.Parameter], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of no use any more, and holds the memory of a weight that was."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "choice", lambda form, dtype, rows: "own" if rows < 10 else products.ORDERED)
    weight = nn.Parameter(torch.randn(8, 8))
    many = weakref.ref(products.in_onednn_order(weight, 99)[0])
    assert many() is not None
    change(weight)
    assert products.packed(weight, 9, paired=False) is not None
    gc.collect()
    assert many() is None
