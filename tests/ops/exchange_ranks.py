"""What each rank of ``test_exchange.py`` does: the spread block beside one process that sees all ranks' tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from intermoe.nn.distributed import clip_grad_norm_
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.moe import raise_on_overflow

DIM, COND = 16, 8


def blocks(mesh: DeviceMesh, seed: int = 0, **options: Any) -> tuple[InterMoEBlock, InterMoEBlock]:
    """The same block spread and whole, with a router that decides: from no expert to all."""
    torch.manual_seed(seed)
    options = {"dim": DIM, "num_experts": 5, "expert_dim": 12, "cond_dim": COND, "bias_rate": 0.02, **options}
    whole = InterMoEBlock(**{**options, "max_pairs": None})
    with torch.no_grad():
        whole.motion_router.mul_(80)
        if whole.num_experts > 2:
            whole.motion_router[1] -= 1e4 * torch.sign(whole.motion_router[1])  # rarely anything, but for large tokens
        whole.norm.modulation.weight.normal_(std=0.3)
    spread = InterMoEBlock(**options)
    spread.load_state_dict(whole.state_dict())
    if dist.get_rank() != 0:  # the first rank's weights are those that are spread
        torch.nn.init.zeros_(spread.w_down)
    return spread.distribute(mesh), whole


def tokens(rank: int, step: int = 0, rows: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """A rank's own: hidden, condition and mask; none at all for the second rank of every odd step."""
    g = torch.Generator().manual_seed(100 * step + rank)
    rows = 0 if rank == 1 and step % 2 == 1 else rows
    hidden = torch.randn(rows, 7, DIM, generator=g, dtype=dtype)
    return hidden, torch.randn(rows, COND, generator=g, dtype=dtype), torch.rand(rows, 7, generator=g) > 0.2


def close(actual: Any, expected: torch.Tensor, what: str, bound: float = 1e-6) -> None:
    actual = actual.full_tensor() if hasattr(actual, "full_tensor") else actual
    assert actual.shape == expected.shape, what
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-30)
    assert actual.numel() == 0 or error <= bound, f"{what}: {error}"


def average(block: InterMoEBlock, ranks: int) -> None:
    """What DistributedDataParallel does for the parameters that are not spread."""
    for p in block.parameters():
        if not hasattr(p, "full_tensor") and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= ranks


def train_step(spread: InterMoEBlock, whole: InterMoEBlock, rank: int, size: int, step: int) -> None:
    """Gradients of both; outputs and gradients, of the inputs too, compared."""
    given = [tokens(r, step, dtype=whole.w_down.dtype) for r in range(size)]
    for hidden, condition, _ in given:
        hidden.requires_grad_()
        condition.requires_grad_()
    hidden, condition, mask = (t.detach().clone() for t in given[rank])
    hidden.requires_grad_()
    condition.requires_grad_()
    out = spread(hidden, condition, mask)
    out.square().sum().backward()
    # one process sees the tokens of all ranks at once
    together = whole(*(torch.cat(parts) for parts in zip(*given, strict=True)))
    (together.square().sum() / size).backward()
    expected = together.split([len(g[0]) for g in given])[rank]
    close(out, expected, f"output, step {step}")
    # the own loss has a share of 1 / size in the whole one
    for name, got, want in (("hidden", hidden, given[rank][0]), ("condition", condition, given[rank][1])):
        close(got.grad / size, want.grad, f"gradient of {name}, step {step}")
    average(spread, size)
    for (name, p), q in zip(spread.named_parameters(), whole.parameters(), strict=True):
        close(p.grad, q.grad, f"gradient of {name}, step {step}", 2e-6 if p.dtype == torch.float32 else 1e-12)


