"""How a host's transformer blocks are built: where their feed-forward networks sit, what they are conditioned on.

An adapter describes one class of blocks. Those of diffusers, transformers, timm and torch are known; for a module of
your own describe its block with a ``BlockAdapter`` and hand it to ``replace_feed_forward(..., adapters=[...])``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from intermoe.config import check_several

MASK_MEANINGS = ("valid", "padding", "additive")


@dataclass(frozen=True)
class Mask:
    """The padding mask among the arguments of a block's forward.

    Args:
        argument: its name.
        true_means: ``"valid"``: true entries are tokens (attention masks of most libraries). ``"padding"``: true
            entries are padding, and floating-point masks are added to attention scores (torch). ``"additive"``: added
            to attention scores, 0 keeps and a large negative number discards (diffusers).

    A mask of shape (B, T) or (B, 1, T) says which tokens are padding; any other shape is a pattern of attention, which
    says nothing about tokens, and is passed over.
    """

    argument: str
    true_means: str = "valid"

    def __post_init__(self) -> None:
        if self.true_means not in MASK_MEANINGS:
            raise ValueError(f"true_means: expected one of {MASK_MEANINGS}, got {self.true_means!r}")

    def valid(self, arguments: Mapping[str, Any], shape: tuple[int, int]) -> Tensor | None:
        """(B, T) bool, True = valid, from the arguments of a call on (B, T) tokens; ``None`` without a mask."""
        mask = arguments.get(self.argument)
        if mask is None or mask.shape not in (shape, (shape[0], 1, shape[1])):
            return None
        mask = mask.reshape(shape)
        additive = self.true_means == "additive" or (self.true_means == "padding" and mask.is_floating_point())
        if additive:
            return mask > -1
        return ~mask.bool() if self.true_means == "padding" else mask.bool()


@dataclass(frozen=True)
class Condition:
    """One vector per sample that a host hands to its blocks, or computes inside them.

    Args:
        source: name of an argument of the block's forward, or dotted path of a submodule whose output it is.
        width: its width C.
        mean_over: reduce a sequence (B, L, C) to its mean, over the valid entries of this mask where it is given.
        sequence: the source is a sequence (B, L, C), not a vector (B, C).
    """

    source: str
    width: int
    sequence: bool = False
    mean_over: Mask | None = None

    def read(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """(B, C), or ``None`` where the host passed nothing."""
        value = arguments.get(self.source)
        if not isinstance(value, Tensor):
            return None
        if not self.sequence:
            batch, *rest = value.shape or (1,)
            return value.reshape(batch, math.prod(rest))  # a batch may be empty
        valid = None if self.mean_over is None else self.mean_over.valid(arguments, (value.shape[0], value.shape[1]))
        if valid is None:
            return value.mean(dim=1)
        weight = valid[..., None].to(value.dtype)
        return (value * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class BlockAdapter:
    """Describes one class of transformer blocks; subclass it where an attribute is not enough.

    Args:
        block: the class, or its name, with its module where that is not enough (subclasses match too).
        feed_forward: attributes of the block that hold its feed-forward networks, each (B, T, D) -> (B, T, D).
        condition: what the block may be routed on, by name; the first is the default. Empty: tokens alone.
        mask: the padding mask among the block's arguments.
    """

    block: type[nn.Module] | str
    feed_forward: Sequence[str]
    condition: Mapping[str, Condition] = field(default_factory=dict)
    mask: Mask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "feed_forward", check_several(self.feed_forward, "feed_forward"))

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is such a block."""
        if isinstance(self.block, str):
            names = type(module).__mro__
            return any(self.block in (c.__name__, f"{c.__module__}.{c.__name__}") for c in names)
        return isinstance(module, self.block)

    def slots(self, block: nn.Module) -> list[str]:
        """Attributes of this block that hold a feed-forward network."""
        return [name for name in self.feed_forward if isinstance(getattr(block, name, None), nn.Module)]

    def conditions(self, block: nn.Module) -> Mapping[str, Condition]:
        """What this block can be routed on."""
        return self.condition

    def batch_first(self, block: nn.Module) -> bool:
        """Whether tokens are (B, T, D) rather than (T, B, D)."""
        return True

    def take(self, block: nn.Module, slot: str) -> nn.Module:
        """The dense network at ``slot`` as one module."""
        dense: nn.Module = getattr(block, slot)
        return dense

    def put(self, block: nn.Module, slot: str, module: nn.Module) -> None:
        """Put ``module`` in place of the dense network."""
        setattr(block, slot, module)

    def give_back(self, block: nn.Module, slot: str, dense: nn.Module) -> None:
        """Undo ``put``: ``dense`` is what ``take`` returned."""
        setattr(block, slot, dense)


