"""Replacement by hand: which networks, what a block is told, where its selection starts, what comes back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import (
    BlockAdapter,
    Condition,
    Mask,
    MoEFeedForward,
    attach_bias_update,
    balance_losses,
    calibrated_selection,
    replace_feed_forward,
    replacement_config,
    restore_feed_forward,
)
from intermoe.integrations.adapters import DiffusersBlock
from intermoe.integrations.dense import flops_per_token, swiglu_weights, token_width
from intermoe.integrations.replace import BLOCK_OPTIONS, ReplacedLayer, Replacement
from intermoe.integrations.systems import (
    ExpertsConfig,
    InterGenExpertsModelConfig,
    TIMotionExpertsModelConfig,
)
from intermoe.nn.layers import SwiGLU
from intermoe.nn.moe import BIAS_MARGIN


class Both(nn.Module):
    """A block of two networks: the second is for tokens of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ff: Any = SwiGLU(8, 12)
        self.other: Any = SwiGLU(8, 12)

    def forward(self, x: Tensor, emb: Tensor, valid: Tensor | None = None, *, again: bool = False) -> Tensor:
        return x + (self.other if again else self.ff)(x)


ADAPTER = BlockAdapter(Both, ("ff", "other"), {"emb": Condition("emb", 4)}, mask=Mask("valid"))
SIZES: dict[str, Any] = {"num_experts": 3, "expert_dim": 6, "adapters": [ADAPTER]}


def replaced(count: int = 1, **options: Any) -> tuple[nn.Sequential, list[str]]:
    torch.manual_seed(0)
    model = nn.Sequential(*[Both() for _ in range(count)])
    done = replace_feed_forward(model, **{**SIZES, **options})
    return model, [layer.name for layer in done.layers]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["0.ff", "0.other", "1.ff", "1.other", "2.ff", "2.other"]),
        ([1], ["1.ff", "1.other"]),
        ([2, 0], ["0.ff", "0.other", "2.ff", "2.other"]),
        (["*.other"], ["0.other", "1.other", "2.other"]),
        ([0, "?.other"], ["0.ff", "0.other", "1.other", "2.other"]),
        (["2.ff"], ["2.ff"]),
    ],
)
def test_which_networks_are_replaced(layers: Any, names: list[str]) -> None:
    """Numbers are of blocks, with all their networks; the order is the model's."""
    model, found = replaced(3, layers=layers)
    assert found == names
    assert [name for name, module in model.named_modules() if isinstance(module, MoEFeedForward)] == names


def test_blocks_keep_their_numbers_when_some_are_replaced_already() -> None:
    model, _ = replaced(3, layers=[0])
    done = replace_feed_forward(model, layers=[1], **SIZES)
    assert [layer.name for layer in done.layers] == ["1.ff", "1.other"]
    with pytest.raises(ValueError, match=r"layers: expected some of the blocks \[2\] with networks \['2\.ff', '2\.oth"):
        replace_feed_forward(model, layers=[1], **SIZES)


def test_a_replacement_is_told_as_a_table() -> None:
    layers = (
        ReplacedLayer("blocks.0.mlp", "modulation", 1234, 56789, 2468.0, 13579.0),
        ReplacedLayer("a", None, 1, 1_000_000, 50.0, 150.0),
    )
    assert str(Replacement(layers)).splitlines() == [
        "feed-forward network  routed on                  parameters      kFLOP per token",
        "blocks.0.mlp          + modulation      1,234 ->     56,789      2.5 ->     13.6",
        "a                     tokens                1 ->  1,000,000      0.1 ->      0.1",
    ]
    (long,) = (replace(layer, name="transformer_blocks.0.ff_context", condition="text") for layer in layers[:1])
    assert str(Replacement((long,))).splitlines() == [
        "feed-forward network             routed on                  parameters      kFLOP per token",
        "transformer_blocks.0.ff_context  + text            1,234 ->     56,789      2.5 ->     13.6",
    ]
    assert len(str(Replacement(())).splitlines()) == 1


def test_options_are_those_of_a_block_but_for_what_the_host_decides() -> None:
    assert set(BLOCK_OPTIONS).isdisjoint({"self", "dim", "num_experts", "expert_dim", "cond_dim", "capacity", "norm"})
    assert {"fusion", "alpha", "bias_rate", "bias_init", "routing", "top_k", "backend", "pool"} <= set(BLOCK_OPTIONS)
    for name in ("norm", "dim", "cond_dim"):
        with pytest.raises(ValueError, match=rf"^{name}: expected an option of InterMoEBlock"):
            replaced(**{name: 1})


