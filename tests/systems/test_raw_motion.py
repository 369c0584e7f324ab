"""InterGen and TIMotion, which share all but their layers: equal to the published networks' own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe import official
from intermoe.diffusion import DiffusionConfig, Sampler, build_scheduler, sample
from intermoe.motion.statistics import Statistics
from intermoe.systems.intergen.config import MotionLossConfig
from intermoe.systems.intergen.losses import motion_losses

TOLERANCE = 1e-5
AFTER_50_STEPS = 1e-4
MARKER = 12345.0
ARCHIVES = ("intergen_denoiser", "timotion_denoiser", "timotion_denoiser_nolpa")

Error = Callable[[Any, Any], float]


class Published:
    """Arrays of a published network, and ours with its weights; motion (B, T, 2 * 262) comes as (B, 2, T, 262)."""

    def __init__(self, arrays: Any, system: str) -> None:
        self.arrays, self.system = arrays, system
        self.config = json.loads(str(arrays["config"]))
        self.state = {key[6:]: self[key] for key in arrays.files if key.startswith("state/")}
        self.network: Any = self.load(self.state)

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self.arrays[name])

    def load(self, state: dict[str, Tensor]) -> nn.Module:
        return official.load_network(self.system, state, self.config)

    def motion(self, name: str) -> Tensor:
        return self[name].unflatten(-1, (2, -1)).transpose(1, 2)

    @property
    def mask(self) -> Tensor:
        return self["mask"][..., 0] > 0

    def gradient(self, network: nn.Module, key: str) -> Tensor:
        """Of the published parameter ``key``: of those of ours that hold a marker where it is one in the file."""
        marked = self.load({**self.state, key: torch.full_like(self.state[key], MARKER)})
        ours = [name for name, parameter in marked.named_parameters() if (parameter == MARKER).all()]
        parts = [network.get_parameter(name).grad for name in ours]
        return torch.cat([part.flatten() for part in parts if part is not None]).view(self.state[key].shape)


def flat(motion: Tensor) -> Tensor:
    return motion.transpose(1, 2).flatten(2)


@pytest.fixture(scope="module", params=ARCHIVES)
def published(request: pytest.FixtureRequest, golden: Callable[[str], Any]) -> Published:
    return Published(golden(f"peers/{request.param}.npz"), request.param.split("_")[0])


def test_network_and_its_gradients(published: Published, relative_error: Error) -> None:
    x, cond = published.motion("x").requires_grad_(), published["cond"].requires_grad_()
    mask, timesteps = published.mask, published["timesteps"]
    y = published.network(x, timesteps, cond, mask)
    assert relative_error(flat(y)[mask], published["y"][mask]) < TOLERANCE
    assert relative_error(flat(y), published["y"]) < TOLERANCE  # padding too, which their losses read
    (y * published.motion("grad_out") * mask[:, None, :, None]).sum().backward()
    assert relative_error(flat(x.grad), published["grad_x"]) < TOLERANCE
    assert relative_error(cond.grad, published["grad_cond"]) < TOLERANCE
    assert relative_error(flat(published.network(x, timesteps, cond)), published["y_nomask"]) < TOLERANCE


def test_second_layer_alone(published: Published, relative_error: Error) -> None:
    hidden = torch.stack([published["block1/h_a"], published["block1/h_b"]], dim=1)
    mask = published.mask
    out = published.network.layers[1](hidden, published["block1/emb"], mask)
    for person, name in enumerate(("block1/out_a", "block1/out_b")):
        assert relative_error(out[:, person][mask], published[name][mask]) < TOLERANCE


@torch.no_grad()
def test_guided_call(published: Published, relative_error: Error) -> None:
    x, cond, scale = published.motion("init_noise"), published["cond"], published.config["cfg_weight"]
    given, none = (published.network(x, published["cfg_t"], text) for text in (cond, torch.zeros_like(cond)))
    assert relative_error(flat(scale * given + (1 - scale) * none), published["cfg_out"]) < TOLERANCE


@pytest.mark.parametrize(("steps", "tolerance"), [(10, TOLERANCE), (50, AFTER_50_STEPS)])
def test_sampling(published: Published, relative_error: Error, steps: int, tolerance: float) -> None:
    noise = published.motion("init_noise")
    made = sample(
        published.network,
        published["cond"],
        tuple(noise.shape),
        Sampler(num_inference_steps=steps, guidance_scale=published.config["cfg_weight"]),
        noise=noise,
    )
    assert relative_error(flat(made), published[f"ddim{steps}_sample"]) < tolerance


def test_every_loss_term_and_the_gradients(
    published: Published, golden: Callable[[str], Any], relative_error: Error
) -> None:
    """In float64, so that only the arrays' own rounding is left: feet that stand move by millimetres."""
    statistics = Statistics(golden("stats/global_mean.npy"), golden("stats/global_std.npy"))
    scaled = {f"out.linear.{kind}": published[f"loss/out_{kind}_scale"] for kind in ("weight", "bias")}
    state = published.state | {key: scale * published.state[key] for key, scale in scaled.items()}
    network = published.load(state).double()
    clean, timesteps = statistics.normalise(published.motion("loss/motion").double()), published["loss/t"]
    noisy = build_scheduler("ddim", DiffusionConfig()).add_noise(clean, published.motion("loss/noise"), timesteps)
    mask = published.mask
    estimate = network(noisy, timesteps, published["cond"].double(), mask)
    config = MotionLossConfig(
        last_timestep=int(published["loss/t_bar"]), step_into_padding=True, orientation_of_all=True
    )

    def losses(persons: slice) -> dict[str, Tensor]:
        return motion_losses(estimate[:, persons], clean[:, persons], timesteps, mask, statistics, config)

    both = losses(slice(None))
    names = {"simple": "simple", "distances": "DM", "touch": "JA", "orientation": "RO", "loss": "total"}
    for ours, theirs in names.items():
        assert relative_error(both[ours], published[f"loss/term_{theirs}"]) < TOLERANCE, theirs
    for person, letter in ((slice(0, 1), "A"), (slice(1, 2), "B")):
        alone = losses(person)
        for ours, theirs in {"velocity": "VEL", "bones": "BL", "feet": "FC"}.items():
            assert relative_error(alone[ours], published[f"loss/term_{theirs}_{letter}"]) < TOLERANCE, theirs
        assert relative_error(alone["loss"] - alone["simple"], published[f"loss/term_{letter}"]) < TOLERANCE
    both["loss"].backward()
    gradients = [name for name in published.arrays.files if name.startswith("loss/grad_")]
    assert gradients
    for name in gradients:
        found = published.gradient(network, name.removeprefix("loss/grad_"))
        assert relative_error(found, published[name]) < TOLERANCE, name
