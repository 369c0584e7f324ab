"""TIMotion: two persons as one sequence, its convolutions and their padding, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import official
from intermoe.integrations import replace_feed_forward
from intermoe.nn.moe import InterMoEBlock
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotion, merge, rows_of

Golden = Callable[[str], Any]
MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
ARCHIVES = ("timotion_denoiser", "timotion_denoiser_nolpa")


def tiny(**changes: Any) -> TIMotion:
    torch.manual_seed(0)
    sizes = {"input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24}
    model = TIMotion(
        TIMotionConfig(**{**sizes, "dropout": 0.0, "conv_blocks": 2, "dilation_rate": 2, **changes})
    ).eval()
    for parameter in model.parameters():
        if not parameter.any():  # what starts at zero would hide the rest
            nn.init.normal_(parameter, std=0.2)
    return model


def call() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 2, 7, 6, generator=generator), torch.randn(2, 5, generator=generator)
    return x, torch.tensor([3, 700]), text


@pytest.mark.parametrize("local_patterns", [True, False])
def test_persons_can_be_exchanged(local_patterns: bool) -> None:
    model, (x, t, text) = tiny(local_patterns=local_patterns), call()
    torch.testing.assert_close(model(x.flip(1), t, text), model(x, t, text).flip(1))


@pytest.mark.parametrize("local_patterns", [True, False])
def test_padding_does_not_reach_valid_frames(local_patterns: bool) -> None:
    model, (x, t, text) = tiny(local_patterns=local_patterns), call()
    y = model(x, t, text, MASK).transpose(1, 2)
    for value in (50.0, math.inf, math.nan):
        changed = x.masked_fill(~MASK[:, None, :, None], value)
        assert torch.equal(model(changed, t, text, MASK).transpose(1, 2)[MASK], y[MASK])
    torch.testing.assert_close(model(x[1:, :, :4], t[1:], text[1:])[0], y[1, :4].transpose(0, 1))


def test_published_convolutions_feel_how_much_padding_there_is() -> None:
    model, (x, t, text) = tiny(mask_padding=False), call()
    y = model(x, t, text, MASK)
    alone = model(x[1:, :, :4], t[1:], text[1:])
    assert (alone - y[1:, :, :4]).abs().max() > 1e-3
    own = tiny()
    own.load_state_dict(model.state_dict())
    torch.testing.assert_close(own(x[1:, :, :4], t[1:], text[1:]), alone)  # without padding they agree


def test_merging_adds_two_copies() -> None:
    hidden = torch.randn(2, 2, 3, 4)
    rows = rows_of(hidden)
    assert torch.equal(rows[0, 0, 1], torch.cat([hidden[0, 0, 1], hidden[0, 1, 1]]))
    assert torch.equal(rows[0, 1, 1], torch.cat([hidden[0, 1, 1], hidden[0, 0, 1]]))
    torch.testing.assert_close(merge(rows), 2 * hidden)


def test_frames_of_both_persons_see_each_other_and_local_patterns_only_neighbours() -> None:
    model, (x, t, text) = tiny(), call()
    changed = x.clone()
    changed[:, 1, 6] += 1
    assert (model(changed, t, text) - model(x, t, text))[:, 0, 0].abs().max() > 1e-4
    patterns = model.layers[1].local_patterns  # dilations 1 and 2: three frames away at most
    hidden, condition = torch.randn(1, 2, 9, 16), torch.randn(1, 16)
    other = hidden.clone()
    other[:, 0, 4] = torch.randn(16)
    changes = (patterns(other, condition) - patterns(hidden, condition)).abs().amax(dim=-1)[0] > 1e-6
    assert not changes[1].any()
    assert changes[0].nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_dropout_grows_with_the_layer_and_the_first_norm_is_missing_in_the_first() -> None:
    model = tiny(num_layers=4, dropout=0.1)
    assert [layer.attention.dropout for layer in model.layers] == pytest.approx([0.0, 0.025, 0.05, 0.075])
    assert [layer.feed_forward.network[2].p for layer in model.layers] == pytest.approx([0.0, 0.025, 0.05, 0.075])
    first = [[block.norm1 is None for block in layer.local_patterns.blocks] for layer in model.layers]
    assert [block.conv1.dilation for block in model.layers[1].local_patterns.blocks] == [(1,), (2,)]
    assert first == [[True, True], [False, False], [False, False], [False, False]]


def test_a_fresh_network_answers_zero() -> None:
    config = TIMotionConfig(input_dim=6, text_dim=5, dim=16, num_layers=1, num_heads=2, feedforward_dim=8)
    assert (TIMotion(config)(*call()) == 0).all()


def test_experts_take_the_place_of_its_feed_forward_networks() -> None:
    model, (x, t, text) = tiny(), call()
    replace_feed_forward(model, num_experts=3, expert_dim=8)
    model.train()(x, t, text, MASK).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, InterMoEBlock)]
    assert [(block.dim, int(block.token_count)) for block in blocks] == [(32, 22), (32, 22)]  # two rows a frame
    model.eval()
    cut = model(x[1:, :, :4], t[1:], text[1:])
    torch.testing.assert_close(model(x, t, text, MASK)[1:, :, :4], cut)


def test_only_two_persons() -> None:
    x, t, text = call()
    with pytest.raises(ValueError, match="x: expected two persons, whose frames make one row, got 3"):
        tiny()(torch.cat([x, x[:, :1]], dim=1), t, text)


def test_configuration() -> None:
    config = TIMotionConfig(local_patterns=False)
    assert TIMotionConfig.from_dict(config.to_dict()) == config
    assert TIMotionConfig(dim=6, num_heads=4).attention_width == 12
    with pytest.raises(ValueError, match="dilation_rate: expected >= 1, got 0"):
        TIMotionConfig(dilation_rate=0)


def read(
    published_file: Callable[..., dict[str, Tensor]], local_patterns: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file as the published network's, and its configuration."""
    config = {"input_feats": 10, "latent_dim": 8, "ff_size": 12, "num_layers": 2, "num_heads": 2}
    config = {**config, "cfg": {"LPA": local_patterns, "conv_layers": 2, "dilation_rate": 1}}
    load = lambda state: official.load_network("timotion", state, config)  # noqa: E731
    return published_file(load, {"text_embed.weight": (8, 5)}), config


