"""What is remembered of calls, and where a layer's product is torch's: by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from intermoe.kernels.contract import EPS, Experts, Needs, Route, Select, check_pairs
from intermoe.ops import moe as operation
from intermoe.ops.linear import _is_plain


def test_no_more_kinds_of_calls_are_remembered_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of many lengths must not fill the memory; the last one is always known."""
    monkeypatch.setattr(operation, "_kinds", {})
    monkeypatch.setattr(operation, "_MOST_KNOWN", 3)
    select, experts = Select(torch.full((2,), -0.5)), Experts(torch.zeros(2, 6, 4), torch.zeros(2, 4, 3))
    sizes = []
    for tokens in range(1, 8):
        operation.moe(Route(torch.zeros(tokens, 4), torch.zeros(2, 4)), select, experts, backend="reference")
        sizes.append(len(operation._kinds))
    assert sizes == [1, 2, 3, 1, 2, 3, 1]


def plain(**changes: Any) -> bool:
    """Of 4 rows of 8 numbers and 6 outputs."""
    given = {"x": torch.zeros(4, 8), "weight": nn.Parameter(torch.zeros(6, 8)), "bias": nn.Parameter(torch.zeros(6))}
    with torch.no_grad():
        return _is_plain(**(given | changes))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_each_thing_that_makes_a_product_torch_s() -> None:
    """A backend's product reads memory: of another device, or of what is watched, it must not."""
    assert plain()
    assert plain(bias=None)
    others: dict[str, list[Any]] = {
        "x": [torch.zeros(0, 8), torch.zeros(4, 7), torch.zeros(4, 8).double(), torch.zeros(4, 8, device="meta"),
              nn.Parameter(torch.zeros(4, 8))],
        "weight": [torch.zeros(6, 8), nn.Parameter(torch.zeros(6, 8, device="meta")), nn.Parameter(torch.zeros(6, 9))],
        "bias": [torch.zeros(6), nn.Parameter(torch.zeros(6).half()), nn.Parameter(torch.zeros(12)[::2])],
    }  # fmt: skip
    for name, each in others.items():
        assert [plain(**{name: value}) for value in each] == [False] * len(each), name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not plain()
    seen: list[bool] = []
    torch.func.vmap(lambda x: (seen.append(plain()), x)[1])(torch.zeros(2))
    torch.jit.trace(lambda x: (seen.append(plain()), x + 1)[1], torch.zeros(2), check_trace=False)
    assert seen == [False, False]
    assert plain()


def test_rows_of_a_condition_are_those_of_what_is_given() -> None:
    hidden, weight = torch.zeros(12, 4), torch.zeros(3, 4)
    offset, scale = torch.zeros(6, 3), torch.zeros(4, 4)
    assert Route(hidden, weight).rows == 1
    assert Route(hidden, weight, offset).rows == 6
    assert Route(hidden, weight, None, scale, scale).rows == 4
    assert Route(hidden, weight, offset, scale, scale).rows == 6
    assert EPS == 1e-6


@pytest.mark.parametrize("name", Needs._fields)
def test_what_needs_the_gradient_of_logits_and_of_tokens(name: str) -> None:
    """Logits come of hidden and the router, tokens of hidden and the modulation; the experts' weights of neither."""
    needs = Needs(*(field == name for field in Needs._fields))
    assert needs.logits == (name in ("hidden", "router_weight", "router_offset"))
    assert needs.tokens == (name in ("hidden", "scale", "shift"))


def test_a_rule_takes_the_place_of_the_bias() -> None:
    logits, bias, valid = torch.zeros(4, 3), torch.full((3,), -0.5), torch.ones(4) > 0
    given: list[Any] = []

    def rule(*arguments: Any) -> torch.Tensor:
        given.append(arguments)
        return torch.eye(4, 3) > 0

    chosen = Select(bias, valid, rule).given(logits)
    assert chosen[0] is None
    assert torch.equal(chosen[1], torch.eye(4, 3) > 0)
    assert [one is other for one, other in zip(given[0], (logits, valid, bias), strict=True)] == [True] * 3
    plain_one = Select(bias, valid).given(logits)
    assert plain_one[0] is bias
    assert plain_one[1] is valid


def test_a_limit_of_pairs_is_told_with_both_numbers() -> None:
    check_pairs(7, None), check_pairs(7, 7), check_pairs(0, 0)
    with pytest.raises(
        RuntimeError,
        match=r"^max_pairs: expected at most 6 \(token, expert\) pairs, got 7; use a larger max_pairs$",
    ):
        check_pairs(7, 6)
