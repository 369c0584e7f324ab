"""replace_feed_forward: InterMoE in place of the dense feed-forward networks of a model, and back."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from intermoe.config import check_integer, check_several
from intermoe.integrations.adapters import BlockAdapter, Condition, check_condition_source, find_blocks
from intermoe.integrations.dense import computes_weights, flops_per_token, is_swiglu, swiglu_weights, token_width
from intermoe.integrations.feed_forward import MoEFeedForward
from intermoe.nn.moe import BIAS_MARGIN, InterMoEBlock

INITS = ("random", "upcycle", "upcycle_sparse", "residual")
HOSTS = (
    "diffusers' BasicTransformerBlock, JointTransformerBlock and FluxTransformerBlock, transformers' ViTLayer and "
    "decoder layers like Llama's, timm's Block, torch's TransformerEncoderLayer, this package's AdaLNFeedForward"
)
NETWORK_NAMES = ("ff", "ff_context", "ffn", "mlp", "feed_forward", "feedforward", "img_mlp", "txt_mlp")
"""What hosts call their feed-forward networks."""
CONFIG_KEY = "intermoe"
NESTED_BEFORE = "_intermoe_nested_before"
"""Where torch's encoder keeps whether it packed padded samples before its networks were replaced."""
COMPILED = "_orig_mod"
"""What torch.compile puts into the names of a model's parts; the replacement is the same without."""
_FIXED = ("self", "dim", "num_experts", "expert_dim", "cond_dim", "capacity", "norm")
BLOCK_OPTIONS = tuple(name for name in inspect.signature(InterMoEBlock.__init__).parameters if name not in _FIXED)


@dataclass(frozen=True)
class ReplacedLayer:
    """What became of one feed-forward network; operations are counted per token, two for each multiply-add."""

    name: str
    condition: str | None
    dense_parameters: int
    moe_parameters: int
    dense_flops: float
    moe_flops: float


@dataclass(frozen=True)
class Replacement:
    """What ``replace_feed_forward`` did; print it for a table."""

    layers: tuple[ReplacedLayer, ...]

    def __str__(self) -> str:
        names = "feed-forward network"
        width = max(len(name) for name in (names, *(layer.name for layer in self.layers)))
        head = f"{names:{width}}  {'routed on':12} {'parameters':>24} {'kFLOP per token':>20}"
        rows = [
            f"{layer.name:{width}}  {'tokens' if layer.condition is None else '+ ' + layer.condition:12} "
            f"{layer.dense_parameters:>10,} -> {layer.moe_parameters:>10,} "
            f"{layer.dense_flops / 1e3:>8,.1f} -> {layer.moe_flops / 1e3:>8,.1f}"
            for layer in self.layers
        ]
        return "\n".join([head, *rows])


