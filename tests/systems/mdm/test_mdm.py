"""MDM and ComMDM: the published arrays, and what holds of both networks whatever the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.diffusion import DiffusionConfig, Sampler, build_scheduler, sample
from intermoe.nn.layers import sinusoid
from intermoe.systems.mdm import official
from intermoe.systems.mdm.canonical import (
    CANONICAL_WIDTH,
    canonical_entry,
    from_canonical,
    placement,
    to_common_frame,
    to_own_frame,
)
from intermoe.systems.mdm.config import ComMDMConfig, MDMConfig
from intermoe.systems.mdm.losses import motion_errors
from intermoe.systems.mdm.network import MDM, ComMDM

Golden = Callable[[str], Any]
RelativeError = Callable[[Any, Any], float]
TOLERANCE = 1e-5


class Arrays:
    """The file of reference arrays: tensors by name, motion in our axis order, the state dict and the configuration."""

    def __init__(self, archive: Any) -> None:
        self.archive = archive
        self.state = {key[6:]: self[key] for key in archive.files if key.startswith("state/")}
        self.config: dict[str, Any] = json.loads(str(archive["config"]))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.archive[name])

    def motion(self, name: str) -> Tensor:
        """(..., X, 1, T) as (..., T, X)."""
        return self[name].squeeze(-2).transpose(-1, -2)

    def pair(self, first: str, second: str) -> Tensor:
        return torch.stack([self.motion(first), self.motion(second)], dim=1)

    def single_state(self) -> dict[str, Tensor]:
        """The backbone's weights as a bare MDM's file has them, one stack of layers."""
        start, end = "seqTransEncoder_start.layers.", "seqTransEncoder_end.layers."
        split = len({key.split(".")[2] for key in self.state if key.startswith(start)})
        state = {}
        for key, value in self.state.items():
            if key.startswith(end):
                number, rest = key.removeprefix(end).split(".", 1)
                key = f"seqTransEncoder.layers.{split + int(number)}.{rest}"
            if not key.startswith("multi_person."):
                state[key.replace(start, "seqTransEncoder.layers.")] = value
        return state


@pytest.fixture
def arrays(golden: Golden) -> Arrays:
    return Arrays(golden("peers/commdm.npz"))


# the published arrays


def test_both_persons_and_the_gradient_equal_the_release(arrays: Arrays, relative_error: RelativeError) -> None:
    network = official.load_commdm(arrays.state, arrays.config)
    x = arrays.pair("x", "other_motion").requires_grad_()
    y = network(x, arrays["timesteps"], arrays["text"])
    assert relative_error(y[:, 0], arrays.motion("y")) < TOLERANCE
    assert relative_error(y[:, 1], arrays.motion("y_other")) < TOLERANCE
    short = torch.arange(x.shape[2]).expand(len(x), -1) < 3  # the release attends to padding
    assert torch.equal(network(x, arrays["timesteps"], arrays["text"], short), y)
    (y[:, 0] * arrays.motion("grad_out")).sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad[:, 0], arrays.motion("grad_x")) < TOLERANCE
    with torch.no_grad():
        unconditional = network(x, arrays["timesteps"], torch.zeros_like(arrays["text"]))
    assert relative_error(unconditional[:, 0], arrays.motion("y_uncond")) < TOLERANCE
    scale = arrays["cfg_scale"].view(-1, 1, 1, 1)
    guided = unconditional + scale * (y - unconditional)
    assert relative_error(guided[:, 0], arrays.motion("cfg_out")) < TOLERANCE


@torch.no_grad()
def test_the_block_alone_equals_the_release(arrays: Arrays, relative_error: RelativeError) -> None:
    network = official.load_commdm(arrays.state, arrays.config)
    hidden = torch.stack([arrays["comm/cur"], arrays["comm/other"]]).permute(2, 0, 1, 3)
    canonical = arrays.pair("comm/cur_canon", "comm/other_canon")[..., :CANONICAL_WIDTH]
    correction, estimate = network.communication(hidden, canonical)
    assert relative_error(correction[:, 0], arrays["comm/out"].transpose(0, 1)) < TOLERANCE
    expected = arrays.motion("comm/canon_out")
    assert relative_error(estimate[:, 0], expected[..., :CANONICAL_WIDTH]) < TOLERANCE
    assert not expected[..., CANONICAL_WIDTH:].any()


@torch.no_grad()
def test_a_single_person_equals_the_release(arrays: Arrays, relative_error: RelativeError) -> None:
    network = official.load_mdm(arrays.single_state(), arrays.config)
    y = network(arrays.motion("single/x")[:, None], arrays["timesteps"], arrays["text"])[:, 0]
    assert relative_error(y, arrays.motion("single/y")) < TOLERANCE
    assert not network.config.mask_padding


def test_the_chain_of_both_persons_equals_the_release(
    arrays: Arrays, relative_error: RelativeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = official.load_commdm(arrays.state, arrays.config)
    noise = arrays.motion("sample/step_noise").unflatten(0, (-1, 2)).transpose(1, 2)
    given: Iterator[Tensor] = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(given))
    start, steps = arrays.pair("sample/noise1", "sample/noise2"), int(arrays["sample/steps"])
    made = sample(
        network,
        arrays["text"],
        start.shape,
        Sampler(DiffusionConfig(num_train_timesteps=steps), "ddpm", steps, 1.0),
        noise=start,
    )
    assert relative_error(made[:, 0], arrays.motion("sample/out1")) < TOLERANCE
    assert relative_error(made[:, 1], arrays.motion("sample/out2")) < TOLERANCE


@torch.no_grad()
def test_the_loss_equals_the_release(arrays: Arrays, relative_error: RelativeError) -> None:
    network = official.load_commdm(arrays.state, arrays.config)
    scheduler = build_scheduler("ddpm", DiffusionConfig(num_train_timesteps=int(arrays["loss/steps"])))
    clean, noise = arrays.pair("x", "other_motion"), arrays.pair("loss/noise", "loss/noise_other")
    noisy = scheduler.add_noise(clean, noise, arrays["loss/t"])
    mask = arrays["loss/mask"][:, 0, 0] > 0
    errors = motion_errors(network(noisy, arrays["loss/t"], arrays["text"]), clean, mask)
    assert relative_error(errors[:, 0], arrays["loss/rot_mse"]) < TOLERANCE
    assert relative_error(errors[:, 0], arrays["loss/loss"]) < TOLERANCE  # there is no other term


# the published layouts


@pytest.mark.parametrize(
    ("name", "parameters"), [("keys_mdm_backbone", 17.88e6), ("keys", 17.88e6 + 4.74e6)], ids=["mdm", "commdm"]
)
def test_full_size_state_dict_is_read_whole(golden: Golden, name: str, parameters: float) -> None:
    """Every number of the file arrives once: tensors of the same size and sum stand on both sides."""
    shapes = golden("peers/keys_commdm.json")[name]
    state = {key: torch.empty(shape).uniform_(-1, 1) for key, shape in shapes.items()}
    tables = [key for key in state if key.endswith(".pe")]
    for key in tables:
        positions, _, dim = shapes[key]
        state[key] = sinusoid(torch.arange(positions), dim)[:, None]
    load = official.load_mdm if name == "keys_mdm_backbone" else official.load_commdm
    network = load(state, {"latent_dim": 512, "layers": 8, "multi_backbone_split": 8})
    state = {key: value for key, value in state.items() if key not in tables}
    assert _content(network.parameters()) == _content(state.values())
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.01)


def _content(tensors: Any) -> list[tuple[int, float]]:
    return sorted((tensor.numel(), tensor.double().sum().item()) for tensor in tensors)


@pytest.fixture
def state(published_file: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """A file as the published network's, of 1 + 2 layers and a block of two."""
    layers = ("seqTransEncoder_start.layers.0", "seqTransEncoder_end.layers.0", "seqTransEncoder_end.layers.1")
    layers += ("multi_person.model.layers.0", "multi_person.model.layers.1")
    known: dict[str, Any] = {f"{layer}.linear1.weight": (12, 8) for layer in layers}
    known |= {"input_process.poseEmbedding.weight": (8, CANONICAL_WIDTH + 3), "embed_text.weight": (8, 5)}
    known |= {"sequence_pos_encoder.pe": sinusoid(torch.arange(7), 8)[:, None]}
    return published_file(lambda state: official.load_commdm(state, {}), known)


