"""Inputs are what they say, and baselines compute what the block computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from intermoe import backends
from intermoe.benchmarks import forms as forms_of
from intermoe.benchmarks import models
from intermoe.benchmarks.forms import LOADS, competitors, draw, settled_bias, training
from intermoe.benchmarks.harness.work import Shape
from intermoe.ops.moe import moe

CPU = torch.device("cpu")
SHAPE = Shape(240, dim=32, experts=6, width=16)


@pytest.mark.parametrize("capacity", [0.5, 1.0, 3.0])
def test_the_selection_is_settled_at_the_capacity(capacity: float) -> None:
    shape = Shape(240, dim=32, experts=6, width=16, capacity=capacity)
    counts = moe(*draw(shape, torch.float32, CPU).steps(), backend="reference").counts
    assert (counts - shape.pairs // shape.experts).abs().max() <= 2


def test_a_settled_bias_takes_just_so_many() -> None:
    """None is on the threshold, so that no rounding decides."""
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    scores, taken = torch.sigmoid(logits), [0, 1, 30, 50]
    bias = settled_bias(logits, taken)
    assert (scores + bias > 0).sum(0).tolist() == (scores + bias >= 0).sum(0).tolist() == taken
    assert ((scores + bias)[:, 1:3].abs() > 1e-4).all()


def test_no_rounding_of_the_logits_changes_the_selection() -> None:
    x = draw(Shape(4000, dim=32, experts=6, width=4), torch.bfloat16, CPU)
    expected = moe(*x.steps(), backend="reference").counts
    for sign in (-1, 1):
        moved = x._replace(router_offset=x.router_offset + sign * 2e-3)
        counts = moe(*moved.steps(), backend="reference").counts
        assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize("load", LOADS)
def test_loads_take_as_many_pairs_in_all(load: str) -> None:
    counts = moe(*draw(SHAPE, torch.float32, CPU, load=load).steps(), backend="reference").counts
    assert abs(int(counts.sum()) - SHAPE.pairs) <= 2 * SHAPE.experts
    if load == "one hot expert":
        assert counts.tolist() == [240, 0, 0, 0, 0, 0]
    if load == "half the experts empty":
        assert counts.tolist()[3:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "load", "taken"),
    [
        (Shape(240, experts=6), "even", [40] * 6),
        (Shape(240, experts=6, capacity=1.5), "one hot expert", [240, *[24] * 5]),
        (Shape(240, experts=6, capacity=0.5), "one hot expert", [120, *[0] * 5]),
        (Shape(240, experts=1, capacity=1.5), "one hot expert", [240]),
        (Shape(240, experts=5, capacity=1.5), "half the experts empty", [120, 120, 120, 0, 0]),
        (Shape(240, experts=2, capacity=1.5), "half the experts empty", [240, 0]),
    ],
)
def test_how_many_tokens_each_expert_takes(shape: Shape, load: str, taken: list[int]) -> None:
    assert forms_of._taken(shape, load) == taken


def test_what_is_near_a_threshold_is_moved_away_on_its_own_side() -> None:
    """And nothing else is: tokens that are clear of it, and experts that take all or none, whatever their scores."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(500, 16, generator=g), 2 * torch.eye(3, 16)
    offset = torch.tensor([[0.0, 30.0, -30.0]])  # scores of 1 and of 0
    bias = torch.tensor([-0.5, -1.0, 0.0])
    hidden[:4, 0] = torch.tensor([1e-3, -1e-3, 1e-4, -1e-4])  # within a thousandth of the threshold, by their scores
    moved = forms_of._clear_of_thresholds(hidden, weight, offset, bias)
    near = (torch.sigmoid(2 * hidden[:, 0]) - 0.5).abs() < forms_of.MARGIN
    assert near[:4].all()
    assert torch.equal(moved[~near], hidden[~near])
    torch.testing.assert_close(moved[near, 0] - hidden[near, 0], forms_of.PUSH / 2 * hidden[near, 0].sign())
    assert torch.equal(moved[:, 1:], hidden[:, 1:])


def test_unknown_load() -> None:
    with pytest.raises(ValueError, match="load: expected one of"):
        draw(SHAPE, torch.float32, CPU, load="odd")


def test_every_form_has_the_gradients_of_the_reference(relative_error: Callable[..., float]) -> None:
    inputs = draw(SHAPE, torch.float32, CPU)
    grad = torch.randn(240, 32, generator=torch.Generator().manual_seed(0))
    forms, _ = competitors(SHAPE, inputs)
    expected = training(forms["reference"], [inputs], [grad])(0)
    compared = [name for name, form in forms.items() if not form.note]
    assert {"authors' form", "expert loop"} <= set(compared)
    for name in compared:
        found = training(forms[name], [inputs], [grad])(0)
        assert len(found) == 8
        assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5, name


def test_absent_projects_are_skipped_with_a_reason() -> None:
    _, skipped = competitors(SHAPE, draw(SHAPE, torch.float32, CPU))
    for name in ("megablocks", "scattermoe", "sonic-moe", "liger-kernel"):
        assert name in skipped  # absent, or on a CPU
        assert skipped[name]


def test_the_denoiser_with_published_blocks_is_the_denoiser(relative_error: Callable[..., float]) -> None:
    denoiser = models.build_denoiser(models.TINY, torch.float32, CPU)
    inputs = models.denoiser_inputs(models.TINY, 2, 2, 12, torch.float32, CPU)
    twin = models.with_published_blocks(denoiser)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in denoiser.parameters()}
    with torch.no_grad(), backends.use("reference"):
        assert relative_error(twin(*inputs), denoiser(*inputs)) < 1e-5
    with pytest.raises(ValueError, match="mask: expected unpadded"):
        twin(*inputs, torch.ones(2, 12, dtype=torch.bool))