def check_training(rank: int, size: int, **options: Any) -> None:
    """Five steps of AdamW with clipping, one of them without a token on the second rank."""
    spread, whole = blocks(init_device_mesh("cpu", (size,)), **options)
    optimizers = [torch.optim.AdamW(block.parameters(), lr=1e-3) for block in (spread, whole)]
    for step in range(5):
        train_step(spread, whole, rank, size, step)
        norms = clip_grad_norm_(spread.parameters(), 0.1), torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.1)
        close(*norms, f"norm, step {step}")
        for optimizer, block in zip(optimizers, (spread, whole), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            block.update_selection_bias()
        # AdamW's first steps are signs of gradients, whose last bits differ: the next step starts from the same weights
        for p, q in zip(spread.parameters(), whole.parameters(), strict=True):
            close(p.detach(), q.detach(), f"weights after step {step}", 1e-4)
            mine = p.to_local() if hasattr(p, "to_local") else p
            per = -(-spread.num_experts // size)
            mine.data.copy_(q[rank * per : (rank + 1) * per] if hasattr(p, "to_local") else q)
    assert torch.equal(spread.selection_bias, whole.selection_bias)
    assert (spread.selection_bias != spread.bias_init).any()


def check_replicas(rank: int, size: int) -> None:
    """Experts spread over half of the ranks, twice."""
    spread, whole = blocks(init_device_mesh("cpu", (2, size // 2)))
    train_step(spread, whole, rank, size, 0)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many collectives there are within."""
    calls = [0]
    actual = dist.all_to_all_single

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return actual(*args, **kwargs)

    with mock.patch.object(dist, "all_to_all_single", call):
        yield calls


def check_recomputation(rank: int, size: int) -> None:
    """Neither ``torch.utils.checkpoint`` nor ``recompute`` repeats a collective, and gradients stay."""
    for recompute in (False, True):
        spread, _ = blocks(init_device_mesh("cpu", (size,)), recompute=recompute)
        hidden, condition, mask = tokens(rank)
        hidden.requires_grad_()
        grads = []
        for run in (spread, lambda *given, block=spread: checkpoint(block, *given, use_reentrant=False)):
            with counted() as calls:
                run(hidden, condition, mask).square().sum().backward()
            assert calls == [5], calls  # counts, rows, outputs; gradients of outputs and rows
            grads.append([hidden.grad, *(p.grad for p in spread.parameters())])
            hidden.grad = None
            spread.zero_grad()
        for first, second in zip(*grads, strict=True):
            local = [g.to_local() if hasattr(g, "to_local") else g for g in (first, second)]
            assert torch.equal(*local)
    with counted() as calls, torch.no_grad():
        spread(hidden, condition, mask)
    assert calls == [3]


def check_limit(rank: int, size: int) -> None:
    """Static splits: the same results, and all ranks raise where one sends more."""
    spread, whole = blocks(init_device_mesh("cpu", (size,)), max_pairs=63)
    for step in range(2):
        train_step(spread, whole, rank, size, step)
    spread.max_pairs = 1
    with pytest.raises(RuntimeError, match=r"at most 1 \(token, expert\) pairs from one rank to another, got \d+"):
        spread(*tokens(rank, 1))  # the second rank, which has no token, raises too
    raise_on_overflow()  # raised once


def check_saved(rank: int, size: int, folder: str) -> None:
    """Weights and AdamW's state of all ranks, loaded on fewer and on one."""
    spread, _ = blocks(init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.AdamW(spread.parameters(), lr=1e-2)
    spread(*tokens(rank)).square().sum().backward()
    average(spread, size)
    optimizer.step()
    spread.update_selection_bias()
    model, state = get_state_dict(spread, optimizer)
    dcp.save({"model": model, "optimizer": state}, checkpoint_id=folder)
    weights = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in model.items()}
    moments = optimizer.state[spread.w_down]["exp_avg"].full_tensor()
    for ranks in range(1, size):
        mesh = DeviceMesh("cpu", list(range(ranks)))
        if rank >= ranks:
            continue
        torch.manual_seed(99)
        block = InterMoEBlock(DIM, 5, 12, COND).distribute(mesh)
        other = torch.optim.AdamW(block.parameters(), lr=1e-2)
        model, state = get_state_dict(block, other)
        dcp.load({"model": model, "optimizer": state}, checkpoint_id=folder, process_group=mesh.get_group())
        set_state_dict(block, other, model_state_dict=model, optim_state_dict=state)
        for name, value in block.state_dict().items():
            assert torch.equal(getattr(value, "full_tensor", lambda value=value: value)(), weights[name]), name
        assert torch.equal(other.state[block.w_down]["exp_avg"].full_tensor(), moments)


def check_random(rank: int, size: int, runs: int, first: int) -> None:
    """Blocks, tokens and routings at random, the ranks' numbers of tokens apart; a run that hangs ends at the limit."""
    for run in range(first, first + runs):
        draw = random.Random(run)
        options: dict[str, Any] = {
            "num_experts": draw.randint(1, 9), "num_shared_experts": draw.randint(0, 1),
            "recompute": draw.random() < 0.3, "backend": draw.choice([None, "reference"]),
            "fusion": draw.choice(["weighted", "sum", "learned"]),
        }  # fmt: skip
        if draw.random() < 0.3:
            options |= {"routing": "token_choice", "top_k": draw.randint(1, options["num_experts"])}
        spread, whole = blocks(init_device_mesh("cpu", (size,)), run, **options)
        given = [tokens(r, run, draw.randint(0, 3)) for r in range(size)]
        if draw.random() < 0.3:
            spread.max_pairs = 21 * options["num_experts"]
        again = draw.random() < 0.3
        out = checkpoint(spread, *given[rank], use_reentrant=False) if again else spread(*given[rank])
        expected = [whole(*one) for one in given]
        close(out, expected[rank], f"output of run {run}")
        out.sum().backward()
        (sum(one.sum() for one in expected) / size).backward()
        for name in ("w_gate_up", "w_down"):
            got, want = spread.get_parameter(name).grad, whole.get_parameter(name).grad
            close(got, want, f"gradient of {name} of run {run}", 1e-5)
    if rank == 0:
        print(f"{runs} random runs on {size} ranks")


def main(rank: int, size: int, runs: str, folder: str) -> None:
    if int(runs):
        check_random(rank, size, int(runs), 1000)
        return
    few = {"num_experts": 2, "num_shared_experts": 1}  # of four ranks two have no expert
    for check, arguments, options in (
        (check_training, (), {"backend": "reference"}),
        (check_training, (), {}),
        (check_training, (), few),
        *([(check_replicas, (), {})] if size == 4 else []),
        (check_recomputation, (), {}),
        (check_limit, (), {}),
        (check_saved, (str(Path(folder, "saved")),), {}),
        (check_random, (5, 0), {}),
    ):
        print(f"rank {rank}: {check.__name__} {options}", flush=True)
        check(rank, size, *arguments, **options)  # type: ignore[operator]
