"""Weights that are spread over the ranks of a device mesh: how they are held, their gradients, and clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intermoe.ops.exchange import Mean, Peers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread(weight: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """A weight as a DTensor whose first dimension is split over the last dimension of ``mesh``; of the first rank's."""
    from torch.distributed.tensor import Shard, distribute_tensor

    placements: list[Any] = [*_replicas(mesh), Shard(0)]
    whole = distribute_tensor(weight.detach(), mesh, placements)
    return nn.Parameter(whole, requires_grad=weight.requires_grad)


def peers_of(weight: Any) -> Peers:
    """The ranks over which a spread weight is split."""
    mesh = weight.device_mesh
    return Peers(mesh.get_group(mesh.ndim - 1), mesh.size(mesh.ndim - 1))


def local(weight: Any) -> Tensor:
    """This rank's part of a spread weight, whose gradient is that of the mean of all ranks' losses."""
    mesh = weight.device_mesh
    replicas = mesh.get_group(0) if mesh.ndim == 2 else None
    part: Tensor = Mean.apply(weight.to_local(), mesh.size(), replicas)  # type: ignore[no-untyped-call]
    return part


def check_mesh(mesh: DeviceMesh) -> None:
    """Raise ``ValueError`` unless experts can be spread over it, ``TypeError`` for what is no mesh."""
    if not hasattr(mesh, "get_group"):
        raise TypeError(f"mesh: expected a DeviceMesh, got {mesh!r}")
    if mesh.ndim not in (1, 2):
        raise ValueError(f"mesh: expected one dimension, or two (replicas, experts), got {mesh.ndim}")


def clip_grad_norm_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients to a 2-norm of at most ``max_norm``: plain ones, the same on all ranks, and spread ones.

    ``torch.nn.utils.clip_grad_norm_`` refuses such a mixture. Every rank must call it.

    Args:
        parameters: plain parameters and distributed ones (DTensor).

    Returns:
        The norm of all gradients before, a scalar, the same on every rank.
    """
    grads: list[Any] = [p.grad for p in parameters if p.grad is not None]
    by_mesh: dict[Any, list[Any]] = {}
    for grad in grads:
        by_mesh.setdefault(getattr(grad, "device_mesh", None), []).append(grad)
    norms = [torch.zeros(())]
    for same in by_mesh.values():
        norm: Any = torch.nn.utils.get_total_norm(same)
        norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    total = (
        torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
        if norms
        else torch.zeros(())
    )
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        part = grad.to_local() if hasattr(grad, "to_local") else grad
        part.mul_(scale.to(part.device, part.dtype))
    return total


def _replicas(mesh: DeviceMesh) -> list[Any]:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * (mesh.ndim - 1)