@pytest.mark.parametrize("local_patterns", [True, False])
def test_reader_is_strict(published_file: Callable[..., dict[str, Tensor]], local_patterns: bool) -> None:
    state, config = read(published_file, local_patterns)
    assert official.load_network("timotion", state, config).config.mask_padding is False
    for key in state:
        with pytest.raises(ValueError, match=f"missing key '{key}'"):
            official.load_network("timotion", {k: v for k, v in state.items() if k != key}, config)
    other = {**config, "cfg": {**config["cfg"], "LPA": not config["cfg"]["LPA"]}}
    with pytest.raises(ValueError, match=r"missing key 'blocks\.0\.linear|unexpected keys .*blocks\.0\.conv"):
        official.load_network("timotion", state, other)
    with pytest.raises(ValueError, match="config: norm: expected 'AdaLN', got 'LN'"):
        official.load_network("timotion", state, {**config, "cfg": {**config["cfg"], "norm": "LN"}})


@pytest.mark.parametrize("local_patterns", [True, False])
def test_every_weight_is_copied(published_file: Callable[..., dict[str, Tensor]], local_patterns: bool) -> None:
    """No parameter keeps its initial value: a number everywhere in the file is it everywhere in the model."""
    state, config = read(published_file, local_patterns)
    model = official.load_network("timotion", {k: torch.full_like(v, 7.25) for k, v in state.items()}, config)
    assert [name for name, parameter in model.named_parameters() if not (parameter == 7.25).all()] == []
