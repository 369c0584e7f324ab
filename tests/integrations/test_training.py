"""The selection bias follows the optimiser: accumulation, recomputation, freezing, accelerate, ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from intermoe import InterMoEBlock
from intermoe.integrations import (
    BlockAdapter,
    Condition,
    Mask,
    attach_bias_update,
    calibrated_selection,
    replace_feed_forward,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor, emb: Tensor, valid: Tensor | None = None) -> Tensor:
        return x + self.mlp(x)


ADAPTER = BlockAdapter(Block, ("mlp",), condition={"embedding": Condition("emb", 8)}, mask=Mask("valid"))
SPREAD = 3.0
"""Scale of the tokens: far enough apart that the four experts take different numbers of them."""


def draw(**options: Any) -> tuple[Block, InterMoEBlock]:
    torch.manual_seed(0)
    model = Block()
    replace_feed_forward(model, num_experts=4, expert_dim=8, capacity=1.5, adapters=[ADAPTER], **options)
    moe = model.mlp.moe
    nn.init.normal_(moe.motion_router)
    return model, moe


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return SPREAD * torch.randn(2, 10, 8, generator=generator), torch.randn(2, 8, generator=generator)


def expected_bias(before: Tensor, counts: Tensor, tokens: int) -> Tensor:
    """b - rate * sign(count - capacity * S / E)"""
    return before - 1e-3 * torch.sign(counts - 1.5 * tokens / 4).float()


def test_bias_moves_once_a_step_by_the_counts_of_all_micro_steps() -> None:
    model, moe = draw()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach_bias_update(optimizer, model)
    before, counts = moe.selection_bias.clone(), torch.zeros(4)
    for seed in (0, 4, 10):  # their sum asks for other signs than the first or the last of them: see below
        model(*batch(seed)).sum().backward()
        counts += moe.chosen_pairs(*batch(seed)).sum((0, 1))
        assert torch.equal(moe.selection_bias, before)
    optimizer.step()
    assert torch.equal(moe.selection_bias, expected_bias(before, counts, 60))
    alone = [
        expected_bias(before, moe.chosen_pairs(batch(seed)[0], batch(seed)[1]).sum(dim=(0, 1)), 20) for seed in (0, 10)
    ]
    assert not any(torch.equal(moe.selection_bias, other) for other in alone)
    assert torch.equal(moe.expert_counts, counts.long())
    # the next step begins anew, and forwards without gradients do not count
    before = moe.selection_bias.clone()
    model(*batch(5)).sum().backward()
    counts = moe.chosen_pairs(*batch(5)).sum((0, 1))
    with torch.no_grad():
        model(*batch(6))
    optimizer.step()
    assert torch.equal(moe.selection_bias, expected_bias(before, counts, 20))
    optimizer.step()  # without a forward
    assert torch.equal(moe.selection_bias, expected_bias(before, counts, 20))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_does_not_disturb_it(reentrant: bool) -> None:
    biases = []
    for recompute in (False, True):
        model, moe = draw()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach_bias_update(optimizer, model)
        for seed in range(4):
            x, emb = batch(seed)
            x.requires_grad_()
            out = checkpoint(model, x, emb, use_reentrant=reentrant) if recompute else model(x, emb)
            out.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        biases.append(moe.selection_bias)
    assert torch.equal(*biases)


def test_frozen_hosts_train_their_experts_and_frozen_experts_keep_their_bias() -> None:
    model, moe = draw(init="residual")
    model.mlp.dense.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    attach_bias_update(optimizer, model)
    before, dense = moe.selection_bias.clone(), model.mlp.dense[0].weight.clone()
    model(*batch(0)).sum().backward()
    optimizer.step()
    assert not torch.equal(moe.selection_bias, before)
    assert torch.equal(model.mlp.dense[0].weight, dense)

    model, moe = draw()
    moe.motion_router.requires_grad_(False)  # what is left of the block learns, and so does its bias
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    attach_bias_update(optimizer, model)
    before = moe.selection_bias.clone()
    model(*batch(0)).sum().backward()
    optimizer.step()
    assert not torch.equal(moe.selection_bias, before)

    model, moe = draw()
    moe.requires_grad_(False)
    lora = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([lora], lr=0.1)
    attach_bias_update(optimizer, model)
    before = moe.selection_bias.clone()
    x, emb = batch(0)
    model(x + lora, emb).sum().backward()
    optimizer.step()
    assert torch.equal(moe.selection_bias, before)
    assert lora.abs().sum() > 0


def test_accelerate_accumulates(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, moe = draw()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    attach_bias_update(optimizer, model)
    before, counts = moe.selection_bias.clone(), torch.zeros(4)
    for seed in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(model(*batch(seed)).sum())
            counts += moe.expert_counts if seed == 0 else 0
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(counts, moe.expert_counts.float())
    assert torch.equal(moe.selection_bias, expected_bias(before, moe.expert_counts, 40))
    accelerator.save_state(tmp_path)
    saved = moe.selection_bias.clone()
    moe.selection_bias.fill_(-0.9)
    accelerator.load_state(tmp_path)
    assert torch.equal(moe.selection_bias, saved)


def test_misuse_is_an_error_that_says_what_to_do() -> None:
    model, _ = draw()
    dense = Block()
    early = torch.optim.SGD(dense.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected an InterMoEBlock, got none; call replace_feed_forward first"):
        attach_bias_update(early, dense)
    with pytest.raises(ValueError, match="build it after replace_feed_forward"):
        attach_bias_update(early, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach_bias_update(optimizer, model)
    with pytest.raises(ValueError, match="attach them once"):
        attach_bias_update(optimizer, model)
    handle.remove()
    attach_bias_update(optimizer, model)


def test_an_optimiser_may_train_a_part() -> None:
    model, moe = draw()
    attach_bias_update(torch.optim.SGD([moe.w_down], lr=0.1), model)


def test_calibration_starts_at_the_capacity() -> None:
    model, moe = draw()
    x, emb = batch(0)
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, 4:] = False
    with calibrated_selection(model), torch.no_grad():
        model(x, emb, valid)
    model(x, emb, valid)
    assert moe.expert_counts.tolist() == [5, 5, 5, 5]  # 1.5 * 14 / 4
    assert not moe._forward_pre_hooks


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    try:
        _train_on(rank, folder)
    finally:
        dist.destroy_process_group()


def _train_on(rank: int, folder: str) -> None:
    """In a function of its own: DistributedDataParallel must be gone before its process group, or either may wait."""
    model, moe = draw()
    wrapped = nn.parallel.DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match=r"call attach_bias_update\(optimizer, model\), or freeze"):
        wrapped(*batch(0))
    model, moe = draw()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    attach_bias_update(optimizer, wrapped)
    for step in range(3):
        with wrapped.no_sync():
            wrapped(*batch(4 * step + rank)).square().mean().backward()
        wrapped(*batch(4 * step + 2 + rank)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(moe.selection_bias, f"{folder}/{rank}.pt")
    frozen, _ = draw(bias_rate=0.0)
    frozen(*batch(0))

    model, moe = draw()
    moe.selection_bias.fill_(-0.4 - 0.1 * rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_bias_update(optimizer, model)
    model(*batch(rank)).sum().backward()
    with pytest.raises(RuntimeError, match="selection_bias: differs between the ranks"):
        optimizer.step()


def test_ranks_share_their_counts(tmp_path: Path) -> None:
    # New interpreters: a fork of this one would wait for OpenMP threads that it does not have.
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    biases = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*biases)

    # one process that sees all four batches of a step
    model, moe = draw()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_bias_update(optimizer, model)
    for step in range(3):
        for part in range(4):
            (model(*batch(4 * step + part)).square().mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(biases[0], moe.selection_bias)


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2])


@pytest.mark.parametrize(("tokens", "taken"), [(11, 3), (9, 2), (8, 2), (5, 1)])
def test_a_calibrated_selection_takes_the_nearest_number_of_tokens(tokens: int, taken: int) -> None:
    """An expert's share of a pool is capacity / experts of it, a quarter here, rounded."""
    torch.manual_seed(0)
    block = InterMoEBlock(4, 4, 4, cond_dim=None, norm="none", capacity=1.0)
    torch.nn.init.normal_(block.motion_router)
    hidden = torch.randn(1, tokens, 4)
    with calibrated_selection(block), torch.no_grad():
        block(hidden)
    assert block.chosen_pairs(hidden).sum(dim=(0, 1)).tolist() == [taken] * 4


def test_a_calibrated_selection_takes_all_tokens_where_that_is_its_share() -> None:
    """Of as many experts a token as there are none is left out, the last token of an expert's order neither."""
    torch.manual_seed(0)
    block = InterMoEBlock(4, 3, 4, cond_dim=None, norm="none", capacity=3.0)
    torch.nn.init.normal_(block.motion_router)
    hidden = torch.randn(1, 7, 4)
    with calibrated_selection(block), torch.no_grad():
        block(hidden)
    assert block.chosen_pairs(hidden).sum(dim=(0, 1)).tolist() == [7] * 3
