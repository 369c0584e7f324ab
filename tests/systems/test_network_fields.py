"""What each value of the configurations of MDM, ComMDM, TIMotion and InterMask's tokeniser changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.systems.intermask.config import TokenizerConfig, TokenizerLossConfig
from intermoe.systems.intermask.losses import tokenizer_losses
from intermoe.systems.intermask.tokenizer import MotionTokenizer, ResidualBlock
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.systems.mdm.network import MDM, ComMDM
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotion

SINGLE: dict[str, Any] = {
    "input_dim": 7, "text_dim": 5, "dim": 8, "num_layers": 3, "num_heads": 2, "feedforward_dim": 12, "dropout": 0.0,
}  # fmt: skip
PAIR: dict[str, Any] = {"split": 1, "num_layers": 2, "num_heads": 2, "feedforward_dim": 12}
TIMOTION: dict[str, Any] = {**SINGLE, "dim": 12, "num_layers": 2, "conv_blocks": 2, "dilation_rate": 2}
TOKENIZER: dict[str, Any] = {"num_codes": 9, "code_dim": 4, "width": 5, "dropout": 0.0}


def drawn(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def mdm(**changes: Any) -> MDM:
    return drawn(MDM(MDMConfig(**{**SINGLE, **changes})))


def commdm(backbone: dict[str, Any] | None = None, **changes: Any) -> ComMDM:
    return drawn(ComMDM(ComMDMConfig(MDMConfig(**{**SINGLE, **(backbone or {})}), **{**PAIR, **changes})))


def call(network: Any) -> Tensor:
    config, generator = network.config, torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 6, config.input_dim, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([3, 700]), torch.randn(2, config.text_dim, generator=generator))


def differ(one: nn.Module, two: nn.Module) -> bool:
    two.load_state_dict(one.state_dict())
    return not torch.allclose(call(one), call(two), atol=1e-4)


def test_sizes_of_mdm() -> None:
    model = mdm(input_dim=9, text_dim=4, dim=12, num_layers=4, feedforward_dim=20)
    assert call(model).shape == (2, 2, 6, 9)
    assert [layer.linear1.weight.shape for layer in model.layers] == [(20, 12)] * 4
    assert model.embed_text.weight.shape == (12, 4)


def test_heads_of_mdm_change_the_answer_and_no_shape() -> None:
    assert differ(mdm(num_heads=1), mdm(num_heads=2))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_of_mdm_is_in_attention_and_behind_both_parts(p: float) -> None:
    """With everything else of the layer switched off in turn, what is left still differs from call to call."""
    for layer in [*mdm(dropout=p).train().layers, *commdm({"dropout": p}).train().communication.layers]:
        hidden = torch.randn(2, 6, 8)
        assert torch.equal(layer.self_attn(hidden, hidden), layer.self_attn(hidden, hidden)) is (p == 0.0)
        layer.self_attn.eval()
        assert torch.equal(layer(hidden), layer(hidden)) is (p == 0.0)
        masks: list[Tensor] = []
        layer.dropout.register_forward_hook(lambda _, given, made, masks=masks: masks.append(made == 0))
        layer(hidden)
        assert len(masks) == 3  # behind attention, within the feed-forward network and behind it
        assert [bool((mask.float().mean() > 0.1) == (p > 0.0)) for mask in masks] == [True] * 3


def test_sizes_of_the_block_that_joins_two() -> None:
    model = commdm({"dim": 12}, num_layers=3, feedforward_dim=20)
    assert [layer.linear1.weight.shape for layer in model.communication.layers] == [(20, 12)] * 3
    assert model.backbone.config == MDMConfig(**{**SINGLE, "dim": 12})
    assert call(model).shape == (2, 2, 6, 7)


def test_heads_of_the_block_that_joins_two_change_the_answer_and_no_shape() -> None:
    assert differ(commdm(num_heads=1), commdm(num_heads=4))


def test_the_split_is_after_how_many_layers_persons_hear_of_each_other() -> None:
    for split in range(4):
        model, done = commdm(split=split), []
        for number, layer in enumerate(model.backbone.layers):
            layer.register_forward_hook(lambda *_, number=number, done=done: done.append(number))
        model.communication.register_forward_hook(lambda *_, done=done: done.append("exchange"))
        call(model)
        assert done == [*range(split), "exchange", *range(split, 3)]
    assert differ(commdm(split=1), commdm(split=2))


def timotion(**changes: Any) -> TIMotion:
    return drawn(TIMotion(TIMotionConfig(**{**TIMOTION, **changes})))


def test_local_patterns_are_of_so_many_convolutions_that_reach_so_far() -> None:
    def reach(model: TIMotion) -> list[int]:
        hidden, condition = torch.randn(1, 2, 25, 12, generator=torch.Generator().manual_seed(2)), torch.randn(1, 12)
        other = hidden.clone()
        other[:, 0, 12, ::2] += 1  # normalisation takes out what all columns share
        patterns = model.layers[1].local_patterns
        with torch.no_grad():
            changed = (patterns(other, condition) - patterns(hidden, condition)).abs().amax(dim=-1)[0, 0] > 1e-6
        return (changed.nonzero().flatten() - 12).tolist()

    assert reach(timotion(conv_blocks=1, dilation_rate=3)) == [-1, 0, 1]
    assert reach(timotion(conv_blocks=2, dilation_rate=1)) == [-2, -1, 0, 1, 2]
    assert reach(timotion(conv_blocks=2, dilation_rate=3)) == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert len(reach(timotion(conv_blocks=3, dilation_rate=2))) == 2 * (1 + 2 + 4) + 1
    without = timotion(local_patterns=False)
    assert all(layer.local_patterns is None and layer.join is None for layer in without.layers)
    assert not torch.allclose(call(without), call(timotion()), atol=1e-4)


def tokenizer(**changes: Any) -> MotionTokenizer:
    made = drawn(MotionTokenizer(TokenizerConfig(**{**TOKENIZER, **changes})))
    made.codebook.vectors.copy_(torch.randn(made.codebook.vectors.shape, generator=torch.Generator().manual_seed(3)))
    return made


def blocks(part: nn.Module) -> list[ResidualBlock]:
    return [module for module in part.modules() if isinstance(module, ResidualBlock)]


def test_sizes_of_the_tokenizer() -> None:
    made = tokenizer(num_codes=11, code_dim=3, width=6, num_blocks=3, dilation_growth=2)
    assert made.codebook.vectors.shape == (11, 3)
    with torch.no_grad():
        features = made.features(torch.randn(2, 8, 262, generator=torch.Generator().manual_seed(1)))
    assert features.shape == (2, 3, 5, 2)
    for part in (made.encoder, made.decoder):  # at two resolutions
        assert [block.conv1.dilation for block in blocks(part)] == [(4, 4), (2, 2), (1, 1)] * 2
        assert {block.conv1.weight.shape[:2] for block in blocks(part)} == {(6, 6)}
    assert [block.conv1.dilation for block in blocks(tokenizer().encoder)] == [(3, 3), (1, 1)] * 2


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_of_the_tokenizer_is_of_training_in_every_residual_block(p: float) -> None:
    made = tokenizer(dropout=p).train()
    x = torch.randn(1, 5, 6, 8)
    for block in (*blocks(made.encoder), *blocks(made.decoder)):
        assert torch.equal(block(x), block(x)) is (p == 0.0)
        block.eval()
        assert torch.equal(block(x), block(x))


def test_the_temperature_is_that_of_the_drawn_codes() -> None:
    """Of noise near 0 the coldest draw is the nearest code; the hotter, the more others there are."""
    generator = torch.Generator().manual_seed(4)
    motion, uniforms = torch.randn(4, 16, 262, generator=generator), torch.rand(4, 5, 4, 9, generator=generator)
    with torch.no_grad():
        nearest = tokenizer().encode(motion)
        others = [
            (tokenizer(temperature=temperature)(motion, uniforms).codes != nearest).float().mean().item()
            for temperature in (1e-4, 3.0, 1e4)
        ]
    assert others[0] == 0.0
    assert others[0] < others[1] < others[2]


def test_the_decay_is_that_of_the_codebooks_averages() -> None:
    points, codes = torch.full((18, 4), 3.0), torch.arange(18) % 9
    for decay in (0.0, 0.75):
        codebook = tokenizer(codebook_decay=decay).codebook
        codebook.initialise(torch.ones(9, 4))
        codebook.update(points, codes)  # two points of 3 for every code
        torch.testing.assert_close(codebook.counts, torch.full((9,), decay + (1 - decay) * 2))
        torch.testing.assert_close(codebook.sums, torch.full((9, 4), decay + (1 - decay) * 6))


def test_a_weight_of_the_tokenizers_loss_is_of_its_term_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    found, expected = (torch.randn(2, 5, 262, generator=generator, dtype=torch.float64) for _ in range(2))
    mean, std = torch.zeros(262).double(), torch.full((262,), 0.02).double()

    def terms(**changes: float) -> dict[str, Tensor]:
        return tokenizer_losses(found, expected, mean, std, TokenizerLossConfig(**changes))

    plain = terms()
    for name in ("reconstruction", "position", "velocity", "bone", "rotation", "contact"):
        assert plain[name] > 0
        default = getattr(TokenizerLossConfig(), name)
        for weight in (0.0, 7.0):
            torch.testing.assert_close(
                terms(**{name: weight})["loss"] - plain["loss"], (weight - default) * plain[name]
            )
    assert TokenizerLossConfig().to_dict() == {
        "reconstruction": 1.0, "position": 1.0, "velocity": 100.0, "bone": 5.0, "rotation": 0.01, "contact": 500.0,
        "commitment": 0.02,
    }  # fmt: skip
