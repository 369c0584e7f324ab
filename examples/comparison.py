"""What the examples share: train a model, score it on held-out data, print dense and MoE side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import attach_bias_update

ROUTER_LR = 0.1
"""Learning rate of the routers as a share of the others': their logits must not outrun the selection biases."""


@dataclass
class Result:
    """One trained model. ``flops`` are those of one feed-forward network for one token, as measured in training."""

    name: str
    loss: float
    flops: float
    experts_per_token: float | None
    parameters: int
    seconds: float


def expert_dim_of_equal_flops(dim: int, dense_flops: int, num_experts: int, capacity: float) -> int:
    """Width F of SwiGLU experts, so that router and ``capacity`` experts cost what the dense network costs."""
    router = 2 * num_experts * dim
    return round((dense_flops - router) / (6 * dim * capacity))


def train(
    name: str,
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    score: Callable[[nn.Module], float],
    *,
    steps: int,
    lr: float,
    dense_flops: int,
) -> Result:
    """``steps`` of AdamW on ``loss(model, step)``, then ``score(model)``."""
    model.train()
    routers = [p for name, p in model.named_parameters() if name.endswith("_router")]
    others = [p for name, p in model.named_parameters() if not name.endswith("_router")]
    groups = [{"params": others, "lr": lr}, {"params": routers, "lr": ROUTER_LR * lr}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 2), pct_start=0.1)
    blocks = [m for m in model.modules() if isinstance(m, InterMoEBlock)]
    if blocks:
        attach_bias_update(optimizer, model)
    taken = tokens = 0
    started = time.perf_counter()
    for step in range(steps):
        loss(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        taken += sum(int(block.expert_counts.sum()) for block in blocks)
        tokens += sum(int(block.token_count) for block in blocks)
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        final = score(model)
    parameters = sum(p.numel() for p in model.parameters())
    if not blocks:
        return Result(name, final, dense_flops, None, parameters, seconds)
    per_token, block = taken / max(tokens, 1), blocks[0]
    flops = 2 * block.dim * (block.num_experts + 3 * block.expert_dim * per_token)
    return Result(name, final, flops, per_token, parameters, seconds)


def print_results(results: list[Result]) -> None:
    """A table, a row for each model."""
    width = max(len(result.name) for result in results)
    print(f"\n{'':{width}}  held-out loss  experts/token  kFLOP/token  parameters  training")
    for r in results:
        experts = "-" if r.experts_per_token is None else f"{r.experts_per_token:.2f}"
        row = f"{r.loss:13.4f}  {experts:>13}  {r.flops / 1e3:11.1f}  {r.parameters:10,}  {r.seconds:6.0f} s"
        print(f"{r.name:{width}}  {row}")
