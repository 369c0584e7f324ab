"""Published names and what stands under them: files of small networks, read and run, equal to plain transcriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import official
from intermoe.systems.intergen.config import InterGenConfig
from intermoe.systems.intergen.network import InterGen
from intermoe.systems.intermask.config import InterMaskConfig, TokenizerConfig
from intermoe.systems.intermask.network import InterMask
from intermoe.systems.intermask.official import load_tokenizer
from intermoe.systems.intermask.tokenizer import MotionTokenizer, motion_to_image
from intermoe.systems.intermoe.config import DenoiserConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.systems.mdm.network import MDM, ComMDM
from intermoe.systems.timotion.config import TIMotionConfig
from intermoe.systems.timotion.network import TIMotion
from tests.systems.transcriptions import (
    PlainComMDM,
    PlainInterGenLayer,
    PlainInterMask,
    PlainMDM,
    PlainNetwork,
    PlainTIMotionLayer,
    PlainTokenizer,
    sinusoids,
)

# widths that differ from each other wherever they may
RAW = {"input_feats": 7, "text_dim": 5, "latent_dim": 12, "ff_size": 18, "num_layers": 2, "num_heads": 3}
PATTERNS = {"LPA": True, "conv_layers": 2, "dilation_rate": 2, "norm": "AdaLN"}
SINGLE = {"input_dim": 7, "text_dim": 5, "dim": 12, "layers": 3, "heads": 3, "hidden": 18}
MASKED = {"codes": 9, "code_dim": 6, "text_dim": 5, "dim": 12, "layers": 2, "heads": 3, "hidden": 18}
LENGTHS = torch.tensor([7, 4])


def drawn(plain: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """With weights of its own everywhere, and its file."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return plain.eval(), dict(plain.state_dict())


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
@pytest.mark.parametrize("system", ["intergen", "timotion", "timotion without patterns"])
def test_networks_of_raw_motion(system: str) -> None:
    kind, layer = system.split()[0], PlainInterGenLayer if system == "intergen" else PlainTIMotionLayer
    config: dict[str, Any] = {**RAW, "cfg": {**PATTERNS, "LPA": system == "timotion"}}
    plain, state = drawn(PlainNetwork(layer, config))
    tables = {"sequence_pos_encoder.pe": sinusoids(9, 12), "embed_timestep.sequence_pos_encoder.pe": sinusoids(9, 12)}
    network = official.load_network(kind, {**state, **tables}, config)
    arguments = normal(2, 2, 7, 7), torch.tensor([3, 700]), normal(2, 5), torch.arange(7) < LENGTHS[:, None]
    torch.testing.assert_close(network(*arguments), plain(*arguments), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(*arguments[:3]), plain(*arguments[:3]), rtol=1e-4, atol=1e-4)
    assert (network.training, network.config.dropout, network.config.mask_padding) == (False, 0.1, False)
    assert official.load_network(kind, state, {**config, "dropout": 0.3}).config.dropout == 0.3


@torch.no_grad()
@pytest.mark.parametrize("split", [None, 1, 2, 3])
def test_mdm_and_commdm(split: int | None) -> None:
    plain, state = drawn(PlainMDM(SINGLE) if split is None else PlainComMDM(SINGLE, split))
    network = official.load_network("mdm" if split is None else "commdm", state, {"num_heads": 3})
    arguments = normal(2, 1 if split is None else 2, 7, 7), torch.tensor([3, 700]), normal(2, 5)
    mask = torch.arange(7) < LENGTHS[:, None]
    found, expected = network(*arguments, mask), plain(*arguments, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    backbone = network.config if split is None else network.config.backbone
    assert (network.training, backbone.num_heads, backbone.mask_padding) == (False, 3, False)
    network = official.load_network("mdm" if split is None else "commdm", state, {})
    assert (network.config if split is None else network.config.backbone).num_heads == 4


@torch.no_grad()
def test_intermasks_transformer() -> None:
    plain, state = drawn(PlainInterMask(MASKED))
    frequencies = {"position_enc.positional_encoding.inv_freq": 10000.0 ** (-torch.tensor([0, 2, 4]) / 6)}
    network = official.load_network("intermask", {**state, **frequencies}, {"num_heads": 3})
    codes = torch.randint(10, (2, 2, 5, 7), generator=torch.Generator().manual_seed(0))  # the mask's id too
    mask = torch.arange(7) < LENGTHS[:, None]
    seen = mask[:, None, None].expand(2, 2, 5, 7)
    arguments = codes, normal(2, 5), mask
    torch.testing.assert_close(network(*arguments)[seen], plain(*arguments)[seen], rtol=1e-4, atol=1e-4)
    assert (network.training, network.config.dropout) == (False, 0.2)
    assert official.load_network("intermask", {**state, **frequencies}, {}).config.num_heads == 6
    assert official.load_network("intermask", {**state, **frequencies}, {"dropout": 0.3}).config.dropout == 0.3
    for wrong in (1.001, 1.01):
        other = {key: wrong * value for key, value in frequencies.items()}
        with pytest.raises(ValueError, match="expected the frequencies that the model is defined with"):
            official.load_network("intermask", {**state, **other}, {})


@torch.no_grad()
@pytest.mark.parametrize(("representation", "rows", "frame"), [("interhuman", 22, (262,)), ("interx", 56, (56, 6))])
def test_intermasks_tokeniser(representation: str, rows: int, frame: tuple[int, ...]) -> None:
    plain: Any
    plain, state = drawn(PlainTokenizer(5, 4, 6, rows))
    tokenizer = load_tokenizer(state, {"joints_num": rows})
    motion, codes = normal(2, 8, *frame), torch.randint(6, (3, 5, 2), generator=torch.Generator().manual_seed(0))
    expected = plain.features(motion_to_image(motion, representation))
    torch.testing.assert_close(tokenizer.features(motion), expected, rtol=1e-4, atol=1e-4)
    decoded = motion_to_image(tokenizer.decode(codes), representation)
    expected = plain.decoded(codes)
    if representation == "interhuman":
        expected[:, 6:, 0] = 0.0  # the root's rotation is no part of the motion
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


def millions(build: Callable[[], nn.Module]) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters()) / 1e6


def test_millions_of_weights_are_the_published_ones_where_nothing_is_said() -> None:
    for build, published in (
        (lambda: Denoiser(DenoiserConfig()), 229.15),
        (lambda: InterGen(InterGenConfig()), 171.35),
        (lambda: TIMotion(TIMotionConfig()), 66.27),
        (lambda: TIMotion(TIMotionConfig(local_patterns=False)), 53.67),
        (lambda: MDM(MDMConfig()), 17.88),
        (lambda: ComMDM(ComMDMConfig()), 17.88 + 4.74),
    ):
        assert millions(build) == pytest.approx(published, abs=0.0101), published
    for build, published in (
        (lambda: InterMask(InterMaskConfig()), 43.2),
        (lambda: MotionTokenizer(TokenizerConfig()), 43.03),
        (lambda: MotionTokenizer(TokenizerConfig()).encoder, 22.04),
        (lambda: MotionTokenizer(TokenizerConfig(representation="interx")), 45.4),
    ):
        assert millions(build) == pytest.approx(published, abs=0.06), published
