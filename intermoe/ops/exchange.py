r"""Experts over processes: every rank has its own tokens and some of the experts, and sends pairs to where these are.

    select ──► exchange ──► experts ──► return ──► combine

The experts are split over G ranks as ``torch.chunk`` splits: ceil(E / G) each, the last ranks fewer or none. The pairs
of a rank lie in the order of their experts, so what goes to another rank is one run of rows, and one
``all_to_all_single`` with uneven splits moves all of them; a second one brings the outputs back. No pair is dropped and
none is padded. The number of pairs is exchanged first and read by the host.

With ``max_pairs`` M every rank sends every rank M rows, of which the pairs are the first: the host reads nothing. A
call in which more pairs go from one rank to another raises on all ranks, on CUDA at the next point that meets the host.

Collectives of a call, in this order on every rank: counts, rows, outputs, and in the backward the gradients of outputs
and rows; with M the verdict on M after the counts. So all ranks must make the same calls, also one without a token. A
forward that ``torch.utils.checkpoint`` (``use_reentrant=False``) computes again takes what it received the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from intermoe import backends
from intermoe.kernels.contract import Experts
from intermoe.ops.combine import combine_reference
from intermoe.ops.experts import experts_reference


class Peers(NamedTuple):
    """The ranks over which the experts of a block are spread."""

    group: dist.ProcessGroup
    size: int


class Exchange(NamedTuple):
    """Where the pairs of a rank go, and what it got. N rows are sent, M are received; sizes of ``ops`` otherwise."""

    slots: Tensor
    """(S, E) int64, row of token s and expert e among those sent, -1 where not selected"""
    token_idx: Tensor
    """(N,) int64 token of each row sent"""
    expert_idx: Tensor
    """(N,) int64 expert of each row sent"""
    filled: Tensor
    """(N,) bool, whether the row is a pair; all are, but for static splits"""
    sent: list[int]
    received: list[int]
    """rows to and from every rank"""
    order: Tensor
    """(M,) int64, the rows received in the order of their experts, rows that are no pair last"""
    offsets: Tensor
    """(experts of this rank + 1,) int64, ends of the experts' rows in ``order``"""


class Mean(torch.autograd.Function):
    """A weight as it is; its gradient divided, since a whole loss is the mean of the ranks' losses."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ranks: int, replicas: dist.ProcessGroup | None) -> Tensor:
        ctx.ranks, ctx.replicas = ranks, replicas
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad / ctx.ranks
        if ctx.replicas is not None:
            dist.all_reduce(grad, group=ctx.replicas)
        return grad, None, None


class _Swap(torch.autograd.Function):
    """Rows to and from every rank; gradients go the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], peers: Peers, known: tuple[Tensor, ...]
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.peers = sent, received, peers
        return known[0].detach() if known else _all_to_all(rows, sent, received, peers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grad, ctx.received, ctx.sent, ctx.peers), None, None, None, None


