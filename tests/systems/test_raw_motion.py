"""InterGen and TIMotion, which share all but their layers: equal to the published networks' own numbers, and as fast
as a plain transcription of their equations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intermoe import official
from intermoe.diffusion import DiffusionConfig, Sampler, build_scheduler, sample
from intermoe.motion.statistics import Statistics
from intermoe.nn.init import SkipRandomInit
from intermoe.systems.intergen.config import MotionLossConfig
from intermoe.systems.intergen.losses import motion_losses
from intermoe.systems.intergen.official import PUBLISHED as INTERGEN
from intermoe.systems.timotion.official import PUBLISHED as TIMOTION

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


class PlainAdaLN(nn.Module):
    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * dim))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb_layers(emb)[:, None].chunk(2, dim=-1)
        return F.layer_norm(h, (self.dim,), eps=1e-6) * (1 + scale) + shift


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, cond_dim: int, *, partner: bool = False) -> None:
        super().__init__()
        self.norm = PlainAdaLN(dim, cond_dim)
        if partner:
            self.xf_norm = PlainAdaLN(dim, cond_dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True, add_zero_attn=True)

    def forward(self, h: Tensor, emb: Tensor, padding: Tensor | None, partner: Tensor | None = None) -> Tensor:
        queries = self.norm(h, emb)
        keys = queries if partner is None else self.xf_norm(partner, emb)
        return self.attention(queries, keys, keys, key_padding_mask=padding, need_weights=False)[0]


class PlainFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = PlainAdaLN(dim, cond_dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(self.norm(h, emb))))


class PlainInterGenLayer(nn.Module):
    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        dim, heads = config["latent_dim"], config["num_heads"]
        self.sa_block = PlainAttention(dim, heads, dim)
        self.ca_block = PlainAttention(dim, heads, dim, partner=True)
        self.ffn = PlainFeedForward(dim, config["ff_size"], dim)

    def forward(self, a: Tensor, b: Tensor, emb: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        out = []
        for own, partner in ((a, b), (b, a)):
            h = own + self.sa_block(own, emb, padding)
            h = h + self.ca_block(h, emb, padding, partner)
            out.append(h + self.ffn(h, emb))
        return out[0], out[1]


class PlainConvBlock(nn.Module):
    def __init__(self, dim: int, *, first: bool) -> None:
        super().__init__()
        if not first:
            self.norm1 = PlainAdaLN(dim, dim)
        self.norm2 = PlainAdaLN(dim, dim)
        self.conv1, self.conv2 = nn.Conv1d(dim, dim, 3, padding=1), nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x, emb)) if hasattr(self, "norm1") else x
        h = F.silu(self.norm2(self.conv1(h.transpose(1, 2)).transpose(1, 2), emb))
        return x + self.conv2(h.transpose(1, 2)).transpose(1, 2)


class PlainTIMotionLayer(nn.Module):
    def __init__(self, config: dict[str, Any], index: int) -> None:
        super().__init__()
        dim = config["latent_dim"]
        self.sa_block = PlainAttention(2 * dim, config["num_heads"], dim)
        self.ffn = PlainFeedForward(2 * dim, config["ff_size"], dim)
        self.linear = nn.Linear(2 * dim, dim)
        self.conv = nn.Module()
        self.conv.blocks = nn.ModuleList([PlainConvBlock(dim, first=index == 0)])

    def forward(self, a: Tensor, b: Tensor, emb: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        both = None if padding is None else padding.repeat_interleave(2, dim=1)
        rows = interleaved(a, b)
        rows = rows + self.sa_block(rows, emb, both)
        joined = []
        for merged, own in zip(separated(rows), (a, b), strict=True):
            own = own if padding is None else own.masked_fill(padding[..., None], 0)
            joined.append(self.linear(torch.cat([merged, self.conv.blocks[0](own, emb)], dim=-1)))
        rows = interleaved(*joined)
        return separated(rows + self.ffn(rows, emb))


def interleaved(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.cat([a, b], dim=-1), torch.cat([b, a], dim=-1)], dim=2).flatten(1, 2)


def separated(rows: Tensor) -> tuple[Tensor, Tensor]:
    (a1, b1), (b2, a2) = (rows[:, start::2].chunk(2, dim=-1) for start in (0, 1))
    return a1 + a2, b1 + b2


class PlainNetwork(nn.Module):
    """The equations of peers' papers in plain PyTorch, one person after the other, under the published names."""

    def __init__(self, layer: Callable[[dict[str, Any], int], nn.Module], config: dict[str, Any]) -> None:
        super().__init__()
        dim = config["latent_dim"]
        self.motion_embed, self.text_embed = nn.Linear(config["input_feats"], dim), nn.Linear(768, dim)
        self.embed_timestep = nn.Module()
        self.embed_timestep.time_embed = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(layer(config, index) for index in range(config["num_layers"]))
        self.out = nn.Module()
        self.out.linear = nn.Linear(dim, config["input_feats"])
        angles = np.arange(1000)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
        table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(1000, dim)
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        emb = self.embed_timestep.time_embed(self.table[timesteps]) + self.text_embed(text)
        a, b = (self.motion_embed(x[:, person]) + self.table[: x.shape[2]] for person in range(2))
        for block in self.blocks:
            a, b = block(a, b, emb, None if mask is None else ~mask)
        return torch.stack([self.out.linear(a), self.out.linear(b)], dim=1)


FULL_SIZE = {
    "intergen": (PlainInterGenLayer, INTERGEN, 171_352_326),
    "timotion": (PlainTIMotionLayer, TIMOTION, 66_273_030),
}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights; every one is a piece of the same noise, because drawing this many takes seconds."""
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    noise = 0.02 * torch.randn(largest + len(shapes), generator=torch.Generator().manual_seed(0))
    return {
        key: noise[start : start + torch.Size(shape).numel()].view(shape)
        for start, (key, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("system", FULL_SIZE)
@torch.no_grad()
def test_full_size_equals_a_plain_transcription_and_is_as_fast(
    system: str, golden: Callable[[str], Any], relative_error: Error
) -> None:
    layer, config, parameters = FULL_SIZE[system]
    with SkipRandomInit():
        plain = PlainNetwork(layer, config).eval()
    shapes = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    listed = golden(f"peers/keys_{system}.json")["keys"]
    network_keys = {key.removeprefix("decoder.net."): tuple(shape) for key, shape in listed.items() if "net." in key}
    assert {key: shape for key, shape in network_keys.items() if not key.endswith("pe")} == shapes
    state = drawn(shapes)
    plain.load_state_dict(state, assign=True)
    network = official.load_network(system, state, config)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters

    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 2, 64, 262, generator=generator), torch.randn(1, 768, generator=generator)
    arguments = (x, torch.tensor([480]), text, torch.arange(64)[None] < 60)
    assert relative_error(network(*arguments)[:, :, :60], plain(*arguments)[:, :, :60]) < TOLERANCE

    seconds: dict[nn.Module, list[float]] = {network: [], plain: []}
    for _ in range(10):  # the best of each, of processor time: what else the machine does is not counted
        for which, taken in seconds.items():
            start = time.process_time()
            which(*arguments)
            taken.append(time.process_time() - start)
        if min(seconds[network]) <= min(seconds[plain]):
            break
    assert min(seconds[network]) <= min(seconds[plain])