def replace_feed_forward(
    model: nn.Module,
    *,
    num_experts: int,
    expert_dim: int,
    capacity: float = 1.0,
    condition: str | None = "auto",
    layers: Sequence[int | str] | None = None,
    init: str = "random",
    adapters: Sequence[BlockAdapter] = (),
    **options: Any,
) -> Replacement:
    """Put an ``InterMoEBlock`` in place of the feed-forward networks of ``model``, which is changed.

    The host's own normalisation, residuals and dropout around the network stay (``norm="none"``). Padding that the
    host masks in attention is neither routed nor counted. Build the optimiser afterwards and give it to
    ``attach_bias_update``. A model of diffusers or transformers notes the replacement in its config, see
    ``load_pretrained``.

    Args:
        model: a model of known transformer blocks (docs/replace.md), or of blocks that ``adapters`` describe.
        num_experts: E.
        expert_dim: hidden width F of each.
        capacity: experts per token on average.
        condition: what the router reads besides the tokens. ``"modulation"``: the embedding of timestep, class or
            pooled text that steers the block. ``"text"``: the mean of the text states it attends to. ``"auto"``: the
            first that the block has, else tokens alone. ``None``: tokens alone.
        layers: which: numbers of blocks in the model's order, names of networks, or patterns such as ``"*.ff"``;
            ``None`` for all.
        init: ``"random"``: new experts, the dense weights go.
            ``"upcycle"``: every expert is the dense network and, until the selection bias has moved, every token goes
            to every expert, so the gates sum to one and the model computes what it did, but at padding. Needs SwiGLU
            networks without biases and ``expert_dim`` equal to their width.
            ``"upcycle_sparse"``: the same with the experts' output scaled by num_experts / n, n the experts per token
            (``top_k`` or ``capacity``): a token's output is the dense one where its gates sum to n / num_experts.
            ``"residual"``: the dense network stays beside the experts, whose output starts at zero: any network, the
            model computes what it did.
        adapters: descriptions of your own blocks.
        options: of ``InterMoEBlock``: fusion, bias_rate, routing, top_k, ...

    Returns:
        What became of each network, in numbers.

    Raises:
        ValueError: if no block is known, a name matches nothing, a network cannot be upcycled, or a value is out of
            range; the model is unchanged then.
    """
    if init not in INITS:
        raise ValueError(f"init: expected one of {INITS}, got {init!r}")
    for name in options:
        if name not in BLOCK_OPTIONS:
            raise ValueError(f"{name}: expected an option of InterMoEBlock, {BLOCK_OPTIONS}, got another")
    spec = {"num_experts": num_experts, "expert_dim": expert_dim, "capacity": capacity, **options}
    if init == "upcycle":
        spec.setdefault("bias_init", -BIAS_MARGIN)
    slots = _choose(find_slots(model, adapters), layers)
    _refuse_shared(model, slots)
    if init != "residual":  # which keeps the dense network
        _refuse_tied(model, slots)
    _refuse_other_note(model)
    return install(model, [(slot, make_feed_forward(slot, condition, init, spec)) for slot in slots])


def restore_feed_forward(model: nn.Module) -> None:
    """Put dense networks back where that loses nothing; each replaced network knows its place.

    A kept network (``init="residual"``) comes back while its experts' output weights are zero. Otherwise a single
    expert becomes the weights of the host's SwiGLU network, which computes the same for every selected token.

    Raises:
        ValueError: if ``model`` holds no replaced network, or one that no dense network can stand for; the model is
            unchanged then.
    """
    check_model(model)
    found = [
        (block, attribute, network)
        for block in model.modules()
        for attribute, network in block.named_children()
        if isinstance(network, MoEFeedForward)
    ]
    if not found:
        raise ValueError("model: expected replaced feed-forward networks, got none")
    restored = [_restored(network) for _, _, network in found]
    for (block, attribute, network), dense in zip(found, restored, strict=True):
        network.unwatch()
        network.adapter.give_back(block, attribute, dense)
    note_replacement(model)


@dataclass(frozen=True)
class Slot:
    """A feed-forward network of a host that is not replaced yet. ``index`` counts blocks in the model's order."""

    index: int
    block: nn.Module
    attribute: str
    name: str
    adapter: BlockAdapter


def find_slots(model: nn.Module, adapters: Sequence[BlockAdapter]) -> list[Slot]:
    """Every dense network that can be replaced. Raises ``ValueError`` if there is none, saying what to do."""
    check_model(model)
    for index, adapter in enumerate(check_several(adapters, "adapters")):
        if not isinstance(adapter, BlockAdapter):
            raise TypeError(f"adapters[{index}]: expected a BlockAdapter, got {adapter!r}")
    blocks = find_blocks(model, adapters)
    if not blocks:
        raise ValueError(
            f"model: expected a known transformer block ({HOSTS}), got none in {type(model).__name__}; "
            f"describe its block with adapters=[{_suggestion(model)}]"
        )
    slots, replaced = [], 0
    for index, (path, block, adapter) in enumerate(blocks):
        for attribute in adapter.slots(block):
            name = ".".join(part for part in (*path.split("."), attribute) if part not in ("", COMPILED))
            if isinstance(getattr(block, attribute), MoEFeedForward):
                replaced += 1
            else:
                slots.append(Slot(index, block, attribute, name, adapter))
    if not slots and replaced:
        raise ValueError(
            "model: expected dense feed-forward networks, got replaced ones alone; restore_feed_forward undoes it"
        )
    if not slots:
        found = sorted({type(block).__name__ for _, block, _ in blocks})
        raise ValueError(
            f"model: expected feed-forward networks that the adapters name, got none in its blocks {found}"
        )
    return slots


