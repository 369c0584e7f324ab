"""InterMask without its published arrays: what is kept while codes are drawn, and how far convolutions look."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.systems.intermask.codebook import Codebook, gumbel
from intermoe.systems.intermask.config import TokenizerConfig, TokenizerLossConfig, UnmaskingConfig
from intermoe.systems.intermask.losses import (
    MaskDraws,
    MaskedCodes,
    commitment,
    mask_codes,
    tokenizer_losses,
    unmasking_losses,
)
from intermoe.systems.intermask.network import Modulation, modulated
from intermoe.systems.intermask.official import _parts
from intermoe.systems.intermask.sampling import guided_logits, open_shares, unmask
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


def test_each_draw_decides_one_thing_and_at_its_share() -> None:
    """A tenth becomes random, 88 % of the rest the mask; whose turn it is, and from how many codes, too."""
    network: Any = SimpleNamespace(config=SimpleNamespace(num_codes=50), mask_id=50)
    codes = torch.arange(40).view(1, 2, 5, 4)
    points = torch.empty(1, 2, 5, 4, 4)
    points[..., 0] = torch.linspace(0, 1, 40).flip(0).view(codes.shape)  # the later come first
    points[..., 1] = torch.tensor([0.0999, 0.1001, 0.1001, 0.9])
    points[..., 2] = torch.tensor([0.0, 0.8799, 0.8801, 0.0])
    points[..., 3] = 0.5
    points[0, 1, :, 0, 3] = torch.tensor([0.0, 0.019, 0.021, 0.979, 0.981])
    mask = torch.tensor([[True, True, True, False]])

    def masked(ratio: float, whole: float, which: float, share: float = 0.2) -> MaskedCodes:
        return mask_codes(network, codes, mask, MaskDraws(torch.tensor([[ratio, whole, which]]), points), share)

    second = masked(0.5, 0.1999, 0.5)  # the whole second person
    assert second.points == 40
    assert torch.equal(second.chosen[0, 0], torch.zeros(5, 4, dtype=torch.bool))
    assert torch.equal(second.chosen[0, 1], mask.expand(5, 4))
    assert torch.equal(second.inputs[0, 0], codes[0, 0])
    assert second.inputs[0, 1, :, 0].tolist() == [0, 0, 1, 48, 49]
    assert second.inputs[0, 1, :, 1].tolist() == [50] * 5
    assert torch.equal(second.inputs[0, 1, :, 2:], codes[0, 1, :, 2:])
    first = masked(0.5, 0.1999, 0.4999)
    assert first.chosen[0, :, 0].any(dim=1).tolist() == [True, False]
    scattered = masked(0.5, 0.2, 0.5)  # not below the share: cos(pi / 4) of 40 points, rounded to 28
    assert torch.equal(scattered.chosen.flatten(), (torch.arange(40) >= 12) & mask.repeat(1, 10).flatten())
    assert int(masked(0.9999, 0.2, 0.5, share=0.0).chosen.sum()) == 0  # one at least, but it lies in padding
    points[0, 0, 0, 0, 0] = -1.0
    assert masked(0.9999, 0.2, 0.5).chosen.flatten().nonzero().tolist() == [[0]]


def test_only_points_that_were_open_are_opened_again() -> None:
    """Accuracy is of the chosen points; where few are open, one stays so at least."""

    class Answers:
        config, mask_id = SimpleNamespace(num_codes=MASKED), MASKED

        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            self.seen.append(codes)
            logits = torch.zeros(*codes.shape, MASKED)
            logits[..., 3] = torch.linspace(1, 2, 40).view(1, 2, 5, 4)
            return logits.bfloat16()

    codes = torch.full((2, 2, 5, 4), 3)
    codes[0, 1] = 4
    chosen, inputs = torch.zeros_like(codes, dtype=torch.bool), codes.clone()
    chosen[0, :, :, 0] = True  # ten points, and one beside them is open; of the second sample none
    inputs[0, 1, 0, 1] = MASKED
    network: Any = Answers()
    masked, mask = MaskedCodes(inputs, chosen, 40), torch.ones(2, 4, dtype=torch.bool)
    losses = unmasking_losses(network, codes, masked, torch.zeros(2, 3), mask)
    assert torch.equal(network.seen[1], inputs)
    assert losses["accuracy"] == 0.5
    assert losses["loss"].dtype == torch.float32


def test_commitment_is_a_mean_and_moves_the_features_alone() -> None:
    features, vectors = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 5, 4, requires_grad=True)
    value = commitment(features, vectors)
    torch.testing.assert_close(value, ((features - vectors) ** 2).sum() / 120)
    value.backward()
    torch.testing.assert_close(features.grad, 2 * (features - vectors).detach() / 120)
    assert vectors.grad is None


def test_rotations_of_inter_x_are_those_of_its_55_joints() -> None:
    """Row 55 is where somebody is and goes; a quarter turn of one joint is a 55th of a quarter turn."""
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).expand(1, 3, 56, 6).clone()
    turned = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
    for joint, expected in ((0, math.pi / 2 / 55), (54, math.pi / 2 / 55), (55, 0.0)):
        found = target.clone()
        found[:, :, joint] = turned
        terms = tokenizer_losses(found, target, torch.zeros(1), torch.ones(1), TokenizerLossConfig(), "interx")
        assert terms.keys() == {"loss", "rotation", "reconstruction"}
        # equal rotations are 4.5e-4 apart: the angle whose cosine is 1 - 1e-7
        assert float(terms["rotation"]) == pytest.approx(expected, abs=6e-4)
        assert float(terms["reconstruction"]) == pytest.approx(4 * 0.5 / 336)
        torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 0.01 * terms["rotation"])
    with pytest.raises(ValueError, match="T >= 2, got"):
        tokenizer_losses(target[:, :1], target[:, :1], torch.zeros(1), torch.ones(1), TokenizerLossConfig(), "interx")


def test_two_processes_count_together_and_take_spare_points_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the other process had seen the same points and codes."""
    codebook, alone = Codebook(3, 2, decay=0.5), Codebook(3, 2, decay=0.5)
    start, points = (
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]),
        torch.tensor([[3.0, 1.0], [5.0, 2.0], [7.0, 0.0]]),
    )
    codes, spare = torch.tensor([0, 0, 1]), torch.full((3, 2), 9.0)
    for each in (codebook, alone):
        each.initialise(start)
    alone.update(points.repeat(2, 1), codes.repeat(2))
    sources = []

    def broadcast(tensor: Tensor, src: int) -> None:
        sources.append(src)
        tensor.copy_(spare)

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr("torch.distributed.broadcast", broadcast)
    codebook.update(points, codes)
    assert torch.equal(codebook.counts, alone.counts)
    assert torch.equal(codebook.sums, alone.sums)
    assert codebook.counts.tolist() == [2.5, 1.5, 0.5]
    assert torch.equal(codebook.vectors[:2], alone.vectors[:2])
    assert codebook.vectors[2].tolist() == [9.0, 9.0]
    codebook.initialise(points)
    assert torch.equal(codebook.vectors, spare)
    assert sources == [0, 0]


