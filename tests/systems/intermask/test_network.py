"""InterMask's masked transformer, its sampling and its losses: the published arrays, and what holds of any weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from intermoe.systems.intermask import official
from intermoe.systems.intermask.config import InterMaskConfig, UnmaskingConfig
from intermoe.systems.intermask.losses import MaskDraws, MaskedCodes, mask_codes, unmasking_losses
from intermoe.systems.intermask.network import InterMask, grid_encoding
from intermoe.systems.intermask.sampling import NO_CODE, guided_logits, only_likeliest, open_shares, unmask
from intermoe.systems.intermask.tokenizer import NUM_PARTS

RelativeError = Callable[[Any, Any], float]
TOLERANCE = 1e-5


def test_logits_and_gradient_equal_the_release(unmasking: Any, relative_error: RelativeError) -> None:
    network = official.load_network(unmasking.state, unmasking.config)
    codes, mask, text = unmasking.grid("ids"), unmasking.mask(), unmasking["cond"].requires_grad_()
    logits = network(codes, text, mask).flatten(1, 3).transpose(1, 2)
    assert relative_error(logits, unmasking["logits"]) < TOLERANCE
    valid = ~unmasking["padding_mask"][:, None]
    (logits * unmasking["grad_out"] * valid).sum().backward()
    assert relative_error(text.grad, unmasking["grad_cond"]) < TOLERANCE
    with torch.no_grad():
        unconditional = network(codes, torch.zeros_like(text), mask).flatten(1, 3).transpose(1, 2)
        guided = guided_logits(network, codes, text, mask, unmasking.number("cond_scale")).flatten(1, 3)
    assert relative_error(unconditional, unmasking["logits_uncond"]) < TOLERANCE
    assert relative_error(guided.transpose(1, 2), unmasking["logits_scaled"]) < TOLERANCE
    kept = unmasking["filtered"] > -1e8
    filtered = only_likeliest(guided, int(kept[0, 0].sum()))
    assert torch.equal(filtered.isfinite(), kept)
    assert relative_error(filtered[kept], unmasking["filtered"][kept]) < TOLERANCE


@torch.no_grad()
def test_first_layer_and_places_equal_the_release(unmasking: Any, relative_error: RelativeError) -> None:
    network = official.load_network(unmasking.state, unmasking.config)
    steps = unmasking.mask().shape[1]
    mask = ~unmasking["block0/pad"][:, : NUM_PARTS * steps]
    out = network.layers[0](unmasking["block0/x"].transpose(0, 1), unmasking["block0/cond"], mask)
    assert relative_error(out.transpose(0, 1), unmasking["block0/y"]) < TOLERANCE
    places = grid_encoding(NUM_PARTS, steps, network.config.dim).flatten(0, 1)
    assert relative_error(places, unmasking["position_encoding"]) < TOLERANCE


def test_unmasking_equals_the_release_draw_for_draw(unmasking: Any, tokens: Any, relative_error: RelativeError) -> None:
    network = official.load_network(unmasking.state, unmasking.config)
    mask = unmasking.mask()
    config = UnmaskingConfig(
        num_inference_steps=int(unmasking.number("generate/steps")),
        guidance_scale=unmasking.number("generate/cond_scale"),
        keep_share=(unmasking.number("generate/topk_keep") - 0.5) / network.config.num_codes,
    )
    shape = (2, NUM_PARTS, mask.shape[1])
    uniforms = unmasking["generate/u"].unflatten(2, shape)
    codes = unmask(network, unmasking["cond"], mask, config, uniforms=uniforms)
    assert torch.equal(codes, unmasking.grid("generate/ids"))

    known = unmasking["react/ids1"].unflatten(1, shape[1:])
    uniforms = unmasking["react/u"].unflatten(2, (1, *shape[1:]))
    reaction = unmask(network, unmasking["cond"], mask, config, known=known, uniforms=uniforms)
    assert torch.equal(reaction, unmasking.grid("react/ids"))

    arrays = tokens("interhuman")
    tokenizer = official.load_tokenizer(arrays.state, arrays.config)
    with torch.no_grad():
        for person in range(2):
            motion = tokenizer.decode(codes[:, person])
            assert relative_error(motion, unmasking[f"generate/motion{person + 1}"]) < TOLERANCE


def test_masking_and_losses_equal_the_release(unmasking: Any, relative_error: RelativeError) -> None:
    network = official.load_network(unmasking.state, unmasking.config)
    codes, mask, chosen = unmasking.grid("loss/ids"), unmasking.mask(), unmasking.grid("loss/mask")
    points = torch.stack(
        [
            torch.where(chosen, 0.0, 0.5),
            torch.where(unmasking.grid("loss/replaced_random"), 0.05, 0.5),
            torch.where(unmasking.grid("loss/replaced_mask"), 0.5, 0.95),
            (unmasking.grid("loss/random_ids") + 0.5) / network.config.num_codes,
        ],
        dim=-1,
    )
    ratio = torch.acos(chosen.flatten(1).float().mean(dim=1)) * 2 / math.pi
    draws = MaskDraws(torch.stack([ratio, torch.ones(len(ratio)), torch.zeros(len(ratio))], dim=1), points)
    masked = mask_codes(network, codes, mask, draws, person_share=0.2)
    assert torch.equal(masked.inputs, unmasking.grid("loss/x_ids"))
    labels = torch.where(masked.chosen, codes, network.mask_id)
    assert torch.equal(labels, unmasking.grid("loss/labels"))
    with torch.no_grad():
        losses = unmasking_losses(network, codes, masked, unmasking["cond"], mask)
    published = {"cross_entropy": "ce", "unrolled": "step_unroll_ce", "loss": "total", "accuracy": "acc"}
    for ours, theirs in published.items():
        assert relative_error(losses[ours], unmasking[f"loss/{theirs}"]) < TOLERANCE, ours


@pytest.mark.parametrize("key", ["token_emb.weight", "Transformer.blocks.1.ffn_split.model.3.bias"])
def test_the_network_names_missing_misshapen_and_unexpected_keys(
    published_file: Callable[..., dict[str, Tensor]], key: str
) -> None:
    config = {"num_heads": 2}
    known: dict[str, Any] = {f"Transformer.blocks.{i}.ffn_combined.model.0.weight": (12, 8) for i in range(2)}
    known |= {"input_process.poseEmbedding.weight": (8, 6), "output_process.poseFinal.weight": (9, 8)}
    known |= {"cond_emb.weight": (8, 5), "position_enc.positional_encoding.inv_freq": torch.tensor([1.0, 0.01])}
    state = published_file(lambda state: official.load_network(state, config), known)
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        official.load_network({name: value for name, value in state.items() if name != key}, config)
    with pytest.raises(ValueError, match=f"'{key}': expected"):
        official.load_network({**state, key: torch.zeros(3, 1, 1)}, config)
    with pytest.raises(ValueError, match=r"unexpected keys \['extra'\]"):
        official.load_network({**state, "extra": torch.zeros(1)}, config)
    frequencies = "position_enc.positional_encoding.inv_freq"
    with pytest.raises(ValueError, match="expected the frequencies"):
        official.load_network({**state, frequencies: 2 * state[frequencies]}, config)


def tiny_network(**changes: Any) -> InterMask:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "num_codes": 9,
        "code_dim": 6,
        "text_dim": 5,
        "dim": 8,
        "num_layers": 2,
        "num_heads": 2,
    }
    network = InterMask(InterMaskConfig(**arguments, feedforward_dim=12, dropout=0.0, **changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


@torch.no_grad()
def test_persons_are_exchangeable_and_see_each_other() -> None:
    network = tiny_network()
    codes, text = torch.randint(0, 9, (2, 2, NUM_PARTS, 3)), torch.randn(2, 5)
    logits = network(codes, text)
    assert logits.shape == (2, 2, NUM_PARTS, 3, 9)
    torch.testing.assert_close(network(codes.flip(1), text), logits.flip(1))
    other = codes.clone()
    other[:, 1, 0, 0] = network.mask_id
    assert (network(other, text)[:, 0] - logits[:, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_padding_does_not_matter() -> None:
    network = tiny_network()
    codes, text = torch.randint(0, 9, (3, 2, NUM_PARTS, 4)), torch.randn(3, 5)
    mask = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]
    logits = network(codes, text, mask)
    for row, frames in enumerate((4, 1, 2)):
        alone = network(codes[row : row + 1, ..., :frames], text[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1, ..., :frames, :], alone)
    garbage = codes.masked_fill(~mask[:, None, None], NO_CODE)
    torch.testing.assert_close(network(garbage, text, mask), logits)


def test_the_network_refuses_what_does_not_fit() -> None:
    network = tiny_network()
    codes, text = torch.zeros(2, 2, NUM_PARTS, 3, dtype=torch.long), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"codes: expected shape \(B, 2, 5, L\)"):
        network(codes[:, :1], text)
    with pytest.raises(ValueError, match="text: expected shape"):
        network(codes, text[:1])
    with pytest.raises(TypeError, match=r"mask: expected dtype torch.bool"):
        network(codes, text, torch.ones(2, 3))
    with pytest.raises(ValueError, match="dim: expected a multiple of num_heads=6"):
        InterMaskConfig(dim=20)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_unmasking_opens_less_each_round_and_reconsiders_nothing() -> None:
    network, text = tiny_network(), torch.randn(2, 5)
    mask = torch.arange(4) < torch.tensor([4, 3])[:, None]
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][: len(text)].clone()))
    done: list[tuple[int, int]] = []
    config = UnmaskingConfig(num_inference_steps=6)
    codes = unmask(network, text, mask, config, generators=generators(0, 1), callback=lambda *at: done.append(at))
    assert done == [(round_ + 1, 6) for round_ in range(6)]
    assert torch.equal(codes == NO_CODE, ~mask[:, None, None].expand(codes.shape))
    assert codes.max() < 9
    points = torch.tensor([40, 30])
    for number, inputs in enumerate(seen):
        is_open = (inputs == network.mask_id) & mask[:, None, None]
        expected = (math.cos(math.pi / 2 * number / 5) * points).round().clamp(min=1)
        assert torch.equal(is_open.flatten(1).sum(dim=1).float(), expected)
        assert torch.equal(inputs[~is_open & mask[:, None, None]], codes[~is_open & mask[:, None, None]])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network, text = tiny_network(), torch.randn(3, 5)
    mask = torch.arange(4) < torch.tensor([2, 4, 3])[:, None]
    config = UnmaskingConfig(keep_share=1.0)
    together = unmask(network, text, mask, config, generators=generators(5, 6, 7))
    alone = unmask(network, text[:1], mask[:1, :2], config, generators=generators(5))
    assert torch.equal(together[:1, ..., :2], alone)
    with pytest.raises(ValueError, match="generators: expected one for each of the 3 samples"):
        unmask(network, text, mask, config, generators=generators(5))


def test_a_reaction_keeps_the_given_person() -> None:
    network, text, mask = tiny_network(), torch.randn(2, 5), torch.ones(2, 3, dtype=torch.bool)
    known = torch.randint(0, 9, (2, NUM_PARTS, 3))
    rounds: list[int] = []
    config = UnmaskingConfig(num_inference_steps=10, keep_share=1.0)
    runs = [
        unmask(
            network,
            text,
            mask,
            config,
            known=known,
            generators=generators(*seeds),
            callback=lambda *at: rounds.append(at[1]),
        )
        for seeds in ((0, 1), (2, 3))
    ]
    assert rounds == 10 * [5]
    assert all(torch.equal(codes[:, 0], known) for codes in runs)
    assert not torch.equal(runs[0][:, 1], runs[1][:, 1])


def test_of_the_likeliest_code_alone_nothing_is_drawn() -> None:
    network, text, mask = tiny_network(), torch.randn(2, 5), torch.ones(2, 3, dtype=torch.bool)
    config = UnmaskingConfig(num_inference_steps=5, keep_share=1 / 9)
    first, second = (unmask(network, text, mask, config, generators=generators(*s)) for s in ((0, 1), (2, 3)))
    assert torch.equal(first, second)


def test_half_the_codes_stay_open_after_two_thirds_of_the_rounds() -> None:
    torch.testing.assert_close(open_shares(4), torch.tensor([1.0, 3**0.5 / 2, 0.5, 0.0]))
    assert open_shares(1).tolist() == [1.0]


def mask_draws(batch: int, steps: int) -> MaskDraws:
    torch.manual_seed(1)
    return MaskDraws(torch.rand(batch, 3), torch.rand(batch, 2, NUM_PARTS, steps, 4))


def test_masking_follows_its_shares() -> None:
    network, codes = tiny_network(), torch.randint(0, 9, (400, 2, NUM_PARTS, 6))
    mask = torch.arange(6) < torch.randint(1, 7, (400, 1))
    draws = mask_draws(400, 6)
    whole = mask_codes(network, codes, torch.ones_like(mask), draws, person_share=0.0)
    counts = [max(1, round(math.cos(u * math.pi / 2) * whole.points)) for u in draws.sample[:, 0].double().tolist()]
    assert whole.chosen.flatten(1).sum(dim=1).tolist() == counts
    masked = mask_codes(network, codes, mask, draws, person_share=0.0)
    assert not (masked.chosen & ~mask[:, None, None]).any()
    assert torch.equal(masked.inputs[~masked.chosen], codes[~masked.chosen])
    hidden = (masked.inputs == network.mask_id)[masked.chosen].float().mean()
    kept = (masked.inputs == codes)[masked.chosen].float().mean()
    count = int(masked.chosen.sum())
    assert hidden == pytest.approx(0.9 * 0.88, abs=4 * 0.5 / count**0.5)
    assert kept == pytest.approx(0.9 * 0.12 + 0.1 / 9, abs=4 * 0.5 / count**0.5)
    share = masked.chosen.sum() / mask.repeat(1, 2 * NUM_PARTS).sum()
    assert share == pytest.approx(2 / math.pi, abs=0.06)  # the mean of cos(pi / 2 * u)

    persons = mask_codes(network, codes, mask, mask_draws(400, 6), person_share=1.0).chosen
    counts = persons.flatten(2).sum(dim=2)
    assert (counts.min(dim=1).values == 0).all()
    assert torch.equal(counts.max(dim=1).values, NUM_PARTS * mask.sum(dim=1))
    assert (counts[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_losses_of_a_network_that_knows_nothing_and_of_padding() -> None:
    network, codes = tiny_network(), torch.randint(0, 9, (3, 2, NUM_PARTS, 4))
    torch.nn.init.zeros_(network.out.weight)
    torch.nn.init.zeros_(network.out.bias)
    mask = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]
    masked = mask_codes(network, codes, mask, mask_draws(3, 4), person_share=0.2)
    losses = unmasking_losses(network, codes, masked, torch.randn(3, 5), mask)
    torch.testing.assert_close(losses["cross_entropy"], torch.tensor(math.log(9)))
    torch.testing.assert_close(losses["unrolled"], torch.tensor(math.log(9)))

    network = tiny_network()
    text = torch.randn(3, 5)
    before = unmasking_losses(network, codes, masked, text, mask)
    changed = torch.where(mask[:, None, None], codes, 0)
    inputs = torch.where(mask[:, None, None], masked.inputs, 3)
    after = unmasking_losses(network, changed, MaskedCodes(inputs, masked.chosen, masked.points), text, mask)
    torch.testing.assert_close(after["loss"], before["loss"])
    nothing = unmasking_losses(network, codes, MaskedCodes(codes, torch.zeros_like(masked.chosen), 40), text, mask)
    assert nothing["loss"] == 0


def test_masking_and_losses_do_not_depend_on_the_padding_of_a_batch() -> None:
    network, codes, text = tiny_network(), torch.randint(0, 9, (4, 2, NUM_PARTS, 3)), torch.randn(4, 5)
    draws = mask_draws(4, 6)
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3])[:, None]
    longer, longer_mask = torch.nn.functional.pad(codes, (0, 2)), torch.nn.functional.pad(mask, (0, 2))
    short, long = (
        mask_codes(network, *batch, draws, person_share=0.3) for batch in ((codes, mask), (longer, longer_mask))
    )
    assert torch.equal(long.inputs[..., :3], short.inputs)
    assert torch.equal(long.chosen, torch.nn.functional.pad(short.chosen, (0, 2)))
    assert short.points == long.points == 2 * NUM_PARTS * 6
    losses = [
        unmasking_losses(network, *batch, text, padded)
        for *batch, padded in ((codes, short, mask), (longer, long, longer_mask))
    ]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


@pytest.mark.parametrize("dim", [8, 6, 10])
def test_places_are_sinusoids_of_row_and_column_by_hand(dim: int) -> None:
    """Each half has whole pairs of sine and cosine: of 6 numbers 4 are the row's, and 2 of the column's 4 are left."""
    half = 4 if dim <= 8 else 6
    for row, column in ((0, 2), (3, 0), (4, 5)):
        angles = [[place / 10000 ** (2 * k / half) for k in range(half // 2)] for place in (row, column)]
        expected = [f(angle) for each in angles for angle in each for f in (math.sin, math.cos)][:dim]
        torch.testing.assert_close(grid_encoding(5, 6, dim)[row, column], torch.tensor(expected))


@pytest.mark.parametrize(("share", "kept"), [(1 / 9, 1), (0.12, 2), (0.5, 5), (1.0, 9)])
def test_codes_are_drawn_from_a_share_that_is_rounded_up(
    share: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "intermoe.systems.intermask.sampling.only_likeliest",
        lambda logits, keep: seen.append(keep) or only_likeliest(logits, keep),
    )
    config = UnmaskingConfig(num_inference_steps=2, keep_share=share)
    unmask(tiny_network(), torch.randn(1, 5), torch.ones(1, 3, dtype=torch.bool), config, generators=generators(0))
    assert seen == [kept] * 2


def test_the_second_loss_is_after_one_step_of_sampling_by_hand() -> None:
    """30 of 40 points are open: tau = acos(3/4) 2 / pi, of which cos(pi / 2 (tau + 1/21)) 40 = 28 stay so."""
    confidence = torch.linspace(1, 5, 40).view(1, 2, NUM_PARTS, 4)
    seen: list[Tensor] = []

    class Answers:
        config, mask_id = tiny_network().config, 9

        def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            seen.append(codes)
            logits = torch.zeros(*codes.shape, 9)
            logits[..., 3] = confidence  # the likeliest everywhere, the surer the later
            return logits

    codes = torch.full((1, 2, NUM_PARTS, 4), 3)
    codes[..., 0] = 5
    is_open = torch.arange(40).view(codes.shape) < 30
    chosen = torch.arange(40).view(codes.shape) < 35
    network: Any = Answers()
    masked = MaskedCodes(codes.masked_fill(is_open, 9), chosen, 40)
    losses = unmasking_losses(network, codes, masked, torch.zeros(1, 5), torch.ones(1, 4, dtype=torch.bool))
    assert int((seen[1] == 9).sum()) == 28
    opened = is_open & (seen[1] != 9)
    assert opened.flatten().nonzero().flatten().tolist() == [28, 29]  # the surest two
    assert (seen[1][opened] == 3).all()
    each = torch.logsumexp(torch.cat([confidence[..., None], torch.zeros(*codes.shape, 8)], -1), -1)
    each = each - torch.where(codes == 3, confidence, 0.0)
    torch.testing.assert_close(losses["cross_entropy"], each[chosen].mean())
    torch.testing.assert_close(losses["unrolled"], each[chosen & ~opened].mean())
    torch.testing.assert_close(losses["loss"], losses["cross_entropy"] + losses["unrolled"])
    assert losses["accuracy"] == (codes == 3)[chosen].float().mean()


def test_the_least_likely_codes_are_opened_again() -> None:
    """A code's score is its probability under all logits, whichever share it was drawn from: here the single best."""
    confidence = torch.linspace(1, 5, 40).flip(0).view(1, 2, NUM_PARTS, 4)  # the later, the less sure
    seen: list[Tensor] = []

    class Answers:
        config, mask_id = tiny_network().config, 9

        def __call__(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
            seen.append(codes.clone())  # the caller fills them in place
            logits = torch.zeros(*codes.shape, 9)
            logits[..., 3] = confidence
            return logits

    network: Any = Answers()
    config = UnmaskingConfig(num_inference_steps=3, guidance_scale=1.0, keep_share=1 / 9)
    found = unmask(network, torch.zeros(1, 5), torch.ones(1, 4, dtype=torch.bool), config, generators=generators(0))
    assert (found == 3).all()
    opened = [(codes == 9).flatten().nonzero().flatten().tolist() for codes in seen]
    assert opened == [list(range(40)), list(range(40 - 28, 40)), [39]]