class _Gather(torch.autograd.Function):
    """tokens[token_idx], whose gradient is a sum by slots: deterministic, and of pairs alone."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: Exchange, combine: Callable[..., Tensor]) -> Tensor:
        ctx.slots, ctx.combine = plan.slots, combine
        return _take(tokens, plan.token_idx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.combine(grad, None, ctx.slots), None, None


class _Combine(torch.autograd.Function):
    """Step 4 on rows in the order they were sent."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, plan: Exchange, combine: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(rows, gates)
        ctx.token_idx = plan.token_idx
        return combine(rows, gates, plan.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gates = ctx.saved_tensors
        grads = _take(grad, ctx.token_idx).to(gates.dtype)
        return (grads * gates[:, None]).to(rows.dtype), (grads * rows.to(gates.dtype)).sum(-1), None, None


class _Experts(torch.autograd.Function):
    """Step 3 of a backend on rows that belong to one expert each."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, order: Tensor, offsets: Tensor, up: Tensor, down: Tensor, recompute: bool, package: Any
    ) -> Tensor:
        expert_out, h = package.experts_forward(rows, order, offsets, up, down, not recompute)
        ctx.package, ctx.recompute = package, recompute
        ctx.save_for_backward(rows, order, offsets, up, down, h)
        return rows.new_empty(rows.shape).index_copy_(0, order, expert_out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, order, offsets, up, down, h = ctx.saved_tensors
        ones = torch.ones(len(order), device=rows.device)
        needed = tuple(ctx.needs_input_grad[i] for i in (0, 3, 4))
        found = ctx.package.experts_backward(
            grad.contiguous(), rows, order, offsets, ones, None if ctx.recompute else h, up, down, needed
        )
        grad_rows = None if found[0] is None else rows.new_empty(rows.shape).index_copy_(0, order, found[0])
        return grad_rows, None, None, found[2], found[3], None, None


def over_ranks(
    tokens: Tensor,
    logits: Tensor,
    chosen: Tensor,
    experts: Experts,
    peers: Peers,
    *,
    max_pairs: int | None,
    backend: str,
    known: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Exchange, experts, return and combine; differentiable. Every rank of ``peers`` must call it.

    Args:
        tokens: (S, D) of this rank, in the dtype of the weights.
        logits: (S, E).
        chosen: (S, E) bool, the pairs.
        experts: the weights of this rank's experts; ``half_sums`` is not heeded.
        max_pairs: rows to every rank, for static splits; ``None`` for as many as there are pairs.
        backend: the one that runs the experts and combines.
        known: what a call before returned, to receive nothing.

    Returns:
        ``out`` (S, D); ``slots`` (S, E) int64, -1 where not selected; and what the rank received.

    Raises:
        RuntimeError: on all ranks, if more than ``max_pairs`` pairs go from one to another; on CUDA later.
    """
    package = None if backend == backends.REFERENCE else backends.load(backend)
    combine = combine_reference if package is None else package.combine
    counts = known[0] if known else _exchange_counts(chosen, peers)
    over = None
    if max_pairs is not None:
        over = chosen.new_zeros(1) if known else _check_static(chosen, peers, max_pairs)
    plan = plan_exchange(chosen, counts, len(experts.w_down), peers.size, max_pairs)
    pair_idx = plan.token_idx * chosen.shape[1] + plan.expert_idx
    gates = _take(torch.softmax(logits, dim=-1).flatten(), pair_idx).masked_fill(~plan.filled, 0.0)
    rows = _Gather.apply(tokens, plan, combine)
    received: Tensor = _Swap.apply(rows, plan.sent, plan.received, peers, known[1:2])  # type: ignore[no-untyped-call]
    results = _run_experts(received, plan, experts, package, max_pairs)
    returned: Tensor = _Swap.apply(results, plan.received, plan.sent, peers, known[2:3])  # type: ignore[no-untyped-call]
    out: Tensor = _Combine.apply(returned, gates, plan, combine)  # type: ignore[no-untyped-call]
    out = out if over is None else out.masked_fill(over, float("nan"))
    return out, plan.slots, (counts, received.detach(), returned.detach())


def plan_exchange(
    chosen: Tensor, received_counts: Tensor, num_local: int, ranks: int, max_pairs: int | None
) -> Exchange:
    """The rows of one call. With ``max_pairs`` the host reads nothing.

    Args:
        chosen: (S, E) bool.
        received_counts: (G, ceil(E / G)) int64, pairs from every rank for each expert of this one.
        num_local: experts of this rank.
    """
    num_tokens, num_experts = chosen.shape
    device, per_rank = chosen.device, received_counts.shape[1]
    by_rank = _by_rank(chosen, ranks).flatten(1)
    numbers = by_rank.sum(1)
    if max_pairs is None:
        sent, received = torch.stack([numbers, received_counts.sum(1)]).tolist()
        starts, most = numbers.cumsum(0) - numbers, num_tokens * per_rank
    else:
        sent, received = [max_pairs] * ranks, [max_pairs] * ranks
        starts, most = torch.arange(ranks, device=device) * max_pairs, max_pairs
    place = by_rank.cumsum(1) - 1
    taken = by_rank & (place < most)
    slots = (
        torch.where(taken, starts[:, None] + place, -1).view(ranks * per_rank, num_tokens)[:num_experts].T.contiguous()
    )

    rows = sum(sent)
    target = torch.where(slots < 0, rows, slots).flatten()  # one row more takes what is not selected
    pair = torch.arange(num_tokens * num_experts, device=device)
    pair_of_row = torch.full((rows + 1,), -1, device=device).scatter_(0, target, pair)[:rows]
    filled = pair_of_row >= 0
    pair_of_row = pair_of_row.clamp(min=0)

    held = received_counts
    if max_pairs is not None:
        held = torch.cat([held, (max_pairs - held.sum(1, keepdim=True)).clamp(min=0)], dim=1)
    cell = torch.searchsorted(held.flatten().cumsum(0), torch.arange(sum(received), device=device), right=True)
    expert = cell.clamp(max=held.numel() - 1) % held.shape[1]
    order = expert.argsort(stable=True)
    ends = held.sum(0)[:num_local].cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends.clamp(max=len(order))])
    return Exchange(
        slots, pair_of_row // num_experts, pair_of_row % num_experts, filled, sent, received, order, offsets
    )