def test_codes_and_noise_at_their_ends() -> None:
    codebook = Codebook(3, 2, decay=0.5)
    codebook.vectors.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert codebook.lookup(torch.tensor([0, 2, -1])).tolist() == [[1.0, 2.0], [5.0, 6.0], [0.0, 0.0]]
    torch.testing.assert_close(codebook.distances(torch.tensor([1.0, 4.0])), torch.tensor([4.0, 4.0, 20.0]))
    uniforms = torch.tensor([0.0, 1e-6, 0.5, 1.0 - 2**-24, 1.0])
    found = gumbel(uniforms)
    assert found.isfinite().all()
    torch.testing.assert_close(found[1:4], -(-uniforms[1:4].double().log()).log().float(), rtol=1e-4, atol=0)
    assert (found.diff() > 0).all()


def test_the_modulated_norm_divides_by_the_deviation_and_next_to_nothing() -> None:
    """1e-6 beside a variance of 4e-6: the norm is 2 / sqrt(5) of the standard one."""
    hidden = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]) * 2e-3
    found = modulated(hidden, torch.full((1, 1, 4), 0.25), torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4))
    expected = 2 / 5**0.5 * torch.tensor([1.0, -2.0, 3.0, -4.0]) + 0.25
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=0)


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    """Of the guided logits, among the likeliest three of four; one round draws every code of the second person."""
    logits = torch.tensor([0.0, 1.0, -3.0, 2.0])

    class Answers:
        config, mask_id = SimpleNamespace(num_parts=5, num_codes=4), 4

        def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            given = text[:, 0][:, None, None, None, None]  # 1 with text, 0 without
            return (logits / 2 * given).expand(*codes.shape, 4)

    network: Any = Answers()
    config = UnmaskingConfig(num_inference_steps=2, guidance_scale=2.0, keep_share=0.75)
    known = torch.zeros(1, 5, 2000, dtype=torch.long)
    codes = unmask(
        network, torch.ones(1, 3), torch.ones(1, 2000, dtype=torch.bool), config,
        known=known, generators=[torch.Generator().manual_seed(0)],
    )  # fmt: skip
    assert torch.equal(codes[:, 0], known)
    found = torch.bincount(codes[0, 1].flatten(), minlength=4) / 10_000
    expected = torch.softmax(logits.masked_fill(logits < -2, -math.inf), dim=0)
    torch.testing.assert_close(found, expected, atol=4 * 0.5 / 100, rtol=0)
    assert found[2] == 0