class DiffusersBlock(BlockAdapter):
    """diffusers' BasicTransformerBlock: DiT, PixArt, UNets and everything else that is built of it."""

    def conditions(self, block: Any) -> Mapping[str, Condition]:
        found = {}
        if block.norm_type in ("ada_norm", "ada_norm_zero"):
            # the block embeds timestep and class itself
            found["modulation"] = Condition("norm1.emb", block.norm1.linear.in_features)
        elif block.norm_type == "ada_norm_single":
            found["modulation"] = Condition("timestep", block.scale_shift_table.numel())
        if block.attn2 is not None and not block.double_self_attention:
            text_mask = Mask("encoder_attention_mask", "additive")
            width = block.attn2.to_k.in_features
            found["text"] = Condition("encoder_hidden_states", width, sequence=True, mean_over=text_mask)
        return found


class DiffusersJointBlock(BlockAdapter):
    """diffusers' JointTransformerBlock (SD3) and FluxTransformerBlock: image and text tokens have a network each.

    Flux's single-stream blocks compute attention and feed-forward in one product and stay as they are.
    """

    def conditions(self, block: Any) -> Mapping[str, Condition]:
        # timestep and pooled text
        return {"modulation": Condition("temb", block.norm1.linear.in_features)}


class AdaLNBlock(BlockAdapter):
    """This package's AdaLN with a feed-forward network: InterGen, TIMotion, in2IN."""

    def conditions(self, block: Any) -> Mapping[str, Condition]:
        # the embedding of timestep and text
        return {"modulation": Condition("condition", block.norm.modulation.in_features)}


class LooseFeedForward(nn.Module):
    """The feed-forward network that ``nn.TransformerEncoderLayer`` holds in pieces."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.linear1, self.dropout, self.linear2 = layer.linear1, layer.dropout, layer.linear2
        self.activation: Callable[[Tensor], Tensor] = layer.activation
        self.activation_code = layer.activation_relu_or_gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return out


class TorchEncoderLayer(BlockAdapter):
    """torch's ``nn.TransformerEncoderLayer``; its dropout after the feed-forward network stays."""

    def batch_first(self, block: Any) -> bool:
        return bool(block.self_attn.batch_first)

    def take(self, block: Any, slot: str) -> nn.Module:
        return LooseFeedForward(block)

    def put(self, block: Any, slot: str, module: nn.Module) -> None:
        block.linear1, block.linear2 = module, nn.Identity()
        block.activation, block.dropout = nn.Identity(), nn.Identity()
        # 0 keeps torch from its fused inference kernel, which reads the dense weights
        block.activation_relu_or_gelu = 0

    def give_back(self, block: Any, slot: str, dense: Any) -> None:
        block.linear1, block.linear2, block.dropout = dense.linear1, dense.linear2, dense.dropout
        del block.activation
        block.activation, block.activation_relu_or_gelu = dense.activation, dense.activation_code


LLAMA_LIKE = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi3")
"""transformers' decoders with a gated network ``mlp``. Their masks are patterns of attention, so padding is routed."""

KNOWN: tuple[BlockAdapter, ...] = (
    DiffusersBlock("BasicTransformerBlock", ("ff",), mask=Mask("attention_mask", "additive")),
    DiffusersJointBlock("JointTransformerBlock", ("ff", "ff_context")),
    DiffusersJointBlock("FluxTransformerBlock", ("ff", "ff_context")),
    BlockAdapter("ViTLayer", ("mlp",)),
    *(BlockAdapter(f"{name}DecoderLayer", ("mlp",)) for name in LLAMA_LIKE),
    BlockAdapter("timm.models.vision_transformer.Block", ("mlp",)),
    AdaLNBlock("AdaLNFeedForward", ("network",), mask=Mask("mask")),
    TorchEncoderLayer(nn.TransformerEncoderLayer, ("linear1",), mask=Mask("src_key_padding_mask", "padding")),
)


def find_blocks(model: nn.Module, adapters: Sequence[BlockAdapter]) -> list[tuple[str, nn.Module, BlockAdapter]]:
    """Every block of ``model`` that an adapter knows, in order; adapters given come before the known ones."""
    found = []
    for name, module in model.named_modules():
        adapter = next((a for a in (*adapters, *KNOWN) if a.matches(module)), None)
        if adapter is not None:
            found.append((name, module, adapter))
    return found


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of the block's forward."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(n for n, p in inspect.signature(block.forward).parameters.items() if p.kind in positional)


def check_condition_source(block: nn.Module, condition: Condition) -> None:
    """Raise ``ValueError`` unless the source is an argument of the block's forward or one of its submodules."""
    names = tuple(inspect.signature(block.forward).parameters)
    if condition.source not in names and condition.source not in dict(block.named_modules()):
        raise ValueError(
            f"condition: expected an argument of {type(block).__name__}.forward {names} or one of its submodules, "
            f"got {condition.source!r}"
        )
