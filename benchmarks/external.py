"""Other projects' kernels, where they are installed, through their public interfaces.

SonicMoE's entry for general routing takes any pairs of token and expert, a token without one too, and gets the block's
own selection; selection, gates and normalisation are not its part and run here in plain torch. The others give every
token as many experts as any other: they run with one per token, which is as much work as the block's at capacity 1. All
have weights of their own, so their results are not the block's and are only checked to be finite. An adapter raises
``ImportError`` where the project is absent and ``RuntimeError`` where it does not serve the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intermoe.ops.route import route_reference
from intermoe.ops.select import select_reference

if TYPE_CHECKING:
    from intermoe.benchmarks.forms import Inputs
    from intermoe.benchmarks.harness.work import Shape

Found = tuple[Callable[["Inputs"], Tensor], tuple[Tensor, ...]]
"""What computes, and the weights that are its own."""


def _needs(name: str, inputs: Inputs, capability: tuple[int, int], half: bool = False) -> None:
    if inputs.hidden.device.type != "cuda":
        raise RuntimeError(f"{name} needs a CUDA device")
    if torch.cuda.get_device_capability(inputs.hidden.device) < capability:
        raise RuntimeError(f"{name} needs compute capability {capability[0]}.{capability[1]} or newer")
    if half and inputs.hidden.dtype == torch.float32:
        raise RuntimeError(f"{name} serves half types only")


def _first_choice(x: Inputs) -> tuple[Tensor, Tensor]:
    """Weight and index (S, 1) of each token's best expert."""
    logits = (x.hidden.float() @ x.router_weight.T).softmax(-1)
    weight, index = logits.max(-1, keepdim=True)
    return weight.to(x.hidden.dtype), index


def _module(module: nn.Module, inputs: Inputs, call: Callable[[Any, Inputs], Tensor]) -> Found:
    module = module.to(device=inputs.hidden.device, dtype=inputs.hidden.dtype)
    return lambda x: call(module, x), tuple(module.parameters())


def scattermoe(shape: Shape, inputs: Inputs) -> Found:
    from scattermoe.mlp import GLUMLP

    _needs("scattermoe", inputs, (8, 0))
    module = GLUMLP(shape.dim, shape.width, shape.experts, 1)
    return _module(module, inputs, lambda m, x: m(x.hidden, *_first_choice(x)))


def megablocks(shape: Shape, inputs: Inputs) -> Found:
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    _needs("megablocks", inputs, (8, 0), half=True)
    arguments = Arguments(
        hidden_size=shape.dim,
        ffn_hidden_size=shape.width,
        moe_num_experts=shape.experts,
        moe_top_k=1,
        mlp_type="glu",
        mlp_impl="grouped",
        activation_fn=nn.functional.silu,
        bias=False,
        return_bias=False,
        fp16=inputs.hidden.dtype == torch.float16,
        bf16=inputs.hidden.dtype == torch.bfloat16,
        device=inputs.hidden.device,
    )
    return _module(dMoE(arguments), inputs, lambda m, x: m(x.hidden[None])[0])


def sonic_moe(shape: Shape, inputs: Inputs) -> Found:
    from sonicmoe import MoE
    from sonicmoe.enums import ActivationType
    from sonicmoe.functional import moe_general_routing_inputs

    _needs("sonic-moe", inputs, (9, 0), half=True)
    module = MoE(
        num_experts=shape.experts,
        num_experts_per_tok=1,
        hidden_size=shape.dim,
        intermediate_size=shape.width,
        activation_function=ActivationType.SWIGLU,
        add_bias=False,
        std=0.02,
    ).to(device=inputs.hidden.device, dtype=inputs.hidden.dtype)
    weights = module.c_fc.weight, module.c_proj.weight

    def call(x: Inputs) -> Tensor:
        tokens, logits = route_reference(*x[:5])
        token, expert = (select_reference(logits, x.selection_bias).slots >= 0).nonzero(as_tuple=True)  # by token
        gates = logits.softmax(-1)[token, expert]
        up, down = (weight.permute(1, 2, 0) for weight in weights)
        pairs = (gates, token.int(), expert.int())
        options = (shape.experts, module.stream_id, ActivationType.SWIGLU, not torch.is_grad_enabled())
        out: Tensor = moe_general_routing_inputs(tokens, *pairs, up, None, down, None, *options)[0]
        return out

    return call, weights


def liger_kernel(shape: Shape, inputs: Inputs) -> Found:
    from liger_kernel.ops import LigerFusedMoEFunction

    _needs("liger-kernel", inputs, (8, 0))

    def call(x: Inputs) -> Tensor:
        weight, index = _first_choice(x)
        out: Tensor = LigerFusedMoEFunction.apply(x.hidden, x.w_gate_up, x.w_down, index.int(), weight)
        return out

    return call, ()


ADAPTERS: dict[str, Callable[[Shape, Inputs], Found]] = {
    "megablocks": megablocks,
    "scattermoe": scattermoe,
    "sonic-moe": sonic_moe,
    "liger-kernel": liger_kernel,
}