def check_model(model: Any) -> None:
    """Raise ``TypeError`` unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {model!r}")


def _refuse_shared(model: nn.Module, slots: Sequence[Slot]) -> None:
    """Two blocks that share a network would have experts of their own each."""
    places: dict[int, list[str]] = {}
    for slot in slots:
        places.setdefault(id(getattr(slot.block, slot.attribute)), []).append(slot.name)
    for shared in places.values():
        if len(shared) > 1:
            raise ValueError(
                f"model: expected a feed-forward network of its own in every block, got one that {shared} share; give "
                "each a copy first (copy.deepcopy), or leave them out with layers"
            )


def _refuse_tied(model: nn.Module, slots: Sequence[Slot]) -> None:
    """A weight that stands elsewhere in the model, too, would be two, one of them in the experts."""
    networks = {slot.name: slot.adapter.take(slot.block, slot.attribute) for slot in slots}
    inside: dict[int, set[int]] = {id(slot.block): set() for slot in slots}
    for slot in slots:
        inside[id(slot.block)] |= {id(m) for m in networks[slot.name].modules()}
    places = dict(_weights_outside(model, "", inside, frozenset()))
    for name, network in networks.items():
        for key, weight in network.named_parameters():
            other = places.setdefault(id(weight), f"{name}.{key}")
            if other != f"{name}.{key}":
                raise ValueError(
                    f"model: expected weights of its own in every feed-forward network, got {name}.{key}, which "
                    f"{other} is as well; give it a copy first, leave the network out with layers, or keep it "
                    '(init="residual")'
                )


def _weights_outside(
    module: nn.Module, path: str, inside: Mapping[int, set[int]], within: frozenset[int]
) -> Iterator[tuple[int, str]]:
    """Weights (id, name) below ``module`` but those of the networks ``inside`` the blocks on the way."""
    within |= inside.get(id(module), set())
    if id(module) not in within:
        yield from ((id(weight), path + key) for key, weight in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        yield from _weights_outside(child, f"{path}{name}.", inside, within)


def _refuse_other_note(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    noted = config.get(CONFIG_KEY) if isinstance(config, Mapping) else getattr(config, CONFIG_KEY, None)
    if noted is not None and not (isinstance(noted, Mapping) and "feed_forward" in noted):
        raise ValueError(
            f"model: expected a config whose {CONFIG_KEY!r} is free for the note of the replacement, got {noted!r}"
        )


def _suggestion(model: nn.Module) -> str:
    """The adapter that would fit the blocks of an unknown host, as far as names tell."""
    for module in model.modules():
        names = tuple(
            n for n, child in module.named_children() if n in NETWORK_NAMES and token_width(child) is not None
        )
        if names:
            return f"BlockAdapter({type(module).__name__!r}, feed_forward={names})"
    return "BlockAdapter(YourBlock, feed_forward=('mlp',), ...)"


def make_feed_forward(slot: Slot, condition: str | None, init: str, spec: Mapping[str, Any]) -> MoEFeedForward:
    """The replacement of one dense network, on its device and in its dtype; the host is unchanged."""
    dense = slot.adapter.take(slot.block, slot.attribute)
    dim = token_width(dense)
    if dim is None:
        raise ValueError(f"{slot.name}: expected a map of tokens (..., D) to (..., D), got {type(dense).__name__}")
    name, chosen = _choose_condition(slot, condition)
    weight = _floating_weight(slot.name, dense)
    with torch.device("meta" if weight.is_meta else "cpu"):  # whatever the context says
        moe = InterMoEBlock(dim=dim, cond_dim=None if chosen is None else chosen.width, norm="none", **spec)
    moe.to(weight.device, weight.dtype).train(dense.training)
    if init in ("upcycle", "upcycle_sparse"):
        _upcycle(slot.name, moe, dense, sparse=init == "upcycle_sparse")
    elif init == "residual":
        nn.init.zeros_(moe.w_down)
    if init != "random" and moe.shared_experts is not None:
        nn.init.zeros_(moe.shared_experts.down.weight)
    kept = dense if init == "residual" else None
    return MoEFeedForward(
        slot.name,
        moe,
        adapter=slot.adapter,
        condition=chosen,
        batch_first=slot.adapter.batch_first(slot.block),
        dense=kept,
        skeleton=copy.deepcopy(dense).to("meta") if kept is None and _can_come_back(dense) else None,
        # a backend is this machine's affair
        spec={k: v for k, v in spec.items() if k != "backend"} | {"condition": name, "residual": kept is not None},
    )


def _floating_weight(name: str, dense: nn.Module) -> nn.Parameter:
    """A weight whose device and dtype the experts take."""
    weights = [parameter for parameter in dense.parameters() if parameter.dim() > 1]
    if any(hasattr(weight, "full_tensor") for weight in weights):
        raise ValueError(
            f"{name}: expected whole weights, got distributed ones, which new experts would not be; "
            "replace first, then shard"
        )
    if not weights or not all(weight.is_floating_point() for weight in weights):
        got = ", ".join(sorted({str(weight.dtype) for weight in weights})) or "none"
        raise ValueError(f"{name}: expected floating-point weights, got {got}; replace it before it is quantised")
    return weights[0]


def _can_come_back(dense: nn.Module) -> bool:
    """Whether a dense network is a SwiGLU, whose weights can be written to: none that is computed from others."""
    return swiglu_weights(dense) is not None and not computes_weights(dense)


def install(model: nn.Module, made: Sequence[tuple[Slot, MoEFeedForward]]) -> Replacement:
    """Put every replacement in its place."""
    described = tuple(_describe(slot, network) for slot, network in made)
    for slot, network in made:
        dense = slot.adapter.take(slot.block, slot.attribute)
        if network.dense is None and any(m._forward_hooks or m._forward_pre_hooks for m in dense.modules()):
            warnings.warn(f"{slot.name}: has hooks, which go with the dense network", stacklevel=3)
        slot.adapter.put(slot.block, slot.attribute, network)
        network.watch(slot.block)
    note_replacement(model)
    return Replacement(described)


def replacement_config(model: nn.Module) -> dict[str, Any]:
    """Plain values (JSON) that say which networks were replaced and how; ``reapply_replacement`` reads them."""
    networks = [m for m in model.modules() if isinstance(m, MoEFeedForward)]
    return {"version": 1, "feed_forward": {network.name: dict(network.spec) for network in networks}}


def note_replacement(model: nn.Module) -> None:
    """Note the replacement where the host keeps its configuration, and keep torch's encoder from its fused kernel."""
    for encoder in model.modules():
        if not isinstance(encoder, nn.TransformerEncoder):
            continue
        replaced = any(isinstance(getattr(layer, "linear1", None), MoEFeedForward) for layer in encoder.layers)
        if replaced and not hasattr(encoder, NESTED_BEFORE):
            setattr(encoder, NESTED_BEFORE, encoder.use_nested_tensor)
            encoder.use_nested_tensor = False
        elif not replaced and hasattr(encoder, NESTED_BEFORE):
            encoder.use_nested_tensor = getattr(encoder, NESTED_BEFORE)
            delattr(encoder, NESTED_BEFORE)
    config = replacement_config(model)
    note = config if config["feed_forward"] else None
    register: Any = getattr(model, "register_to_config", None)
    if register is not None:
        register(**{CONFIG_KEY: note})
    elif hasattr(getattr(model, "config", None), "save_pretrained"):  # transformers
        setattr(model.config, CONFIG_KEY, note)