@pytest.mark.parametrize("key", ["embed_text.weight", "multi_person.model.layers.1.norm2.bias"])
def test_missing_misshapen_and_unexpected_keys_are_named(state: dict[str, Tensor], key: str) -> None:
    config: dict[str, Any] = {}
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        official.load_commdm({name: value for name, value in state.items() if name != key}, config)
    with pytest.raises(ValueError, match=f"'{key}': expected"):
        official.load_commdm({**state, key: torch.zeros(3, 1, 1)}, config)
    with pytest.raises(ValueError, match=r"unexpected keys \['extra'\]"):
        official.load_commdm({**state, "extra": torch.zeros(1)}, config)
    table = torch.zeros(9, 1, len(state["embed_text.weight"]))
    with pytest.raises(ValueError, match="expected the sinusoidal table"):
        official.load_commdm({**state, "sequence_pos_encoder.pe": table}, config)
    with pytest.raises(ValueError, match=r"missing key 'seqTransEncoder.layers"):
        official.load_mdm(state, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multi_func": "direct"}, "config: multi_func: expected 'in_both_out_cur', got 'direct'"),
        ({"predict_6dof": False}, "config: predict_6dof: expected True, got False"),
        ({"multi_backbone_split": 7}, "config: multi_backbone_split: expected .*, got 7"),
        ({"arch": "gru"}, "config: arch: expected 'trans_enc', got 'gru'"),
    ],
)
def test_unsupported_variants_are_refused(state: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    for config in (change, {"args": change}):
        with pytest.raises(ValueError, match=message):
            official.load_commdm(state, config)


# the networks


def tiny(split: int = 1, **changes: Any) -> ComMDM:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"input_dim": 7, "text_dim": 5, "dim": 8, "num_layers": 2, "num_heads": 2}
    backbone = MDMConfig(**arguments, feedforward_dim=12, dropout=0.0, **changes)
    network = ComMDM(ComMDMConfig(backbone, split=split, num_layers=1, num_heads=2, feedforward_dim=12))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network.eval()


