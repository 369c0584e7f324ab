"""InterMoEBlock: a dynamic Mixture-of-Experts in place of a transformer's feed-forward (arXiv 2511.13488)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intermoe import backends
from intermoe.config import MAX_SIZE, NORMS, check_flag, check_integer, check_moe, check_number
from intermoe.nn.distributed import check_mesh, local, peers_of, spread
from intermoe.nn.layers import AdaLN, SwiGLU, whole
from intermoe.ops.checks import check_tensor, is_transformed, unwrapped
from intermoe.ops.moe import Experts, Result, Route, Select, is_autocast, moe, raise_on_overflow, without_autocast
from intermoe.ops.route import fuse, logits_reference
from intermoe.ops.routing import Rule, excess, load_balance_loss

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ROUTER_STD = 0.006
BIAS_MARGIN = 1e-3


class InterMoEBlock(nn.Module):
    """Synergistic router, Dynamic Temporal Selection and SwiGLU experts over one pool of all tokens of the batch.

    Args:
        dim: token width D.
        num_experts: E.
        expert_dim: hidden width F of each expert.
        cond_dim: width C of the condition; ``None`` routes on tokens alone and normalises by a plain LayerNorm.
        capacity: experts per token on average, in (0, num_experts]: what the selection bias aims at, and what
            expert-choice routing takes.
        fusion: ``"weighted"``: alpha * motion + (1 - alpha) * text logits (the paper); ``"sum"``: their plain sum
            (the authors' code); ``"learned"``: weighted by the sigmoid of one parameter, which starts at ``alpha``.
        alpha: weight of the motion logits.
        num_shared_experts: always-on experts, as one dense SwiGLU of width num_shared_experts * expert_dim.
        norm: ``"adaln"``, or ``"none"`` where the host model normalises its own input.
        bias_rate: step of ``update_selection_bias``.
        bias_init: its start, inside (-1, 0).
        recompute: save memory in training: drop the experts' pre-activations and compute them again in the backward.
        backend: force a backend by name; ``None`` takes the one in force at each call.
        routing: ``"dynamic"``; ``"token_choice"``: every token takes its ``top_k`` best experts; ``"expert_choice"``:
            every expert takes its capacity * S / E best tokens. See ``intermoe.ops.routing``.
        top_k: experts per token, for token-choice alone.
        pool: ``"batch"``: one pool of all tokens; ``"sample"``: every row of the batch is a pool of its own, for
            expert choice, for the balance loss and for ``update_selection_bias``.
        unit: ``"sequence"`` selects all frames of a row together, from the mean logits of its valid frames.
        max_pairs: most (token, expert) pairs of a call; more raise. With Triton the call then asks the host for nothing
            (see ``intermoe.ops.moe``). ``None`` for no limit.
        half_sums: Triton, float16, inference only: sum parts of the products in float16, faster and less accurate.

    Buffers:
        selection_bias: (E,) float32 whatever the module's dtype, kept strictly inside (-1, 0); of dynamic routing.

    Attributes:
        expert_counts: (E,) int64, tokens that each expert took in the training forwards of this step: those with
            gradients enabled since ``update_selection_bias``. They stay to be read until the next step's first forward;
            not saved, and no buffers, because DistributedDataParallel overwrites those with the first rank's.

    Raises:
        ValueError: for a value outside its range, naming it. TypeError: for one of another kind. RuntimeError: for a
            ``backend`` that is not usable here.
    """

    selection_bias: Tensor
    expert_counts: Tensor
    token_count: Tensor
    sample_votes: Tensor

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
        routing: str = "dynamic",
        top_k: int | None = None,
        pool: str = "batch",
        unit: str = "frame",
        max_pairs: int | None = None,
        half_sums: bool = False,
    ) -> None:
        super().__init__()
        dim, num_experts, expert_dim = (
            check_integer(value, name, low=1, high=MAX_SIZE)
            for name, value in (("dim", dim), ("num_experts", num_experts), ("expert_dim", expert_dim))
        )
        num_shared_experts = check_integer(num_shared_experts, "num_shared_experts")
        cond_dim = None if cond_dim is None else check_integer(cond_dim, "cond_dim", low=1, high=MAX_SIZE)
        top_k = None if top_k is None else check_integer(top_k, "top_k")
        max_pairs = None if max_pairs is None else check_integer(max_pairs, "max_pairs", low=1)
        capacity, alpha = check_number(capacity, "capacity"), check_number(alpha, "alpha")
        bias_rate, bias_init = check_number(bias_rate, "bias_rate"), check_number(bias_init, "bias_init")
        recompute, half_sums = check_flag(recompute, "recompute"), check_flag(half_sums, "half_sums")
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, got {norm!r}")
        if fusion == "learned" and not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha: expected a value inside (0, 1) for fusion='learned', got {alpha}")
        self.dim, self.num_experts, self.expert_dim, self.cond_dim = dim, num_experts, expert_dim, cond_dim
        self.capacity, self.fusion, self.alpha, self.num_shared_experts = capacity, fusion, alpha, num_shared_experts
        self.bias_rate, self.bias_init = bias_rate, bias_init
        self.recompute, self.backend, self.max_pairs, self.half_sums = recompute, backend, max_pairs, half_sums
        self.routing, self.top_k, self.pool, self.unit = routing, top_k, pool, unit
        check_moe(self)
        if backend is not None:
            backends.check(backend)

        self.motion_router = nn.Parameter(torch.empty(num_experts, dim))
        self.text_router = nn.Parameter(torch.empty(num_experts, cond_dim)) if cond_dim is not None else None
        self.fusion_logit = nn.Parameter(torch.empty(1)) if fusion == "learned" and cond_dim is not None else None
        self.norm: nn.Module | None = None
        if norm == "adaln":
            self.norm = nn.LayerNorm(dim, eps=AdaLN.eps) if cond_dim is None else AdaLN(dim, cond_dim)
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, 2 * expert_dim, dim))
        self.w_down = nn.Parameter(torch.empty(num_experts, dim, expert_dim))
        self.shared_experts = SwiGLU(dim, num_shared_experts * expert_dim) if num_shared_experts else None
        self.register_buffer("selection_bias", torch.full((num_experts,), bias_init, dtype=torch.float32))
        self.expert_counts = torch.zeros(num_experts, dtype=torch.int64)
        self.token_count = torch.zeros((), dtype=torch.int64)
        self.sample_votes = torch.zeros(num_experts, dtype=torch.int64)
        self.is_spread = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the routers from N(0, 0.006) and the experts as torch draws a Linear of their shape; start the bias."""
        nn.init.constant_(self.selection_bias, self.bias_init)
        for counter in self.counters:
            counter.zero_()
        self.step_is_over = True
        for router in (self.motion_router, self.text_router):
            if router is not None:
                nn.init.normal_(router, std=ROUTER_STD)
        if self.fusion_logit is not None:
            nn.init.constant_(self.fusion_logit, math.log(self.alpha / (1 - self.alpha)))
        nn.init.uniform_(self.w_gate_up, -(self.dim**-0.5), self.dim**-0.5)
        nn.init.uniform_(self.w_down, -(self.expert_dim**-0.5), self.expert_dim**-0.5)

    def forward(
        self, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None, *, balance: bool = False
    ) -> Any:
        """One call over all B * T tokens.

        Args:
            hidden: (B, T, D).
            condition: (B, C), or (B, K, C) with a row for each of K equal runs of tokens; required exactly when
                ``cond_dim`` is set.
            mask: (B, T) bool, True = valid; padded frames are neither routed nor counted and yield 0, whatever they
                hold.
            balance: return the balance loss too.

        Returns:
            (B, T, D) in the dtype of ``hidden``, under autocast in its dtype, as a Linear's; no residual is added. With
            ``balance`` a pair of it and the scalar of ``intermoe.ops.routing.load_balance_loss``, differentiable, to be
            added to the loss; zero but for training by token-choice routing.
        """
        self._check(hidden, condition, mask)
        if mask is not None:  # whatever padding holds: 0 times infinity would be NaN in the gradients
            hidden = hidden.masked_fill(~mask[..., None], 0.0)
        route = self._route(hidden, condition)
        select = Select(self.selection_bias, _flat(mask), self._rule(hidden), self.max_pairs)
        part = local if self.is_spread else whole
        experts = Experts(part(self.w_gate_up), part(self.w_down), self.recompute, self.half_sums)
        peers = peers_of(self.w_down) if self.is_spread else None
        result = moe(route, select, experts, backend=self.backend, peers=peers)  # route, select, experts, combine
        if self.training and torch.is_grad_enabled() and not result.again:
            self._count(result, hidden, mask)
        out = result.out.view(hidden.shape)
        if self.shared_experts is not None:
            shared = self.shared_experts(self._normalise(hidden, condition)).to(out.dtype)
            out = out + (shared if mask is None else shared.masked_fill(~mask[..., None], 0.0))
        return (out, self._balance(result, hidden, mask)) if balance else out

    def distribute(self, mesh: DeviceMesh) -> InterMoEBlock:
        """Spread the experts over the ranks of a mesh, which then exchange tokens; returns the block itself.

        Each rank keeps ceil(E / G) experts, the last ones fewer or none, as ``torch.chunk`` splits; the weights become
        DTensors with the values of the mesh's first rank. Forwards and backwards are collective: every rank makes the
        same calls, also with no tokens. Gradients of the experts are those of the mean of all ranks' losses, as
        DistributedDataParallel leaves those of the other parameters; leave the experts out of it
        (docs/distributed.md). Build the optimiser afterwards.

        Args:
            mesh: of one dimension, the experts'; or of two, (replicas, experts): then each replica has all experts and
                the gradients are summed over replicas in the backward. All ranks that train must be in it.

        With ``max_pairs`` every rank sends every rank that many rows (``intermoe.ops.exchange``): it is then the most
        pairs of a call from one rank to another.

        Raises:
            ValueError: for a mesh of another kind. RuntimeError: if the experts are spread already.
        """
        check_mesh(mesh)
        if self.is_spread:
            raise RuntimeError(
                "mesh: expected a block whose experts are whole, got one whose experts are spread already"
            )
        if hasattr(self.w_down, "full_tensor"):
            raise RuntimeError(
                "mesh: expected a block whose experts are whole, got sharded ones; distribute first, and leave "
                "w_gate_up and w_down to fully_shard's ignored_params"
            )
        self.w_gate_up, self.w_down = spread(self.w_gate_up, mesh), spread(self.w_down, mesh)
        self.is_spread = True
        return self

    def routing_logits(self, hidden: Tensor, condition: Tensor | None = None) -> Tensor:
        """R of every token, (B, T, E) float32 (float64 for float64), differentiable; arguments as in ``forward``."""
        self._check(hidden, condition, None)
        route = self._route(hidden, condition)
        with without_autocast(hidden.device):
            logits = logits_reference(route)
        return logits.view(*hidden.shape[:2], self.num_experts)

    @torch.no_grad()
    def chosen_pairs(self, hidden: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Which expert takes which token, (B, T, E) bool; arguments as in ``forward``."""
        self._check(hidden, condition, mask)
        logits = self.routing_logits(hidden, condition).flatten(0, 1)
        return self._all_rules(hidden)(logits, _flat(mask), self.selection_bias).view(*hidden.shape[:2], -1)

    @property
    def counters(self) -> tuple[Tensor, Tensor, Tensor]:
        """What ``update_selection_bias`` reads: sums over the training forwards of a step.

        ``expert_counts`` (E,) and ``token_count`` (), and ``sample_votes`` (E,): in how many samples more of the
        expert's capacity was taken, minus in how many less; counted with ``pool="sample"``.
        """
        return self.expert_counts, self.token_count, self.sample_votes

    @torch.no_grad()
    def update_selection_bias(self) -> None:
        """Move the bias towards the capacity: b <- b - rate * sign(count - capacity * S / E).

        Call it once after every optimiser step. It uses the counts of the step's training forwards, summed over
        data-parallel ranks; every rank must call it. A forward that ``torch.utils.checkpoint`` computes again counts
        once, and one without gradients does not. With ``pool="sample"`` every sample has a vote instead:
        b <- b - rate * sign(sum over samples of sign(count in the sample - capacity * S / E of the sample)).
        Routing kinds without a bias are left alone.

        Raises:
            RuntimeError: if a forward that selected more than ``max_pairs`` is known by now; this does not wait for it.
        """
        raise_on_overflow(self.selection_bias.device, wait=False)
        self.step_is_over = True
        if self.routing != "dynamic":
            return
        totals = torch.cat([counter.reshape(-1) for counter in self.counters])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        counts, tokens, votes = totals.split([self.num_experts, 1, self.num_experts])
        batch = self.pool == "batch"
        sign = excess(counts, tokens, self.capacity, self.num_experts) if batch else torch.sign(votes)
        step = self.bias_rate * sign.to(self.selection_bias.device, self.selection_bias.dtype)
        self.selection_bias.sub_(step).clamp_(-1 + BIAS_MARGIN, -BIAS_MARGIN)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, expert_dim={self.expert_dim}, cond_dim={self.cond_dim}, "
            f"capacity={self.capacity}, fusion={self.fusion!r}, routing={self.routing!r}"
        )

    def _route(self, hidden: Tensor, condition: Tensor | None) -> Route:
        rows = None if condition is None else condition.reshape(-1, condition.shape[-1])
        tokens = hidden.reshape(-1, self.dim)
        return Route(tokens, *self._router(rows), *self._scale_shift(rows), normalise=self.norm is not None)

    def _router(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        motion = whole(self.motion_router)
        if rows is None or self.text_router is None:
            return motion, None
        with without_autocast(rows.device):
            wide = torch.promote_types(rows.dtype, torch.float32)
            text_logits = rows.to(wide) @ whole(self.text_router).to(wide).T
            alpha: Tensor | float | None = None
            if self.fusion == "weighted":
                alpha = self.alpha
            elif self.fusion_logit is not None:
                alpha = torch.sigmoid(whole(self.fusion_logit)).squeeze(0)
            return fuse(motion, text_logits, alpha)

    def _scale_shift(self, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if isinstance(self.norm, AdaLN) and rows is not None:
            return self.norm.scale_shift(_as_weights(rows, self.norm.modulation.weight))
        if isinstance(self.norm, nn.LayerNorm):
            return (whole(self.norm.weight) - 1)[None], whole(self.norm.bias)[None]
        return None, None

    def _normalise(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        hidden = _as_weights(hidden, self.w_down)
        if isinstance(self.norm, AdaLN) and condition is not None:
            return self.norm(hidden, _as_weights(condition, self.norm.modulation.weight))
        return hidden if self.norm is None else self.norm(hidden)

    def _rule(self, hidden: Tensor) -> Rule | None:
        """``None`` where ``select`` itself knows the rule: dynamic, for every token alone."""
        alone = (self.routing, self.unit) == ("dynamic", "frame")
        return None if alone else self._all_rules(hidden)

    def _all_rules(self, hidden: Tensor) -> Rule:
        return Rule(self.routing, self.capacity, self.top_k, self.pool, self.unit, hidden.shape[0])

    def _balance(self, result: Result, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if not self.training or self.routing != "token_choice" or result.logits is None or result.slots is None:
            return hidden.new_zeros((), dtype=torch.float32)
        shape = (*hidden.shape[:2], self.num_experts)
        return load_balance_loss(result.logits.view(shape), (result.slots >= 0).view(shape), mask, pool=self.pool)

    @torch.no_grad()
    def _count(self, result: Result, hidden: Tensor, mask: Tensor | None) -> None:
        valid = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
        votes = torch.zeros_like(result.counts)
        if self.pool == "sample" and result.slots is not None:
            taken = (result.slots >= 0).view(*hidden.shape[:2], self.num_experts).sum(dim=1)
            votes = excess(taken, valid.sum(dim=1, keepdim=True), self.capacity, self.num_experts).sum(dim=0)
        for name, new in (("expert_counts", result.counts), ("token_count", valid.sum()), ("sample_votes", votes)):
            counter = getattr(self, name)
            if is_transformed() or counter.device != new.device:
                # torch.func allows no change in place of what a function captures
                new = new if self.step_is_over else counter.to(new.device) + new
                setattr(self, name, unwrapped(new)[0])
            else:
                counter.copy_(new) if self.step_is_over else counter.add_(new)
        self.step_is_over = False

    def _check(self, hidden: Tensor, condition: Tensor | None, mask: Tensor | None) -> None:
        size = check_tensor("hidden", hidden, ("B", "T", self.dim))
        if not hidden.is_floating_point():
            raise TypeError(f"hidden: expected a floating-point dtype, got {hidden.dtype}")
        if (condition is None) != (self.cond_dim is None):
            expected = "None (the block was built with cond_dim=None)" if self.cond_dim is None else "a tensor"
            raise ValueError(f"condition: expected {expected}, got {None if condition is None else 'a tensor'}")
        if condition is not None and self.cond_dim is not None:
            if not isinstance(condition, Tensor) or condition.dim() != 3:
                check_tensor("condition", condition, (size["B"], self.cond_dim))
            elif (runs := check_tensor("condition", condition, (size["B"], "K", self.cond_dim))["K"]) < 1 or (
                size["T"] % runs != 0
            ):
                raise ValueError(f"condition: expected (B, K, C) with K dividing T={size['T']}, got K={runs}")
            if not condition.is_floating_point():
                raise TypeError(f"condition: expected a floating-point dtype, got {condition.dtype}")
        if mask is not None:
            check_tensor("mask", mask, (size["B"], size["T"]))
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected dtype torch.bool (True = valid), got {mask.dtype}")
        for name, tensor in (("hidden", hidden), ("condition", condition), ("mask", mask)):
            if tensor is None:
                continue
            if hasattr(tensor, "full_tensor"):
                raise TypeError(f"{name}: expected a plain tensor, got a DTensor; hand over its to_local()")
            if tensor.layout is not torch.strided:
                raise TypeError(f"{name}: expected a dense tensor, got one of {tensor.layout}")
            if tensor.device != self.w_down.device:
                raise ValueError(
                    f"{name}: expected a tensor on {self.w_down.device}, where the block is, got one on {tensor.device}"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # the bias moves in steps of 0.001, which half types cannot hold: .to(dtype) must leave it in float32
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if self.selection_bias.dtype != torch.float32:
            self.selection_bias = bias.to(self.selection_bias.device)
        self.expert_counts, self.token_count, self.sample_votes = map(fn, self.counters)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        logit = state_dict.get(f"{prefix}fusion_logit")
        if logit is not None and logit.dim() == 0:  # as it was before FSDP2, which takes no scalars
            state_dict[f"{prefix}fusion_logit"] = logit.reshape(1)
        bias = state_dict.get(f"{prefix}selection_bias")
        if isinstance(bias, Tensor) and not bias.is_meta and not (bias.is_floating_point() and bias.isfinite().all()):
            args[-1].append(f"{prefix}selection_bias: expected finite floating-point numbers, got {bias}")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.selection_bias.dtype != torch.float32:  # assign=True takes what the state holds
            self.selection_bias = self.selection_bias.float()


def _as_weights(tensor: Tensor, weight: Tensor) -> Tensor:
    """In the dtype of the layer that takes it; autocast sees to that itself."""
    return tensor if tensor.dtype == weight.dtype or is_autocast(tensor.device) else tensor.to(weight.dtype)


def _flat(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.flatten(0, 1)


def call_of(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a forward that say what is routed, for a hook that routes it once more."""
    return {name: value for name, value in options.items() if name != "balance"}
