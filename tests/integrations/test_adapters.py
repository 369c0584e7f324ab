"""What an adapter reads from the arguments of a host's block, by hand; and whose adapter a block gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import InterMoEBlock
from intermoe.integrations import replace_feed_forward, restore_feed_forward
from intermoe.integrations.adapters import KNOWN, BlockAdapter, Condition, Mask, find_blocks
from intermoe.integrations.feed_forward import MoEFeedForward, _is_left_alone, blocks_in
from intermoe.integrations.training import attach_bias_update

VALID = torch.tensor([[True, True, False], [True, False, False]])


def test_an_adapter_that_is_given_comes_before_the_known_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    own = BlockAdapter(nn.TransformerEncoderLayer, ("linear2",))
    assert [adapter for *_, adapter in find_blocks(layer, [own])] == [own]
    (known,) = [adapter for *_, adapter in find_blocks(layer, [])]
    assert known in KNOWN
    other = BlockAdapter("Nothing", ("linear2",))
    assert [adapter for *_, adapter in find_blocks(layer, [other])] == [known]


@pytest.mark.parametrize(("activation", "code"), [("relu", 1), ("gelu", 2), (nn.functional.silu, 0)])
def test_a_layer_of_torch_gets_all_its_pieces_back(activation: Any, code: int) -> None:
    """Also what its fused kernel asks for, which must not run in between: it reads the dense weights."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)
    pieces = {name: getattr(layer, name) for name in ("linear1", "linear2", "dropout", "activation")}
    replace_feed_forward(layer, num_experts=2, expert_dim=8, init="residual")
    assert layer.activation_relu_or_gelu == 0
    restore_feed_forward(layer)
    assert {name: getattr(layer, name) for name in pieces} == pieces
    assert layer.activation_relu_or_gelu == code


@pytest.mark.parametrize("packed", [True, False])
def test_an_encoder_of_torch_packs_padded_samples_again_or_still_does_not(packed: bool) -> None:
    """What it packs answers 0 where there is padding; packed samples never reach experts."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=packed).eval()
    x = torch.randn(2, 3, 8)
    for _ in range(2):
        with torch.no_grad():
            before = encoder(x, src_key_padding_mask=~VALID)
        assert (before[~VALID] == 0).all().item() == packed
        replace_feed_forward(encoder, num_experts=2, expert_dim=8, init="residual")
        assert not encoder.use_nested_tensor
        restore_feed_forward(encoder)
        assert encoder.use_nested_tensor == packed
        with torch.no_grad():
            torch.testing.assert_close(encoder(x, src_key_padding_mask=~VALID), before)


@pytest.mark.parametrize(
    ("true_means", "mask"),
    [
        ("valid", VALID),
        ("valid", VALID.long()),
        ("valid", VALID.float()),
        ("padding", ~VALID),
        ("padding", torch.where(VALID, 0.0, -torch.inf)),  # torch adds such ones to scores
        ("additive", torch.where(VALID, 0.0, -10000.0)),
        ("additive", torch.where(VALID, 0.0, -torch.inf)),
    ],
)
def test_a_mask_says_which_tokens_are_valid(true_means: str, mask: Tensor) -> None:
    reader = Mask("mask", true_means)
    for shaped in (mask, mask[:, None]):
        found = reader.valid({"mask": shaped}, (2, 3))
        assert found is not None
        assert torch.equal(found, VALID)
    for pattern in (mask[:, :, None], mask[:, :2], mask[None], mask[:, None, None]):
        assert reader.valid({"mask": pattern}, (2, 3)) is None, "a pattern of attention says nothing of tokens"
    assert reader.valid({}, (2, 3)) is None
    assert reader.valid({"mask": None}, (2, 3)) is None


def test_a_condition_is_the_mean_of_what_is_valid() -> None:
    values = torch.arange(12.0).view(2, 3, 2)
    arguments = {"text": values, "mask": VALID}
    plain = Condition("text", 2, sequence=True)
    masked = Condition("text", 2, sequence=True, mean_over=Mask("mask"))
    torch.testing.assert_close(plain.read(arguments), values.mean(dim=1))
    torch.testing.assert_close(masked.read(arguments), torch.stack([values[0, :2].mean(dim=0), values[1, 0]]))
    nothing = masked.read({"text": values, "mask": torch.zeros_like(VALID)})
    assert nothing is not None
    assert not nothing.any()
    torch.testing.assert_close(masked.read({"text": values}), values.mean(dim=1))
    assert Condition("text", 6).read({}) is None
    torch.testing.assert_close(Condition("text", 6).read(arguments), values.reshape(2, 6))


class Block(nn.Module):
    """A residual network of a host's, routed on ``emb``; it can be asked for its network alone."""

    def __init__(self) -> None:
        super().__init__()
        self.ff: Any = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + self.ff(x)


def replaced(**options: Any) -> tuple[Block, MoEFeedForward]:
    torch.manual_seed(0)
    block = Block()
    adapter = BlockAdapter(Block, ("ff",), {"emb": Condition("emb", 4)})
    replace_feed_forward(block, adapters=[adapter], num_experts=2, expert_dim=8, **options)
    assert isinstance(block.ff, MoEFeedForward)
    return block, block.ff


def test_arguments_of_a_call_are_those_of_no_other() -> None:
    """After a block has returned its network knows no condition: what came before would be another sample's."""
    block, network = replaced()
    x = torch.randn(2, 3, 8)
    block(x, torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="is routed on 'emb', but the host passed none to the block"):
        network(x)


def test_what_is_kept_reads_the_tokens() -> None:
    """Beside a network that stays the experts add to what it makes of the same tokens."""
    block, network = replaced(init="residual")
    x, emb = torch.randn(2, 3, 8), torch.randn(2, 4)
    with torch.no_grad():
        for moe in blocks_in(network):
            moe.w_down.normal_()
        kept = network.dense
        assert kept is not None
        both = block(x, emb) - x
        network.dense = None
        experts = block(x, emb) - x
    assert experts.abs().max() > 0.01
    torch.testing.assert_close(both, experts + kept(x))


@pytest.mark.parametrize(
    ("options", "alone"),
    [({}, True), ({"bias_rate": 0.0}, False), ({"routing": "token_choice", "top_k": 1}, False)],
)
def test_a_bias_that_should_move_and_does_not_is_told_from_one_that_never_does(
    options: dict[str, Any], alone: bool
) -> None:
    """Several processes must not train a bias that nothing moves; no other rule of routing has one."""
    torch.manual_seed(0)
    block = InterMoEBlock(8, 2, 4, None, norm="none", **options)
    assert _is_left_alone(block) is alone
    frozen = InterMoEBlock(8, 2, 4, None, norm="none", **options).requires_grad_(False)
    assert not _is_left_alone(frozen)
    model = nn.Sequential(block)
    attach_bias_update(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert not _is_left_alone(block)