def inputs(persons: int = 2, frames: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, persons, frames, 7), torch.tensor([3, 700]), torch.randn(2, 5)


@torch.no_grad()
@pytest.mark.parametrize("split", [0, 1, 2])
def test_persons_are_exchangeable_and_see_each_other(split: int) -> None:
    network = tiny(split)
    x, timesteps, text = inputs()
    y = network(x, timesteps, text)
    assert y.shape == x.shape
    torch.testing.assert_close(network(x.flip(1), timesteps, text), y.flip(1))
    assert not y[:, :, 0, CANONICAL_WIDTH:].any()
    for frame in (0, 3):  # the partner's canonical entry and a frame of theirs
        other = x.clone()
        other[:, 1, frame, 0] += 1
        assert (network(other, timesteps, text)[:, 0] - y[:, 0]).abs().max() > 1e-4
    beyond = x.clone()
    beyond[:, :, 0, CANONICAL_WIDTH:] += 1
    assert torch.equal(network(beyond, timesteps, text), y)


@torch.no_grad()
def test_without_a_correction_it_is_two_single_persons() -> None:
    network = tiny()
    for parameter in (*network.communication.layers[-1].norm2.parameters(),):
        nn.init.zeros_(parameter)
    x, timesteps, text = inputs()
    alone = network.backbone(x[:, :, 1:], timesteps, text)
    torch.testing.assert_close(network(x, timesteps, text)[:, :, 1:], alone)


@torch.no_grad()
def test_single_persons_do_not_know_of_each_other() -> None:
    network = tiny().backbone
    x, timesteps, text = inputs(persons=3)
    y = network(x, timesteps, text)
    for person in range(3):
        torch.testing.assert_close(network(x[:, person : person + 1], timesteps, text)[:, 0], y[:, person])


@torch.no_grad()
@pytest.mark.parametrize("single", [True, False])
def test_padding_matters_only_as_published(single: bool) -> None:
    for mask_padding in (True, False):
        whole = tiny(mask_padding=mask_padding)
        network: MDM | ComMDM = whole.backbone if single else whole
        x, timesteps, text = inputs()
        mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
        y = network(x, timesteps, text, mask)
        alone = network(x[1:, :, :4], timesteps[1:], text[1:])
        difference = (y[1:, :, :4] - alone).abs().max()
        if not mask_padding:
            assert difference > 1e-4
            assert torch.equal(network(x, timesteps, text), y)
            continue
        assert difference < 1e-5
        for filling in (math.nan, 1e30, -math.inf):
            filled = x.masked_fill(~mask[:, None, :, None], filling)
            assert torch.equal(network(filled, timesteps, text, mask)[1, :, :4], y[1, :, :4])


@torch.no_grad()
def test_text_time_and_order_of_frames_matter() -> None:
    network = tiny()
    x, timesteps, text = inputs()
    y = network(x, timesteps, text)
    assert (network(x, timesteps, torch.zeros_like(text)) - y).abs().max() > 1e-4
    assert (network(x, timesteps + 1, text) - y).abs().max() > 1e-4
    turned = torch.cat([x[:, :, :1], x[:, :, 1:].flip(2)], dim=2)
    assert (network(turned, timesteps, text)[:, :, 1:].flip(2) - y[:, :, 1:]).abs().max() > 1e-4