def _is_chosen(slot: Slot, layers: Sequence[Any]) -> bool:
    return any(slot.index == which if isinstance(which, int) else fnmatchcase(slot.name, which) for which in layers)


def _choose(slots: list[Slot], layers: Sequence[int | str] | None) -> list[Slot]:
    if layers is None:
        return slots
    layers = [
        which if isinstance(which, str) else check_integer(which, f"layers[{index}]", low=0)
        for index, which in enumerate(check_several(layers, "layers"))
    ]
    if not layers:
        raise ValueError("layers: expected at least one number or name, or None for all, got none")
    for which in layers:
        if not any(_is_chosen(slot, [which]) for slot in slots):
            raise ValueError(
                f"layers: expected some of the blocks {sorted({slot.index for slot in slots})} with networks "
                f"{[slot.name for slot in slots]}, got {which!r}"
            )
    return [slot for slot in slots if _is_chosen(slot, layers)]


def _choose_condition(slot: Slot, wanted: str | None) -> tuple[str | None, Condition | None]:
    offered = slot.adapter.conditions(slot.block)
    if wanted == "auto":
        wanted = next(iter(offered), None)
    if wanted is None:
        return None, None
    if wanted not in offered:
        raise ValueError(
            f"condition: expected what {slot.name} offers, {list(offered) or 'none'}, got {wanted!r}; "
            "use 'auto', or None to route on tokens alone"
        )
    check_condition_source(slot.block, offered[wanted])
    return wanted, offered[wanted]