def test_modulations_start_at_nothing_and_averages_are_single() -> None:
    """So that a fresh layer passes on what it gets; and points of a half type move averages that are none."""
    made = Modulation(4, 3)(torch.randn(2, 4))
    assert [(tuple(each.shape), bool(each.any())) for each in made] == [((2, 1, 4), False)] * 3
    points, codes = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.arange(5) % 2
    half, single = Codebook(3, 2, decay=0.9), Codebook(3, 2, decay=0.9)
    for codebook, given in ((half, points), (single, points.float())):
        codebook.initialise(given)
        codebook.update(given, codes)
    for name, buffer in half.named_buffers():
        assert torch.equal(buffer, single.get_buffer(name)), name
        assert buffer.dtype == (torch.bool if name == "initialised" else torch.float32)


def test_guidance_goes_beyond_the_text_from_without_it() -> None:
    """u + s (c - u), of one doubled batch; at a scale of 1 nobody is asked without text."""
    asked: list[tuple[int, list[bool]]] = []

    def network(codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        asked.append((len(codes), text.any(dim=1).tolist()))
        assert len(codes) == len(text) == len(mask)
        return (codes[..., None] + 10 * text[:, 0][:, None, None, None, None]) * torch.tensor([1.0, 2.0])

    given: Any = network
    codes, text, mask = torch.arange(40).view(2, 2, 5, 2), torch.tensor([[1.0], [2.0]]), torch.ones(2, 2) > 0
    u = codes[..., None] * torch.tensor([1.0, 2.0])
    c = network(codes, text, mask)
    for scale in (1.0, 1.25, 3.0):
        torch.testing.assert_close(guided_logits(given, codes, text, mask, scale), u + scale * (c - u))
    assert asked[1:] == [(2, [True, True]), (4, [True, True, False, False]), (4, [True, True, False, False])]


def test_the_two_networks_have_one_of_two_names_each(tmp_path: Path) -> None:
    first, second = {"a": torch.tensor([1.0])}, {"b": torch.tensor([2.0])}
    for names in (("vq_model", "t2m_transformer"), ("net", "trans")):
        torch.save({names[0]: first, "ep": 3}, tmp_path / "vq.tar")
        torch.save({names[1]: second, "opt": {"lr": 1.0}}, tmp_path / "trans.tar")
        found = _parts(tmp_path / "trans.tar", tmp_path / "vq.tar")
        assert found == {"tokenizer": first, "network": second}
        assert list(_parts(tmp_path / "vq.tar")) == ["tokenizer"]