def test_the_networks_refuse_what_does_not_fit() -> None:
    network = tiny()
    x, timesteps, text = inputs()
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 2, T, 7\)"):
        network(x[:, :1], timesteps, text)
    with pytest.raises(ValueError, match="timesteps: expected shape"):
        network(x, timesteps[:1], text)
    with pytest.raises(TypeError, match=r"mask: expected dtype torch.bool"):
        network(x, timesteps, text, torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"split: expected a value in \[0, backbone.num_layers=8\], got 9"):
        ComMDMConfig(split=9)
    with pytest.raises(ValueError, match="dim: expected an even multiple of num_heads=4, got 10"):
        MDMConfig(dim=10)


def test_the_error_counts_valid_frames_of_each_person() -> None:
    estimate, target = torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4)
    estimate[0, 1, 0] = 2.0
    estimate[:, :, 2] = 5.0
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(motion_errors(estimate, target, mask), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(motion_errors(estimate, target)[1, 0], torch.tensor(25 / 3))
    estimate[:, :, 2] = math.nan
    torch.testing.assert_close(motion_errors(estimate, target, mask), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))


# where a person stands


def turn(angle: float) -> Tensor:
    sin, cos = math.sin(angle), math.cos(angle)
    return torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def test_an_entry_says_turn_and_place() -> None:
    rotation, place = turn(0.7), torch.tensor([1.5, 0.0, -2.0])
    entry = canonical_entry(rotation, place, 263)
    expected = torch.tensor([math.cos(0.7), math.sin(0.7), 1.5, -2.0]) / 10
    torch.testing.assert_close(entry, nn.functional.pad(expected, (0, 259)))
    for found, given in zip(from_canonical(entry), (rotation, place), strict=True):
        torch.testing.assert_close(found, given)
    estimated, _ = from_canonical(entry * torch.tensor([1.3, 1.3, 1.0, 1.0] + 259 * [0.0]))
    torch.testing.assert_close(estimated, rotation)  # a rotation, though estimates are not of length one


def test_an_entry_without_a_direction_turns_nobody_into_what_is_no_number() -> None:
    rotation, place = from_canonical(torch.tensor([[0.0, 0.0, 0.3, -0.1, 7.0], [0.0, 1e-30, 0.0, 0.0, 7.0]]))
    assert rotation[0].tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(rotation[1], turn(math.pi / 2), atol=1e-6, rtol=0)  # however short
    torch.testing.assert_close(place[0], torch.tensor([3.0, 0.0, -1.0]))


def test_two_persons_stand_as_they_stood() -> None:
    """Person 1 at the origin facing Z+; person 2 was turned to face Z+ and moved to the origin, and comes back."""
    rotation, place = turn(-2.1), torch.tensor([0.3, 0.0, 1.2])
    stood = torch.randn(5, 3)
    alone = (stood - place) @ rotation.T
    turned, moved = placement(canonical_entry(turn(0.0), torch.zeros(3), 8), canonical_entry(rotation, place, 8))
    torch.testing.assert_close(alone @ turned.T + moved, stood)


def test_a_motion_moves_to_its_own_frame_and_back() -> None:
    torch.manual_seed(0)
    motion = torch.randn(2, 5, 262)
    own, entry = to_own_frame(motion)
    positions = own[..., :66].unflatten(-1, (22, 3))
    assert positions[:, 0, 0, [0, 2]].abs().max() < 1e-6  # the pelvis starts above the origin
    across = positions[:, 0, 2] - positions[:, 0, 1]
    assert across[:, 2].abs().max() < 1e-5  # and the right hip is beside the left one,
    assert (across[:, 0] < 0).all()  # at X-, so that it faces Z+
    source = motion[..., :66].unflatten(-1, (22, 3))
    torch.testing.assert_close(positions[..., 1], source[..., 1])  # heights stay
    torch.testing.assert_close(own[..., 132:], motion[..., 132:])
    for columns in (slice(0, 66), slice(66, 132)):  # velocities are those of the positions after as before
        steps = [m[..., columns].unflatten(-1, (22, 3)).diff(dim=1).norm(dim=-1) for m in (own, motion)]
        torch.testing.assert_close(*steps)
    again, identity = to_own_frame(own)
    torch.testing.assert_close(again, own)
    torch.testing.assert_close(identity[:, :4], torch.tensor([0.1, 0.0, 0.0, 0.0]).expand(2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(to_common_frame(own, *placement(identity, entry)), motion)
    with pytest.raises(ValueError, match=r"motion: expected shape \(..., T, 262\)"):
        to_own_frame(motion[..., :-1])