@torch.no_grad()
def _upcycle(name: str, moe: InterMoEBlock, dense: nn.Module, *, sparse: bool) -> None:
    weights = swiglu_weights(dense)
    if any(parameter.is_meta for parameter in dense.parameters()):
        raise ValueError(
            f"init: expected weights to upcycle, got {type(dense).__name__} in {name} on the meta device; load them "
            "first, or take init='random'"
        )
    if weights is None or not is_swiglu(dense):
        raise ValueError(
            f"init: expected SwiGLU networks without biases to upcycle, got {type(dense).__name__} in {name}"
            f"{', whose weights are computed from others' if computes_weights(dense) else ''}; "
            "init='residual' keeps what any network computes"
        )
    width = weights.gate.shape[0]
    if moe.expert_dim != width:
        raise ValueError(f"expert_dim: expected the width {width} of {name} to upcycle it, got {moe.expert_dim}")
    if not sparse and moe.routing != "dynamic":
        raise ValueError(
            f"init: expected 'upcycle_sparse' with routing={moe.routing!r}, got 'upcycle', which sends every token to "
            "every expert at first"
        )
    per_token = moe.num_experts if not sparse else moe.top_k or moe.capacity
    moe.w_gate_up.copy_(torch.cat([weights.gate, weights.up]))
    moe.w_down.copy_(weights.down * (moe.num_experts / per_token))


def _restored(network: MoEFeedForward) -> nn.Module:
    moe = network.moe
    if not isinstance(moe, InterMoEBlock):
        raise ValueError(
            f"{network.name}: expected plain experts, got {type(moe).__name__} around them; unload or merge that first"
        )
    if network.dense is not None:
        if moe.w_down.any() or moe.num_shared_experts:
            raise ValueError(
                f"{network.name}: expected experts that add nothing to the dense network yet, got others, to be lost"
            )
        return network.dense
    skeleton = network.skeleton[0]
    if moe.num_experts != 1 or moe.num_shared_experts or skeleton is None:
        raise ValueError(
            f"{network.name}: expected a single expert in a host with SwiGLU networks of plain weights to become "
            "dense again, "
            f"got num_experts={moe.num_experts}, num_shared_experts={moe.num_shared_experts}"
        )
    dense = copy.deepcopy(skeleton).to_empty(device=moe.w_down.device).to(moe.w_down.dtype).train(network.training)
    weights = swiglu_weights(dense)
    if weights is None or weights.gate.shape[0] != moe.expert_dim:
        raise ValueError(f"{network.name}: expected the width of the host's network, got expert_dim={moe.expert_dim}")
    with torch.no_grad():
        gate, up = moe.w_gate_up[0].chunk(2)
        for target, value in ((weights.gate, gate), (weights.up, up), (weights.down, moe.w_down[0])):
            target.copy_(value)
        for bias in weights.biases:
            bias.zero_()
    return dense


def _describe(slot: Slot, network: MoEFeedForward) -> ReplacedLayer:
    dense, moe = slot.adapter.take(slot.block, slot.attribute), network.moe
    per_token = moe.top_k or moe.capacity
    width = per_token * moe.expert_dim + moe.num_shared_experts * moe.expert_dim
    kept = flops_per_token(dense) if network.dense is not None else 0
    return ReplacedLayer(
        name=slot.name,
        condition=network.spec["condition"],
        dense_parameters=sum(p.numel() for p in dense.parameters()),
        moe_parameters=sum(p.numel() for p in network.parameters()),
        dense_flops=flops_per_token(dense),
        moe_flops=2 * (moe.num_experts * moe.dim + 3 * moe.dim * width) + kept,
    )
