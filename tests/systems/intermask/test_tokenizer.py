"""InterMask's tokeniser: the published arrays, and what holds whatever the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from intermoe.motion.skeleton import PARENTS
from intermoe.systems.intermask import official
from intermoe.systems.intermask.codebook import Codebook
from intermoe.systems.intermask.config import TokenizerConfig, TokenizerLossConfig
from intermoe.systems.intermask.losses import commitment, tokenizer_losses
from intermoe.systems.intermask.sampling import NO_CODE
from intermoe.systems.intermask.tokenizer import (
    NUM_PARTS,
    Enlarge,
    MotionTokenizer,
    SkeletonConv,
    image_to_motion,
    motion_to_image,
)

Golden = Callable[[str], Any]
RelativeError = Callable[[Any, Any], float]
TOLERANCE = 1e-5
FRAMES = {"interhuman": (262,), "interx": (56, 6)}


@torch.no_grad()
@pytest.mark.parametrize("representation", list(FRAMES))
def test_tokens_and_motion_equal_the_release(representation: str, tokens: Any, relative_error: RelativeError) -> None:
    tokens = tokens(representation)
    tokenizer = official.load_tokenizer(tokens.state, tokens.config)
    motion, codes = tokens["motion"], tokens.codes("code_idx")
    features = tokenizer.features(motion)
    assert relative_error(features, tokens["encoded"]) < TOLERANCE
    assert torch.equal(tokenizer.encode(motion), codes)
    assert relative_error(tokenizer(motion).motion, tokens["decoded"]) < TOLERANCE
    assert relative_error(tokenizer.decode(codes), tokens["decoded"]) < TOLERANCE
    assert relative_error(tokenizer.decode(tokens.codes("ids_padded")), tokens["decoded_padded"]) < TOLERANCE
    assert torch.equal(tokenizer.codebook.sums / tokenizer.codebook.counts[:, None], tokenizer.codebook.vectors)
    assert tokenizer.codebook.initialised
    vectors = tokenizer.codebook.lookup(codes).permute(0, 3, 1, 2)
    assert relative_error(vectors.flatten(2)[None], tokens["quantised"]) < TOLERANCE
    assert relative_error(commitment(features, vectors), tokens["loss_commit"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("representation", list(FRAMES))
def test_a_motion_alone_equals_the_release(representation: str, tokens: Any, relative_error: RelativeError) -> None:
    """In the release's graph its first frame then hears its neighbours; ``first_frame`` has it so in every batch."""
    tokens = tokens(representation)
    for messages in ("first_frame_of_batch", "first_frame"):
        tokenizer = official.load_tokenizer(tokens.state, {**tokens.config, "messages": messages})
        alone = tokenizer.features(tokens["motion"][1:2])
        assert relative_error(alone, tokens["encoded_item1_alone"]) < TOLERANCE
    assert relative_error(tokenizer.features(tokens["motion"])[1:2], tokens["encoded_item1_alone"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(("messages", "suffix"), [("none", "_no_messages"), ("every_frame", "_graph_on_all_frames")])
def test_other_graphs_equal_the_release_with_them(
    tokens: Any, relative_error: RelativeError, messages: str, suffix: str
) -> None:
    arrays = tokens("interhuman")
    tokenizer = official.load_tokenizer(arrays.state, {**arrays.config, "messages": messages})
    assert relative_error(tokenizer.features(arrays["motion"]), arrays[f"encoded{suffix}"]) < TOLERANCE
    assert relative_error(tokenizer.decode(arrays.codes("code_idx")), arrays[f"decoded{suffix}"]) < TOLERANCE


@pytest.mark.parametrize("representation", list(FRAMES))
def test_codebook_update_equals_the_release(representation: str, tokens: Any, relative_error: RelativeError) -> None:
    tokens = tokens(representation)
    names = {"vectors": "codebook", "sums": "sum", "counts": "count"}
    codebook = Codebook(*tokens["ema/codebook_before"].shape, decay=tokens.config["args"]["mu"])
    for ours, theirs in names.items():
        codebook.get_buffer(ours).copy_(tokens[f"ema/{theirs}_before"])
    codebook.initialised.fill_(True)
    codebook.update(tokens["ema/x"], tokens["ema/code_idx"])
    for ours, theirs in names.items():
        assert relative_error(codebook.get_buffer(ours), tokens[f"ema/{theirs}_after"]) < TOLERANCE, ours


def test_tokenizer_losses_equal_the_release(golden: Golden, tokens: Any, relative_error: RelativeError) -> None:
    arrays = tokens("interhuman")
    mean, std = (torch.from_numpy(golden(f"stats/global_{name}.npy")).float() for name in ("mean", "std"))
    terms = tokenizer_losses(arrays["loss/pred"], arrays["loss/target"], mean, std, TokenizerLossConfig())
    published = {
        "reconstruction": "rec",
        "position": "explicit",
        "velocity": "vel",
        "bone": "bn",
        "rotation": "geo",
        "contact": "fc",
        "loss": "total_without_commit",
    }
    assert terms.keys() == published.keys()
    for ours, theirs in published.items():
        assert relative_error(terms[ours], arrays[f"loss/{theirs}"]) < TOLERANCE, ours


@pytest.mark.parametrize("key", ["quantizer.layers.0.codebook", "decoder.model.2.0.model.1.conv2.bias"])
@pytest.mark.parametrize("representation", list(FRAMES))
def test_the_tokenizer_names_missing_misshapen_and_unexpected_keys(representation: str, tokens: Any, key: str) -> None:
    state, config = tokens(representation).state, tokens(representation).config
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        official.load_tokenizer({name: value for name, value in state.items() if name != key}, config)
    with pytest.raises(ValueError, match=f"'{key}': expected"):
        official.load_tokenizer({**state, key: torch.zeros(3, 1, 1)}, config)
    with pytest.raises(ValueError, match=r"unexpected keys \['extra'\]"):
        official.load_tokenizer({**state, "extra": torch.zeros(1)}, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_quantizers": 6}, "config: num_quantizers: expected 1, got 6"),
        ({"norm": "BN"}, "config: norm: expected None, got 'BN'"),
        ({"joints_num": 21}, r"config: joints_num: expected one of \(22, 56\), got 21"),
    ],
)
def test_unsupported_tokenizers_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official.load_tokenizer({}, {"joints_num": 22, **change})


def tiny_tokenizer(**changes: Any) -> MotionTokenizer:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_codes": 6, "code_dim": 4, "width": 5, "dropout": 0.0, **changes}
    tokenizer = MotionTokenizer(TokenizerConfig(**arguments)).eval()
    tokenizer.codebook.vectors.normal_()
    return tokenizer


@pytest.mark.parametrize("representation", list(FRAMES))
def test_a_motion_is_an_image_and_back(representation: str) -> None:
    motion = torch.randn(2, 8, *FRAMES[representation])
    image = motion_to_image(motion, representation)
    assert image.shape == {"interhuman": (2, 12, 22, 8), "interx": (2, 6, 56, 8)}[representation]
    expected = motion.clone()
    if representation == "interhuman":
        assert image[:, 6:, 0].abs().max() == 0  # the root has no rotation
        assert torch.equal(image[1, :, 7, 3], motion[1, 3][[21, 22, 23, 87, 88, 89, 168, 169, 170, 171, 172, 173]])
        expected[..., 258:] = 0  # contacts are not in the image
    assert torch.equal(image_to_motion(image, representation), expected)


@torch.no_grad()
@pytest.mark.parametrize("representation", list(FRAMES))
def test_shapes_and_refusals_of_the_tokenizer(representation: str) -> None:
    tokenizer = tiny_tokenizer(representation=representation)
    motion = torch.randn(3, 12, *FRAMES[representation])
    codes = tokenizer.encode(motion)
    assert codes.shape == (3, NUM_PARTS, 3)
    assert tokenizer.decode(codes).shape == motion.shape
    with pytest.raises(ValueError, match="motion: expected a multiple of 4 frames, got 10"):
        tokenizer.encode(motion[:, :10])
    with pytest.raises(ValueError, match="motion: expected shape"):
        tokenizer.encode(motion[..., :-1])
    with pytest.raises(ValueError, match="codes: expected shape"):
        tokenizer.decode(codes[:, :4])


@torch.no_grad()
@pytest.mark.parametrize("messages", ["every_frame", "first_frame", "first_frame_of_batch", "none"])
def test_only_the_published_graph_depends_on_the_place_in_a_batch(messages: str) -> None:
    tokenizer = tiny_tokenizer(messages=messages)
    motion, codes = torch.randn(3, 8, 262), torch.randint(0, 6, (3, NUM_PARTS, 2))
    differences = [
        (whole[2:] - alone).abs().max().item()
        for whole, alone in (
            (tokenizer.features(motion), tokenizer.features(motion[2:])),
            (tokenizer.decode(codes), tokenizer.decode(codes[2:])),
        )
    ]
    if messages == "first_frame_of_batch":
        assert min(differences) > 1e-4
    else:
        assert max(differences) < 1e-5


@torch.no_grad()
def test_a_graph_layer_joint_by_joint() -> None:
    torch.manual_seed(0)
    layer = SkeletonConv(3, 2, "first_frame")
    image = torch.randn(2, 3, 22, 2)
    out = layer(image)
    for frame in range(2):
        for joint in range(22):
            near = [j for j in range(22) if PARENTS[j] == joint or PARENTS[joint] == j]
            heard = torch.stack([layer.message(image[1, :, j, frame]).relu() for j in near]).mean(dim=0)
            if frame > 0:
                heard = torch.zeros(3)
            expected = layer.neighbours(heard) + layer.own(image[1, :, joint, frame])
            torch.testing.assert_close(out[1, :, joint, frame], expected)


def test_rows_are_repeated_by_the_published_factors() -> None:
    body = [factor for factor in tiny_tokenizer().decoder.layers if isinstance(factor, Enlarge)]
    rows = torch.arange(5.0).view(1, 1, 5, 1)
    assert body[0](rows)[0, 0, :, 1].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    hands = [factor for factor in tiny_tokenizer(representation="interx").decoder.layers if isinstance(factor, Enlarge)]
    assert hands[0](rows)[0, 0, :, 0].tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 3 + [4] * 3
    assert [m[1](m[0](rows)).shape for m in (body, hands)] == [(1, 1, 22, 4), (1, 1, 56, 4)]


@torch.no_grad()
def test_padding_decodes_as_no_vector() -> None:
    tokenizer = tiny_tokenizer()
    padding = torch.full((1, NUM_PARTS, 2), NO_CODE)
    before = tokenizer.decode(padding)
    tokenizer.codebook.vectors.normal_()
    assert torch.equal(tokenizer.decode(padding), before)
    assert not torch.equal(tokenizer.decode(torch.zeros_like(padding)), before)


def test_gradients_pass_straight_through_the_codes() -> None:
    tokenizer = tiny_tokenizer()
    motion = torch.randn(2, 8, 262)
    output = tokenizer(motion)
    vectors = tokenizer.codebook.lookup(output.codes).permute(0, 3, 1, 2).requires_grad_()
    direct = image_to_motion(tokenizer.decoder(vectors), "interhuman")
    torch.testing.assert_close(output.motion, direct)
    through, at_vectors = (
        torch.autograd.grad(motion.square().sum(), at, retain_graph=True)[0]
        for motion, at in ((output.motion, output.features), (direct, vectors))
    )
    torch.testing.assert_close(through, at_vectors)


def test_codes_are_drawn_from_the_softmax_of_distances() -> None:
    torch.manual_seed(0)
    codebook = Codebook(4, 2, decay=0.9)
    codebook.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    point = torch.tensor([0.2, 0.1])
    drawn = codebook.draw(point.expand(20_000, 2), torch.rand(20_000, 4), temperature=0.5)
    squared = torch.tensor([0.05, 0.65, 0.85, 23.04 + 24.01])
    expected = torch.softmax(-squared / 0.5, dim=0)
    found = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(found, expected, atol=4 * (0.25 / 20_000) ** 0.5, rtol=0)
    assert codebook.nearest(point) == 0


def test_codes_become_the_means_of_their_points() -> None:
    torch.manual_seed(0)
    points = torch.randn(40, 3)
    codes = torch.arange(40) % 4
    codebook = Codebook(5, 3, decay=0.5)
    codebook.initialise(points)
    assert torch.equal(codebook.vectors, points[:5])
    assert torch.equal(codebook.vectors, codebook.sums / codebook.counts[:, None])
    for _ in range(40):
        codebook.update(points.flip(0), codes)
    expected = torch.stack([points.flip(0)[codes == code].mean(dim=0) for code in range(4)])
    torch.testing.assert_close(codebook.vectors[:4], expected)
    assert torch.equal(codebook.vectors[4], points.flip(0)[4])  # no longer used: taken from the batch


def test_too_few_points_are_repeated_with_noise() -> None:
    codebook, points, noise = Codebook(7, 2, decay=0.99), torch.randn(3, 2), torch.randn(7, 2)
    codebook.initialise(points, noise)
    torch.testing.assert_close(codebook.vectors, points[torch.arange(7) % 3] + 0.01 / math.sqrt(2) * noise)


def test_averages_are_saved_with_the_vectors() -> None:
    codebook, points = Codebook(4, 2, decay=0.9), torch.randn(9, 2)
    codebook.initialise(points)
    codebook.update(points, torch.arange(9) % 3)
    again = Codebook(4, 2, decay=0.9)
    again.load_state_dict(codebook.state_dict())
    assert again.initialised
    for one in (codebook, again):
        one.update(points, torch.arange(9) % 4)
    assert torch.equal(codebook.vectors, again.vectors)


@pytest.mark.parametrize("representation", list(FRAMES))
def test_losses_vanish_on_the_target_and_have_the_gradient_of_their_value(representation: str) -> None:
    torch.manual_seed(0)
    frame = FRAMES[representation]
    target = torch.randn(1, 3, *frame, dtype=torch.float64)
    mean, std = torch.zeros(262, dtype=torch.float64), torch.full((262,), 0.02, dtype=torch.float64)  # slow: feet stand
    terms = tokenizer_losses(target, target, mean, std, TokenizerLossConfig(), representation)
    assert terms.pop("rotation") < 1e-3  # the clamp of the angle
    contact = terms.pop("contact", torch.tensor(1.0))
    assert contact > 0  # it looks at the output's feet alone
    assert all(value == 0 for name, value in terms.items() if name != "loss")

    output = (target + 0.3 * torch.randn_like(target)).requires_grad_()
    direction = torch.randn_like(target)
    value = tokenizer_losses(output, target, mean, std, TokenizerLossConfig(), representation)["loss"]
    (gradient,) = torch.autograd.grad(value, output)
    step = 1e-6
    ahead, behind = (
        tokenizer_losses(output + sign * step * direction, target, mean, std, TokenizerLossConfig(), representation)[
            "loss"
        ]
        for sign in (1, -1)
    )
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=0)


