"""A network's call in training as two CUDA graphs, of its forward and its backward (``run.cuda_graphs``).

Every step then costs the host two launches in place of some thousand. What is drawn, the loss, the optimiser and what
a block counts go on as ever: a replay reads weights and biases where they are, and adds to the counters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from intermoe import graphs
from intermoe.graphs import WARM_UPS, beside, captured, described, weights_of
from intermoe.nn.moe import InterMoEBlock
from intermoe.ops.moe import is_autocast, room_for_all_pairs, without_autocast

logger = logging.getLogger(__name__)

Call = Callable[..., tuple[Tensor, ...]]


def check_graphs(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise ``ValueError`` where a step of ``model`` cannot be captured."""
    if not graphs.is_gpu(accelerator.device):
        raise ValueError(f"run.cuda_graphs: expected false on {accelerator.device}, which has no CUDA graphs, got true")
    if accelerator.distributed_type != DistributedType.NO:
        ranks, kind = accelerator.num_processes, accelerator.distributed_type.value
        raise ValueError(f"run.cuda_graphs: expected false for {ranks} processes ({kind}), got true")
    for name, block in blocks_of(model):
        if reason := graphs.waits_for_host(block, accelerator.device):
            raise ValueError(f"run.cuda_graphs: expected false where {name} cannot be captured ({reason}), got true")


def blocks_of(model: nn.Module) -> list[tuple[str, InterMoEBlock]]:
    """The InterMoE blocks and their names."""
    return [(name, part) for name, part in model.named_modules() if isinstance(part, InterMoEBlock)]


class TrainingGraph:
    """A call that trains ``network``, captured at its first time and replayed from then on.

    Args:
        call: of tensors, returns tensors; of parameters it reads those of ``network`` alone. Hooks within it run when
            it is captured.
        network: its blocks count in each replay; they make room for all pairs, unless they have ``max_pairs``.
    """

    def __init__(self, call: Call, network: nn.Module) -> None:
        self._call, self._network = call, network
        self._kind: tuple[Any, ...] | None = None
        self._captured: _Captured | None = None

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """``call(*given)``, differentiable once, and before the next call.

        Raises:
            RuntimeError: it cannot be captured; says why.
        """
        blocks = [block for _, block in blocks_of(self._network)]
        counters = [counter for block in blocks for counter in block.counters]
        for block in blocks:  # what is captured adds to the counters, so a step begins with zeros
            if block.step_is_over:
                torch._foreach_zero_(list(block.counters))
                block.step_is_over = False
        device = given[0].device
        precision = torch.get_autocast_dtype(device.type) if is_autocast(device) else None
        memory = [*weights_of(self._network), *[counter.data_ptr() for counter in counters]]
        kind = (described(given), memory, precision, torch.get_float32_matmul_precision())
        if self._captured is None or kind != self._kind:
            if self._captured is not None:
                logger.warning("the training call is captured anew: its shapes, precision or weights are others")
            self._captured = None  # gives its memory back first
            parameters = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
            try:
                self._captured = _Captured(self._call, given, parameters, counters)
            except RuntimeError as error:
                cause = error.__context__ or error
                raise RuntimeError(f"run.cuda_graphs: expected a step that can be captured, got {cause}") from error
            self._kind = kind
        found: tuple[Tensor, ...] = _Replayed.apply(self._captured, *given, *self._captured.parameters)
        return found


class _Captured:
    """The two graphs, and the tensors that they read and write."""

    def __init__(
        self, call: Call, given: Sequence[Tensor], parameters: list[nn.Parameter], counters: list[Tensor]
    ) -> None:
        device, self.parameters = given[0].device, parameters
        self.inputs = [
            value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(value.requires_grad)
            for value in given
        ]
        wanted = [tensor for tensor in (*self.inputs, *parameters) if tensor.requires_grad]
        stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        counted = [counter.clone() for counter in counters]

        def forward() -> tuple[Tensor, ...]:
            with _casts_within(device):
                return call(*self.inputs)

        def backward() -> tuple[Tensor | None, ...]:
            with without_autocast(device):  # as it runs behind a forward under autocast
                return torch.autograd.grad(losses, wanted, self.grads_out, allow_unused=True)

        with _same_numbers(device), beside(stream), room_for_all_pairs():
            for _ in range(WARM_UPS):
                losses = [out for out in forward() if out.requires_grad]
                self.grads_out = [torch.ones_like(out) for out in losses]
                backward()
            self.forward_graph, outputs = captured(forward, stream, pool)
            losses = [out for out in outputs if out.requires_grad]
            self.backward_graph, grads = captured(backward, stream, pool)
            torch._foreach_copy_(counters, counted)
        self.differentiable = [out.requires_grad for out in outputs]
        self.outputs = [out.detach() for out in outputs]
        found = iter(grads)
        self.grads = [next(found) if tensor.requires_grad else None for tensor in (*self.inputs, *parameters)]
        self.turn, self.open = 0, 0

    def forward(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Replay the forward: copies of its results."""
        for own, value in zip(self.inputs, given, strict=True):
            own.copy_(value)
        self.forward_graph.replay()
        self.turn = self.open = self.turn + 1
        return [out.clone() for out in self.outputs]

    def backward(self, turn: int, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Replay the backward of forward number ``turn``: its gradients in their own memory, until the next replay."""
        if turn != self.open:
            raise RuntimeError(
                "run.cuda_graphs: expected one backward for each forward, before the next forward, got another order"
            )
        self.open = 0  # what the forward kept may be written over
        given = [grad for grad, ok in zip(grads, self.differentiable, strict=True) if ok]
        for own, value in zip(self.grads_out, given, strict=True):
            own.copy_(value)
        self.backward_graph.replay()
        return self.grads


class _Replayed(Function):
    @staticmethod
    def forward(ctx: Any, own: _Captured, *tensors: Tensor) -> tuple[Tensor, ...]:
        made = own.forward(tensors[: len(own.inputs)])
        ctx.own, ctx.turn = own, own.turn
        ctx.mark_non_differentiable(*[out for out, ok in zip(made, own.differentiable, strict=True) if not ok])
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # of these autograd makes copies for the parameters, as they stay referred to
        return None, *ctx.own.backward(ctx.turn, grads)


@contextmanager
def _casts_within(device: torch.device) -> Iterator[None]:
    """Autocast as it is, but every cast of a weight is made again: a graph must not read one that was made before."""
    if not is_autocast(device):
        yield
        return
    with torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=False):
        yield


@contextmanager
def _same_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn after the block is what would have been drawn without it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
