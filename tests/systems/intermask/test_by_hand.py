"""InterMask without its published arrays: what is kept while codes are drawn, and how far convolutions look."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.systems.intermask.config import TokenizerConfig, UnmaskingConfig
from intermoe.systems.intermask.sampling import open_shares, unmask
from intermoe.systems.intermask.tokenizer import MotionTokenizer

MASKED = 16


class Changing:
    """A network that finds other codes likely in every round; it writes down the codes that it sees."""

    config, mask_id = SimpleNamespace(num_parts=5, num_codes=MASKED), MASKED

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(codes.clone())
        return 3 * torch.randn(*codes.shape, MASKED, generator=self.generator)


@pytest.mark.parametrize("given", [False, True])
def test_a_code_that_was_kept_is_never_drawn_again(given: bool) -> None:
    network, rounds = Changing(), 12
    network_as_any: Any = network
    known = torch.arange(20).view(1, 5, 4) % MASKED if given else None
    config = UnmaskingConfig(num_inference_steps=rounds, guidance_scale=1.0, keep_share=1.0)
    codes = unmask(
        network_as_any, torch.zeros(1, 3), torch.ones(1, 4, dtype=torch.bool), config,
        known=known, generators=[torch.Generator().manual_seed(1)],
    )  # fmt: skip
    rounds, points = (rounds // 2, 20) if given else (rounds, 40)
    assert len(network.seen) == rounds
    masked = [(seen == MASKED) for seen in network.seen]
    wanted = (open_shares(rounds) * points).round().clamp(min=1).int().tolist()
    assert [int(each.sum()) for each in masked] == wanted
    for earlier, later in itertools.pairwise(masked):
        assert not (later & ~earlier).any()
    for where, seen in zip(masked, network.seen, strict=True):
        assert torch.equal(codes[~where], seen[~where])
    if known is not None:
        assert torch.equal(codes[:, 0], known)


def test_dilations_fall() -> None:
    """By the growth from block to block, in encoder and decoder: the first looks farthest."""
    config = TokenizerConfig(num_codes=4, code_dim=4, width=4, num_blocks=3, dilation_growth=2)
    found = [
        module.dilation[0]
        for module in MotionTokenizer(config).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels == module.out_channels
    ]
    residual = [dilation for dilation in found if dilation > 1]
    assert residual == [4, 2] * 4
    assert TokenizerConfig().dilation_growth == 3