def smooth(difference: torch.Tensor) -> torch.Tensor:
    """Smooth L1: half the square up to 1, and the distance less a half beyond."""
    return torch.where(difference.abs() < 1, difference**2 / 2, difference.abs() - 0.5).mean()


def test_terms_of_the_tokenizers_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    found, expected = (torch.randn(2, 4, 262, generator=generator, dtype=torch.float64) for _ in range(2))
    mean, std = torch.zeros(262).double(), torch.full((262,), 0.02).double()
    mean[1:66:3] = 0.1  # heights that only ankles, at 0.12 m, may stand at
    expected[:, :, 21:24] = expected[:, :1, 21:24]  # one ankle that rests
    expected[..., 22] = 0.0
    terms = tokenizer_losses(found, expected, mean, std, TokenizerLossConfig())
    torch.testing.assert_close(terms["reconstruction"], smooth((found - expected)[..., :258]))
    torch.testing.assert_close(terms["position"], smooth((found - expected)[..., :66]))
    torch.testing.assert_close(terms["velocity"], smooth((found - expected)[..., :66].diff(dim=1)))
    joints = [motion[..., :66].unflatten(-1, (22, 3)) for motion in (found, expected)]
    lengths = [torch.stack([(j[..., i, :] - j[..., PARENTS[i], :]).norm(dim=-1) for i in range(1, 22)]) for j in joints]
    torch.testing.assert_close(terms["bone"], smooth(lengths[0] - lengths[1]))
    metres = [(motion * std + mean)[..., :66].unflatten(-1, (22, 3)) for motion in (found, expected)]
    moved = [each.diff(dim=1) for each in metres]
    slips, count = [], 0
    for joint, height in ((7, 0.12), (10, 0.05), (8, 0.12), (11, 0.05)):
        stands = (moved[1][:, :, joint].square().sum(-1) < 0.001) & (metres[1][:, :-1, joint, 1] < height)
        slips.append(moved[0][:, :, joint][stands])
        count += int(stands.sum())
    assert 6 <= count < 24  # the ankle that rests, and not all
    torch.testing.assert_close(terms["contact"], smooth(torch.cat(slips)))
    turns = []
    for motion in (found, expected):
        numbers = motion[..., 132:258].unflatten(-1, (21, 6))
        x = numbers[..., :3] / numbers[..., :3].norm(dim=-1, keepdim=True)
        y = numbers[..., 3:] - (x * numbers[..., 3:]).sum(-1, keepdim=True) * x
        y = y / y.norm(dim=-1, keepdim=True)
        turns.append(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1))
    trace = (turns[0].transpose(-1, -2) @ turns[1]).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(terms["rotation"], torch.acos(((trace - 1) / 2).clamp(-1 + 1e-7, 1 - 1e-7)).mean())


def test_a_code_keeps_its_vector_while_its_average_count_is_one() -> None:
    codebook = Codebook(2, 2, decay=0.5)
    codebook.initialise(torch.zeros(2, 2))
    codebook.update(torch.full((2, 2), 4.0), torch.tensor([0, 1]))  # counts stay 1: averages of 0 and 4
    assert codebook.vectors.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    codebook.update(torch.full((3, 2), 6.0), torch.tensor([0, 0, 0]))  # counts 2 and 0.5: the second is replaced
    torch.testing.assert_close(codebook.vectors[0], torch.full((2,), (2 + 18) / 2 / 2))
    torch.testing.assert_close(codebook.vectors[1], torch.full((2,), 6.0))