def _take(source: Tensor, index: Tensor) -> Tensor:
    """source[index]; zeros where a rank without tokens fills its static splits, with a gradient, if an empty one."""
    return source[index] if len(source) else source.new_zeros(len(index), *source.shape[1:]) + source.sum()


def _by_rank(chosen: Tensor, ranks: int) -> Tensor:
    """(S, E) -> (G, ceil(E / G), S), with experts that nobody chose where the last ranks have fewer."""
    num_tokens, num_experts = chosen.shape
    per_rank = -(-num_experts // ranks)
    missing = chosen.new_zeros(ranks * per_rank - num_experts, num_tokens)
    return torch.cat([chosen.T, missing]).view(ranks, per_rank, num_tokens)


def _exchange_counts(chosen: Tensor, peers: Peers) -> Tensor:
    mine = _by_rank(chosen, peers.size).sum(2)
    theirs = torch.empty_like(mine)
    dist.all_to_all_single(theirs, mine, group=peers.group)
    return theirs


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], peers: Peers) -> Tensor:
    out = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=peers.group)
    return out


def _run_experts(rows: Tensor, plan: Exchange, experts: Experts, package: Any, max_pairs: int | None) -> Tensor:
    """Outputs of the rows received, where they lie."""
    up, down, recompute, _ = experts
    if not len(down):  # nothing is sent here; the backward meets the others all the same
        return rows + up.sum() + down.sum()
    order = plan.order
    static = max_pairs is not None
    if static and (package is None or package.allocated_pairs(len(rows), len(down), max_pairs) is None):
        order = order[: int(plan.offsets[-1])]  # a backend that asks the host for the number of pairs itself
    if package is not None and len(order):
        out: Tensor = _Experts.apply(rows, order, plan.offsets, up, down, recompute, package)  # type: ignore[no-untyped-call]
        return out
    expert_out = experts_reference(rows, order, plan.offsets, up, down, recompute)
    return rows.new_zeros(rows.shape).index_copy(0, order, expert_out)


class _Limit:
    """The most pairs that went over a limit on a device, kept there and copied to the host without waiting."""

    def __init__(self, device: torch.device) -> None:
        self.worst = torch.zeros(2, dtype=torch.int64, device=device)
        self.host = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")

    def note(self, most: Tensor, limit: int) -> None:
        """most: (1,) pairs from one rank to another, the same on all ranks."""
        found = torch.cat([most, torch.full_like(most, limit)]) * (most > limit)
        torch.maximum(self.worst, found, out=self.worst)
        self.host.copy_(self.worst, non_blocking=True)

    def raise_if_over(self) -> None:
        needed, limit = self.host.tolist()
        if needed:
            self.worst.zero_()
            self.host.zero_()
            raise RuntimeError(
                f"max_pairs: expected at most {limit} (token, expert) pairs from one rank to another, got {needed}; "
                "use a larger max_pairs, or max_pairs=None for as many as there are"
            )


_limits: dict[torch.device, _Limit] = {}


def _check_static(chosen: Tensor, peers: Peers, max_pairs: int) -> Tensor:
    """Whether a rank sends another more than ``max_pairs``, (1,) bool, the same on all ranks."""
    raise_on_overflow(chosen.device, wait=False)
    most = _by_rank(chosen, peers.size).sum((1, 2)).amax().reshape(1)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=peers.group)
    _limits.setdefault(chosen.device, _Limit(chosen.device)).note(most, max_pairs)
    if not chosen.is_cuda:
        raise_on_overflow(chosen.device, wait=False)
    return most > max_pairs


def raise_on_overflow(device: torch.device | None, *, wait: bool) -> None:
    """Raise ``RuntimeError`` if a call with ``max_pairs`` sent more; ``wait`` for the device, to judge all calls."""
    for found, limit in _limits.items():
        if device is None or found == device:
            if wait and found.type == "cuda":
                torch.cuda.synchronize(found)
            limit.raise_if_over()
