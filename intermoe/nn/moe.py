"""InterMoEBlock: a dynamic Mixture-of-Experts in place of a transformer's feed-forward (arXiv 2511.13488)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intermoe.config import NORMS, check_moe
from intermoe.nn.layers import AdaLN, SwiGLU
from intermoe.ops.checks import check_tensor
from intermoe.ops.moe import moe
from intermoe.ops.route import fuse

ROUTER_STD = 0.006
BIAS_MARGIN = 1e-3


class InterMoEBlock(nn.Module):
    """Synergistic router, Dynamic Temporal Selection and SwiGLU experts over one pool of all tokens of the batch.

    Args:
        dim: token width D. num_experts: E. expert_dim: hidden width F of each expert.
        cond_dim: width C of the condition; ``None`` routes on tokens alone and normalises by a plain LayerNorm.
        capacity: experts per token that the selection bias aims at on average, in (0, num_experts].
        fusion: ``"weighted"``: alpha * motion + (1 - alpha) * text logits (the paper); ``"sum"``: their plain sum
            (the authors' code); ``"learned"``: weighted by the sigmoid of one parameter, which starts at ``alpha``.
        alpha: weight of the motion logits.
        num_shared_experts: always-on experts, as one dense SwiGLU of width num_shared_experts * expert_dim.
        norm: ``"adaln"``, or ``"none"`` where the host model normalises its own input.
        bias_rate: step of ``update_selection_bias``. bias_init: its start, inside (-1, 0).
        recompute: save memory in training: drop the experts' pre-activations and compute them again in the backward.
        backend: force a backend by name; ``None`` takes the one in force at each call.

    Buffers:
        selection_bias: (E,) float32 whatever the module's dtype, kept strictly inside (-1, 0).
        expert_counts: (E,) int64, tokens that each expert took in the last training forward; not saved.

    Raises:
        ValueError: for a value outside its range, naming it.
    """

    selection_bias: Tensor
    expert_counts: Tensor
    token_count: Tensor

    def __init__(
        self,
        dim: int = 768,
        num_experts: int = 8,
        expert_dim: int = 1024,
        cond_dim: int | None = 768,
        capacity: float = 1.0,
        fusion: str = "weighted",
        alpha: float = 0.5,
        num_shared_experts: int = 0,
        norm: str = "adaln",
        bias_rate: float = 1e-3,
        bias_init: float = -0.5,
        recompute: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_experts", num_experts), ("expert_dim", expert_dim)):
            if value < 1:
                raise ValueError(f"{name}: must be >= 1, got {value}")
        if cond_dim is not None and cond_dim < 1:
            raise ValueError(f"cond_dim: must be >= 1 or None, got {cond_dim}")
        if norm not in NORMS:
            raise ValueError(f"norm: must be one of {NORMS}, got {norm!r}")
        if fusion == "learned" and not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha: must be inside (0, 1) for fusion='learned', got {alpha}")
        self.dim, self.num_experts, self.expert_dim, self.cond_dim = dim, num_experts, expert_dim, cond_dim
        self.capacity, self.fusion, self.alpha, self.num_shared_experts = capacity, fusion, alpha, num_shared_experts
        self.bias_rate, self.bias_init = bias_rate, bias_init
        self.recompute, self.backend = recompute, backend
        check_moe(self)

        self.motion_router = nn.Parameter(torch.empty(num_experts, dim))
        self.text_router = nn.Parameter(torch.empty(num_experts, cond_dim)) if cond_dim is not None else None
        self.fusion_logit = nn.Parameter(torch.empty(())) if fusion == "learned" and cond_dim is not None else None
        self.norm: nn.Module | None = None
        if norm == "adaln":
            self.norm = nn.LayerNorm(dim, eps=AdaLN.eps) if cond_dim is None else AdaLN(dim, cond_dim)
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, 2 * expert_dim, dim))
        self.w_down = nn.Parameter(torch.empty(num_experts, dim, expert_dim))
        self.shared_experts = SwiGLU(dim, num_shared_experts * expert_dim) if num_shared_experts else None
        self.register_buffer("selection_bias", torch.full((num_experts,), bias_init, dtype=torch.float32))
        self.register_buffer("expert_counts", torch.zeros(num_experts, dtype=torch.int64), persistent=False)
        self.register_buffer("token_count", torch.zeros((), dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the routers from N(0, 0.006) and the experts as torch draws a Linear of their shape."""
        for router in (self.motion_router, self.text_router):
            if router is not None:
                nn.init.normal_(router, std=ROUTER_STD)
        if self.fusion_logit is not None:
            nn.init.constant_(self.fusion_logit, math.log(self.alpha / (1 - self.alpha)))
        nn.init.uniform_(self.w_gate_up, -(self.dim**-0.5), self.dim**-0.5)
        nn.init.uniform_(self.w_down, -(self.expert_dim**-0.5), self.expert_dim**-0.5)

    def forward(self, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """One call over one pool of all B * T tokens.

        Args:
            hidden: (B, T, D). condition: (B, C), required exactly when ``cond_dim`` is set.
            mask: (B, T) bool, True = valid; padded frames are neither routed nor counted and yield 0.

        Returns:
            (B, T, D) in the dtype of ``hidden``; no residual is added.
        """
        self._check(hidden, condition, mask)
        router_weight, router_offset = self._router(condition)
        scale, shift = self._scale_shift(condition)
        out, counts = moe(
            hidden.reshape(-1, self.dim),
            router_weight,
            router_offset,
            scale,
            shift,
            self.selection_bias,
            self.w_gate_up,
            self.w_down,
            valid=None if mask is None else mask.reshape(-1),
            normalise=self.norm is not None,
            recompute=self.recompute,
            backend=self.backend,
        )
        if self.training:
            self._record(counts, hidden, mask)
        out = out.view(hidden.shape)
        if self.shared_experts is not None:
            shared = self.shared_experts(self._normalise(hidden, condition))
            out = out + (shared if mask is None else shared * mask[..., None])
        return out

    @torch.no_grad()
    def update_selection_bias(self) -> None:
        """Move the bias towards the capacity: b <- b - rate * sign(count - capacity * S / E).

        Call it once after every optimiser step. It uses the counts of the last training forward, summed over
        data-parallel ranks; every rank must call it.
        """
        totals = torch.cat([self.expert_counts, self.token_count[None]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        target = self.capacity * totals[-1].double() / self.num_experts
        step = torch.sign(totals[:-1].double() - target).to(self.selection_bias.dtype)
        self.selection_bias.sub_(self.bias_rate * step).clamp_(-1 + BIAS_MARGIN, -BIAS_MARGIN)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, expert_dim={self.expert_dim}, cond_dim={self.cond_dim}, "
            f"capacity={self.capacity}, fusion={self.fusion!r}"
        )

    def _router(self, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if condition is None or self.text_router is None:
            return self.motion_router, None
        with torch.autocast(condition.device.type, enabled=False):
            wide = torch.promote_types(condition.dtype, torch.float32)
            text_logits = condition.to(wide) @ self.text_router.to(wide).T
            alpha: Tensor | float | None = None
            if self.fusion == "weighted":
                alpha = self.alpha
            elif self.fusion_logit is not None:
                alpha = torch.sigmoid(self.fusion_logit)
            return fuse(self.motion_router, text_logits, alpha)

    def _scale_shift(self, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if isinstance(self.norm, AdaLN) and condition is not None:
            return self.norm.scale_shift(condition)
        if isinstance(self.norm, nn.LayerNorm):
            return (self.norm.weight - 1)[None], self.norm.bias[None]
        return None, None

    def _normalise(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        if isinstance(self.norm, AdaLN) and condition is not None:
            return self.norm(hidden, condition)
        return hidden if self.norm is None else self.norm(hidden)

    @torch.no_grad()
    def _record(self, counts: Tensor, hidden: Tensor, mask: Tensor | None) -> None:
        self.expert_counts.copy_(counts)
        if mask is None:
            self.token_count.fill_(hidden.shape[0] * hidden.shape[1])
        else:
            self.token_count.copy_(mask.sum())

    def _check(self, hidden: Tensor, condition: Tensor | None, mask: Tensor | None) -> None:
        batch = check_tensor("hidden", hidden, ("B", "T", self.dim))
        if (condition is None) != (self.cond_dim is None):
            expected = "None (the block was built with cond_dim=None)" if self.cond_dim is None else "a tensor (B, C)"
            raise ValueError(f"condition: expected {expected}, got {None if condition is None else 'a tensor'}")
        if condition is not None and self.cond_dim is not None:
            check_tensor("condition", condition, (batch["B"], self.cond_dim))
        if mask is not None:
            check_tensor("mask", mask, (batch["B"], batch["T"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # the bias moves in steps of 0.001, which half types cannot hold: .to(dtype) must leave it in float32
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if self.selection_bias.dtype != torch.float32:
            self.selection_bias = bias.to(self.selection_bias.device)
        return self