class Told(InterMoEBlock):
    """Writes down what it is called with."""

    def forward(self, hidden: Tensor, condition: Any = None, mask: Any = None, **options: Any) -> Any:  # type: ignore[override]
        self.told = (hidden, condition, mask, options)
        return hidden, hidden.new_zeros(())


def told(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    model, _ = replaced()
    model[0].ff.moe.__class__ = Told
    model[0](*given, **named)
    return model[0].ff.moe.told  # type: ignore[no-any-return]


def test_condition_and_mask_are_found_by_place_and_by_name() -> None:
    x, emb, valid = torch.randn(2, 5, 8), torch.randn(2, 4), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    for given, named in (
        ((x, emb, valid), {}),
        ((x, emb), {"valid": valid}),
        ((x,), {"valid": valid, "emb": emb}),
        ((), {"valid": valid, "emb": emb, "x": x}),
    ):
        hidden, condition, mask, options = told(given, named)
        assert hidden is x
        assert torch.equal(condition, emb)
        assert torch.equal(mask, valid)
        assert options == {"balance": True}
    for named in ({"valid": None}, {}):
        assert told((x, emb), named)[2] is None


def test_tokens_of_one_sample_need_no_batch() -> None:
    model, _ = replaced(condition=None)
    x = torch.randn(5, 8)
    with torch.no_grad():
        nn.init.normal_(model[0].ff.moe.w_down)
        alone, batched = model[0].ff(x), model[0].ff(x[None])
    assert alone.shape == (5, 8)
    assert torch.equal(alone, batched[0])
    assert model[0].ff.moe.training
    assert model[0].ff.moe.token_count == 0, "of forwards without gradients nothing is counted"
    for wrong in (torch.randn(8), torch.randn(1, 2, 5, 8)):
        with pytest.raises(ValueError, match=r"^0\.ff: expected tokens \(B, T, 8\), got"):
            model[0].ff(wrong)


def test_a_condition_of_any_shape_is_one_row_a_sample() -> None:
    read = Condition("emb", 6).read
    value = torch.arange(12.0)
    for shape in ((2, 6), (2, 1, 6), (2, 2, 3), (2, 6, 1)):
        assert torch.equal(read({"emb": value.view(shape)}), value.view(2, 6))  # type: ignore[arg-type]
    assert read({"emb": torch.zeros(0, 6)}).shape == (0, 6)  # type: ignore[union-attr]
    assert read({"emb": torch.tensor(3.0)}).tolist() == [[3.0]]  # type: ignore[union-attr]
    assert read({"emb": "text"}) is read({"emb": None}) is None


@pytest.mark.parametrize(
    ("init", "values", "bias"),
    [
        ("random", {}, -0.5), ("residual", {}, -0.5), ("upcycle", {}, -BIAS_MARGIN), ("upcycle_sparse", {}, -0.5),
        ("upcycle_sparse", {"bias_init": -0.125}, -0.125),
    ],
)  # fmt: skip
def test_where_selection_and_experts_start(init: str, values: dict[str, Any], bias: float) -> None:
    """Shared experts add nothing where the dense network's work goes on, and are drawn where all is new."""
    model, _ = replaced(init=init, num_shared_experts=1, expert_dim=12, **values)
    dense = Both()
    torch.manual_seed(0)
    dense = Both()
    for name in ("ff", "other"):
        network = getattr(model[0], name)
        moe, own = network.moe, getattr(dense, name)
        torch.testing.assert_close(moe.selection_bias, torch.full((3,), bias))
        assert bool(moe.shared_experts.down.weight.any()) == (init == "random")
        assert bool(moe.w_down.any()) == (init != "residual")
        assert (network.dense is not None) == (init == "residual")
        if init.startswith("upcycle"):
            scale = 1.0 if init == "upcycle" else 3.0  # experts over capacity
            for expert in range(3):
                torch.testing.assert_close(moe.w_gate_up[expert], own.gate_up.weight)
                torch.testing.assert_close(moe.w_down[expert], scale * own.down.weight)


def calibrated(logits: list[float], **options: Any) -> Tensor:
    """The biases of two experts by tokens that have ``logits`` at the first and the negative ones at the second."""
    block = InterMoEBlock(2, 2, 4, None, norm="none", backend="reference", **options)
    with torch.no_grad():
        block.motion_router.copy_(torch.eye(2))
    values = torch.tensor(logits)
    with calibrated_selection(block), torch.no_grad():
        block(torch.stack([values, -values], dim=-1)[None])
    return block.selection_bias


def test_a_calibrated_bias_lies_between_the_last_taken_and_the_first_left_out() -> None:
    def middle(last: float, left: float) -> float:
        return -(torch.tensor([last, left]).sigmoid().mean().item())

    # two of four tokens for each expert
    first, second = calibrated([0.5, 2.0, -1.0, 1.0], capacity=1.0).tolist()
    assert first == pytest.approx(middle(1.0, 0.5))
    assert second == pytest.approx(middle(-0.5, -1.0))
    # none is due: as far as the one that would be the first
    first, second = calibrated([3.0, 1.0], capacity=0.2).tolist()
    assert first == pytest.approx(middle(3.0, 3.0))
    assert second == pytest.approx(middle(-1.0, -1.0))
    # all are due: between the last and nothing
    first, _ = calibrated([3.0, 1.0], capacity=2.0).tolist()
    assert first == pytest.approx(-torch.tensor(1.0).sigmoid().item() / 2)
    for value, bias in ((50.0, -1 + BIAS_MARGIN), (-50.0, -BIAS_MARGIN)):
        assert calibrated([value] * 4)[0].item() == pytest.approx(bias)


def test_what_has_no_tokens_or_no_bias_is_not_calibrated() -> None:
    assert calibrated([], bias_init=-0.25).tolist() == [-0.25, -0.25]
    assert calibrated([1.0, 2.0], routing="token_choice", top_k=1, bias_init=-0.25).tolist() == [-0.25, -0.25]
    block = InterMoEBlock(2, 2, 4, None, norm="none", bias_init=-0.25)
    with calibrated_selection(block):
        block(torch.randn(1, 3, 2), mask=torch.zeros(1, 3, dtype=torch.bool))
    assert block.selection_bias.tolist() == [-0.25, -0.25]
    with pytest.raises(KeyboardInterrupt), calibrated_selection(block):
        raise KeyboardInterrupt
    block(torch.randn(1, 3, 2))
    assert block.selection_bias.tolist() == [-0.25, -0.25]


def test_biases_that_were_detached_stay() -> None:
    model, _ = replaced(condition=None, bias_rate=0.25)
    moe = model[0].ff.moe
    nn.init.normal_(moe.motion_router)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach_bias_update(optimizer, model)

    def step() -> list[float]:
        model[0](torch.randn(2, 5, 8), torch.zeros(2, 4)).sum().backward()
        optimizer.step()
        return moe.selection_bias.tolist()  # type: ignore[no-any-return]

    moved = step()
    assert all(abs(bias + 0.5) in (0.0, 0.25) for bias in moved)
    assert moved != [-0.5] * 3
    handle.remove()
    assert step() == moved


def test_balance_losses_are_those_of_the_blocks_and_end_with_an_error() -> None:
    model, _ = replaced(condition=None, routing="token_choice", top_k=1)
    network, x = model[0].ff, torch.randn(2, 5, 8)
    nn.init.normal_(network.moe.motion_router)
    with balance_losses(model) as losses:
        network(x)
    _, expected = network.moe(x, balance=True)
    assert [loss.item() for loss in losses] == [expected.item()]
    with pytest.raises(KeyboardInterrupt), balance_losses(model):
        raise KeyboardInterrupt
    assert network.balances is None
    assert model[0].other.balances is None


@pytest.mark.parametrize(("dtype", "training"), [(torch.float64, True), (torch.float32, False)])
def test_what_comes_back_is_of_the_hosts_type_and_mode(dtype: torch.dtype, training: bool) -> None:
    model, _ = replaced(num_experts=1, expert_dim=12, init="upcycle")
    model.to(dtype).train(training)
    moe = model[0].ff.moe
    gate_up, down = moe.w_gate_up[0].detach().clone(), moe.w_down[0].detach().clone()
    restore_feed_forward(model)
    dense = model[0].ff
    assert type(dense) is SwiGLU
    assert {parameter.dtype for parameter in dense.parameters()} == {dtype}
    assert all(module.training is training for module in dense.modules())
    assert torch.equal(dense.gate_up.weight, gate_up)
    assert torch.equal(dense.down.weight, down)
    assert dense.down.weight.requires_grad
    assert replacement_config(model) == {"version": 1, "feed_forward": {}}


def test_a_network_comes_back_without_biases() -> None:
    """One that had some: the experts have none, and what it computes is theirs."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3, self.w2 = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp: Any = Biased()

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 8)
    adapters = [BlockAdapter(Block, ("mlp",))]
    replace_feed_forward(block, num_experts=1, expert_dim=12, bias_init=-BIAS_MARGIN, adapters=adapters)
    expected = block(x)
    assert expected.abs().max() > 0
    restore_feed_forward(block)
    assert isinstance(block.mlp, Biased)
    assert not any(layer.bias.any() for layer in (block.mlp.w1, block.mlp.w2, block.mlp.w3))
    torch.testing.assert_close(block(x), expected)


def test_a_config_notes_what_is_replaced_and_nothing_where_nothing_is() -> None:
    noted: list[Any] = []

    class Diffusing(nn.Sequential):
        def register_to_config(self, **values: Any) -> None:
            noted.append(values)

    torch.manual_seed(0)
    model = Diffusing(Both())
    replace_feed_forward(model, init="residual", layers=["0.ff"], **SIZES)
    assert noted == [{"intermoe": replacement_config(model)}]
    (spec,) = noted[0]["intermoe"]["feed_forward"].values()
    assert spec == {"num_experts": 3, "expert_dim": 6, "capacity": 1.0, "condition": "emb", "residual": True}
    restore_feed_forward(model)
    assert noted[1:] == [{"intermoe": None}]

    other = nn.Sequential(Both())
    other.config = SimpleNamespace(save_pretrained=None)  # type: ignore[assignment]
    replace_feed_forward(other, init="residual", **SIZES)
    assert other.config.intermoe == replacement_config(other)
    restore_feed_forward(other)
    assert other.config.intermoe is None


def test_what_blocks_of_diffusers_can_be_routed_on() -> None:
    def block(kind: str, *, text: bool = True, twice: bool = False) -> Any:
        return SimpleNamespace(
            norm_type=kind, norm1=SimpleNamespace(linear=SimpleNamespace(in_features=10)),
            scale_shift_table=torch.zeros(6, 7), double_self_attention=twice,
            attn2=SimpleNamespace(to_k=SimpleNamespace(in_features=12)) if text else None,
        )  # fmt: skip

    conditions = DiffusersBlock("BasicTransformerBlock", ("ff",)).conditions
    inside, single = Condition("norm1.emb", 10), Condition("timestep", 42)
    text = Condition("encoder_hidden_states", 12, sequence=True, mean_over=Mask("encoder_attention_mask", "additive"))
    assert list(conditions(block("ada_norm_zero")).items()) == [("modulation", inside), ("text", text)]
    assert conditions(block("ada_norm", text=False)) == {"modulation": inside}
    assert conditions(block("ada_norm_single", twice=True)) == {"modulation": single}
    assert conditions(block("layer_norm")) == {"text": text}
    assert conditions(block("layer_norm", text=False)) == {}


def test_a_block_is_known_by_its_class_its_bases_or_its_module() -> None:
    class Derived(Both):
        pass

    for name in (Both, "Both", f"{Both.__module__}.Both", Derived, "Derived"):
        assert BlockAdapter(name, ("ff",)).matches(Derived())
    for name in (Derived, "Derived", "other.Both", "oth"):
        assert not BlockAdapter(name, ("ff",)).matches(Both())
    block = Both()
    block.absent, block.number = None, 3  # type: ignore[assignment]
    assert BlockAdapter(Both, ("other", "absent", "number", "nowhere", "ff")).slots(block) == ["other", "ff"]


def test_widths_and_products_of_dense_networks() -> None:
    def chain(*widths: int) -> nn.Sequential:
        return nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(widths)])

    assert token_width(chain(8, 12, 8)) == 8
    assert token_width(chain(8, 12, 5, 8)) == 8
    assert token_width(chain(8, 12, 6)) is None
    assert token_width(nn.Sequential(nn.GELU())) is None
    assert token_width(SwiGLU(8, 12)) == 8
    assert flops_per_token(chain(8, 12, 5)) == 2 * (8 * 12 + 12 * 5)
    assert swiglu_weights(chain(8, 12, 8)) is None
    own = SwiGLU(8, 12)
    found = swiglu_weights(own)
    assert found is not None
    assert torch.equal(found.gate, own.gate_up.weight[:12])
    assert torch.equal(found.up, own.gate_up.weight[12:])
    assert (found.down.shape, found.biases) == ((8, 12), ())


def test_systems_with_experts_say_what_they_are() -> None:
    sizes = ExpertsConfig()
    assert (sizes.num_experts, sizes.expert_dim, sizes.capacity, sizes.bias_rate) == (8, 1024, 1.0, 1e-3)
    for kind, name in ((InterGenExpertsModelConfig, "intergen"), (TIMotionExpertsModelConfig, "timotion")):
        made = kind()
        assert (made.system, made.name) == (f"{name}-experts", f"{name}-experts")
        assert isinstance(made.network, ExpertsConfig)
