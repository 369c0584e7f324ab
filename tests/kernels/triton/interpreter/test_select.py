"""select and its backward against the reference and its own invariants, in Triton's interpreter."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intermoe.kernels.triton import raise_on_overflow, select, select_backward
from intermoe.kernels.triton.select import allocate_and_fill
from intermoe.ops.select import select_reference


def test_pairs_of_the_most_experts_equal_the_reference():
    """In several chunks of tokens; ``tests/ops`` has what every backend is given."""
    logits, biases = torch.randn(70, 64), torch.full((64,), -0.8)
    expected = select_reference(logits, biases)
    for name, a, b in zip(expected._fields, select(logits, biases), expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5 if name == "gates" else 0, atol=0)


def test_more_tokens_than_chunks_have_blocks_are_several_blocks_a_chunk(monkeypatch):
    monkeypatch.setattr(import_module("intermoe.kernels.triton.select"), "MAX_CHUNKS", 2)
    logits, biases = torch.randn(100, 3), torch.full((3,), -0.5)
    expected = select_reference(logits, biases)
    for name, a, b in zip(expected._fields, select(logits, biases), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if name == "gates" else 0, atol=0)


def test_an_expert_may_take_nobody():
    found = select(torch.randn(50, 3), torch.tensor([-0.5, -1.0, -0.5]))
    assert found[2][1] == found[2][2]
    assert found[4][1] == 0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 100), experts=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_invariants(tokens, experts, density, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    token_idx, gates, offsets, slots, counts = select(logits, torch.full((experts,), density - 1))
    assert offsets[0] == 0
    assert torch.equal(offsets.diff(), counts)
    assert sorted(slots[slots >= 0].tolist()) == list(range(token_idx.numel()))  # every pair once
    rows, columns = (slots >= 0).nonzero(as_tuple=True)
    assert torch.equal(token_idx[slots[rows, columns]], rows)
    assert (gates > 0).all()
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        assert (token_idx[start:end].diff() > 0).all()  # ordered by token within the expert


def test_static_mode_gives_the_same_pairs():
    logits, biases = torch.randn(37, 5), torch.full((5,), -0.5)
    exact, static = select(logits, biases), select(logits, biases, max_pairs=37 * 5)
    pairs = exact[0].numel()
    assert static[0].shape == (37 * 5,)
    assert torch.equal(static[0][:pairs], exact[0])
    assert torch.equal(static[1][:pairs], exact[1])
    assert (static[0][pairs:] == 0).all()  # valid indices all the same
    for a, b in zip(static[2:], exact[2:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("nan_filled_memory")
def test_room_beyond_the_pairs_is_of_valid_indices_and_gates_of_nothing():
    """Several rounds of every chunk of tokens, whatever lay in the memory before; full rooms have no such place."""
    logits, biases = torch.randn(37, 5), torch.full((5,), -0.5)
    token_idx, gates, offsets, _, _ = select(logits, biases, max_pairs=5000)
    pairs = int(offsets[-1])
    assert 0 < pairs < 37 * 5
    assert gates[:pairs].min() > 0
    assert token_idx[pairs:].count_nonzero() == 0
    assert gates[pairs:].count_nonzero() == 0
    for a, b in zip(select(logits, biases, max_pairs=pairs), select(logits, biases), strict=True):
        assert torch.equal(a, b)


def test_what_lacks_room_is_counted_all_the_same_and_spoils_every_gate():
    """The first expert's pairs come first; its last tokens and all of the others find no room."""
    logits = torch.randn(37, 5)
    token_idx, gates, offsets, slots, counts = allocate_and_fill(logits, torch.full((5,), 0.5), None, 20)
    assert counts.tolist() == 5 * [37]
    assert offsets.tolist() == [0, 20, 20, 20, 20, 20]
    assert token_idx.tolist() == list(range(20))
    assert slots[:, 0].tolist() == [*range(20), *(17 * [-1])]
    assert (slots[:, 1:] == -1).all()
    assert gates.isnan().all()
    with pytest.raises(RuntimeError, match=r"185 .* were selected but only 20 allocated"):
        raise_on_overflow(logits.device)


def test_static_mode_raises_with_the_numbers_instead_of_dropping_pairs():
    logits, biases = torch.randn(37, 5), torch.full((5,), 0.5)
    with pytest.raises(RuntimeError, match=r"185 .* were selected but only 100 allocated"):
        select(logits, biases, max_pairs=100)
    raise_on_overflow(logits.device)  # raised once, then reset
    assert select(logits, biases, max_pairs=185)[0].numel() == 185


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"expected 1 to 64 experts, got 65"):
        select(torch.randn(2, 65), torch.zeros(65))
    with pytest.raises(ValueError, match=r"max_pairs: expected >= 0 and < 2\*\*31, got -1"):
        select(torch.randn(2, 3), torch.zeros(3), max_pairs=-1)
    with pytest.raises(ValueError, match=r"valid: expected the choice \(2, 3\) where there is no bias, got \(2,\)"):
        select(torch.randn(2, 3), None, torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"logits: expected float32, got torch\.bfloat16"):
        select(torch.randn(2, 3, dtype=torch.bfloat16), torch.zeros(3))


def test_backward_of_the_most_experts(relative_error):
    logits = torch.randn(20, 64)
    _, gates, _, slots, _ = select(logits, torch.full((64,), -0.5))
    grad = torch.randn_like(gates)
    wide = logits.double().requires_grad_()
    (torch.softmax(wide, -1)[slots >= 0] * grad[slots[slots >= 0]]).sum().backward()
    found = select_backward(grad, logits, slots)
    assert found.dtype == torch.float32
    assert relative_error(found, wide.grad) < 1e-5
    added = torch.randn(20, 64)
    assert relative_error(select_backward(grad, logits, slots, added), wide.grad + added) < 1e-5
