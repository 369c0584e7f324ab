"""Small hosts of every class that can be replaced, each with a call on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.integrations import BlockAdapter, Condition, Mask
from intermoe.nn.layers import SwiGLU


@dataclass
class Host:
    """``build()`` draws a fresh host, ``call(model)`` runs it on fixed inputs."""

    build: Callable[[], nn.Module]
    call: Callable[[nn.Module], Tensor]
    networks: list[str]
    condition: str | None
    adapters: tuple[BlockAdapter, ...] = ()


class SwiGLUBlock(nn.Module):
    """A block of a user's own, whose network can be upcycled."""

    def __init__(self, dim: int = 16, cond_dim: int = 6, width: int = 24) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.shift = nn.Linear(cond_dim, dim)
        self.mlp = SwiGLU(dim, width)

    def forward(self, x: Tensor, emb: Tensor, valid: Tensor | None = None) -> Tensor:
        return x + self.mlp(self.norm(x) + self.shift(emb)[:, None])


class SwiGLUModel(nn.Module):
    def __init__(self, num_blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwiGLUBlock() for _ in range(num_blocks))

    def forward(self, x: Tensor, emb: Tensor, valid: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, emb, valid=valid)
        return x


SWIGLU_ADAPTER = BlockAdapter(
    SwiGLUBlock, ("mlp",), condition={"embedding": Condition("emb", width=6)}, mask=Mask("valid")
)


def _randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _diffusers(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        diffusers = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, name)(**config)
        for parameter in model.parameters():
            # modulation that starts at zero would hide the feed-forward networks
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return build


def _dit(model: nn.Module) -> Tensor:
    labels = torch.tensor([1, 2, 3])
    return model(_randn(3, 4, 8, 8), timestep=torch.tensor([1, 50, 900]), class_labels=labels, return_dict=False)[0]


def _pixart(model: nn.Module) -> Tensor:
    return model(
        _randn(2, 4, 8, 8),
        encoder_hidden_states=_randn(2, 5, 12),
        encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        timestep=torch.tensor([3, 700]),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]


def _sd3(model: nn.Module) -> Tensor:
    return model(
        _randn(2, 4, 8, 8),
        encoder_hidden_states=_randn(2, 5, 12),
        pooled_projections=_randn(2, 10),
        timestep=torch.tensor([3, 700]),
        return_dict=False,
    )[0]


def _flux(model: nn.Module) -> Tensor:
    return model(
        hidden_states=_randn(2, 9, 4),
        encoder_hidden_states=_randn(2, 5, 12),
        pooled_projections=_randn(2, 10),
        timestep=torch.tensor([0.1, 0.7]),
        img_ids=torch.zeros(9, 3),
        txt_ids=torch.zeros(5, 3),
        return_dict=False,
    )[0]


def _unet(model: nn.Module) -> Tensor:
    return model(_randn(2, 4, 8, 8), torch.tensor([3, 700]), _randn(2, 5, 12), return_dict=False)[0]


def _encoder(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, dropout=0.0, **options)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=bool(options.get("batch_first"))).eval()

    return build


PADDING = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])


def _swiglu() -> nn.Module:
    torch.manual_seed(0)
    return SwiGLUModel().eval()


def _motion(system: str, network: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        module = import_module(f"intermoe.systems.{system}.network")
        known = import_module(f"intermoe.systems.{config.removesuffix('Config').lower()}.config")
        small = {"input_dim": 6, "text_dim": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "feedforward_dim": 24}
        model: nn.Module = getattr(module, network)(getattr(known, config)(**small, dropout=0.0, **sizes))
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return build


def _call_motion(*text: int) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(_randn(2, 2, 6, 6), torch.tensor([3, 700]), _randn(2, *text, 5, seed=2), ~PADDING)


MOTION_NETWORKS = ["layers.0.feed_forward.network", "layers.1.feed_forward.network"]


HOSTS = {
    "dit": Host(
        _diffusers(
            "DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2,
            sample_size=8, num_embeds_ada_norm=10, norm_num_groups=2,
        ),
        _dit, ["transformer_blocks.0.ff", "transformer_blocks.1.ff"], "modulation",
    ),
    "pixart": Host(
        _diffusers(
            "PixArtTransformer2DModel", num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
            num_layers=2, sample_size=8, cross_attention_dim=16, caption_channels=12, norm_num_groups=2,
        ),
        _pixart, ["transformer_blocks.0.ff", "transformer_blocks.1.ff"], "modulation",
    ),
    "sd3": Host(
        _diffusers(
            "SD3Transformer2DModel", sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10,
            out_channels=4, pos_embed_max_size=8,
        ),
        # the last block has no text network
        _sd3, ["transformer_blocks.0.ff", "transformer_blocks.0.ff_context", "transformer_blocks.1.ff"], "modulation",
    ),
    "flux": Host(
        _diffusers(
            "FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
            axes_dims_rope=(4, 4, 8),
        ),
        _flux, ["transformer_blocks.0.ff", "transformer_blocks.0.ff_context"], "modulation",
    ),
    "unet": Host(
        _diffusers(
            "UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
            block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        ),
        _unet,
        [
            "down_blocks.1.attentions.0.transformer_blocks.0.ff",
            "mid_block.attentions.0.transformer_blocks.0.ff",
        ],
        "text",
    ),
    "torch": Host(
        _encoder(batch_first=True),
        lambda model: model(_randn(2, 6, 16), src_key_padding_mask=PADDING),
        ["layers.0.linear1", "layers.1.linear1"], None,
    ),
    "torch-time-first": Host(
        _encoder(norm_first=True, activation="gelu"),
        lambda model: model(_randn(6, 2, 16), src_key_padding_mask=PADDING),
        ["layers.0.linear1", "layers.1.linear1"], None,
    ),
    "intergen": Host(
        _motion("intergen", "InterGen", "InterGenConfig"), _call_motion(), MOTION_NETWORKS, "modulation",
    ),
    "timotion": Host(
        _motion("timotion", "TIMotion", "TIMotionConfig"), _call_motion(), MOTION_NETWORKS, "modulation",
    ),
    "in2in": Host(
        _motion("in2in", "In2IN", "InterGenConfig"), _call_motion(3), MOTION_NETWORKS, "modulation",
    ),
    "own": Host(
        _swiglu,
        lambda model: model(_randn(2, 6, 16), _randn(2, 6, seed=2), ~PADDING),
        ["blocks.0.mlp", "blocks.1.mlp"], "embedding", (SWIGLU_ADAPTER,),
    ),
}  # fmt: skip


@pytest.fixture(params=HOSTS, scope="session")
def host(request: pytest.FixtureRequest) -> Host:
    """Every kind of host, one after the other."""
    return HOSTS[request.param]


@pytest.fixture(scope="session")
def own_host() -> Host:
    """Blocks of a user's own with a SwiGLU network, a condition and a mask."""
    return HOSTS["own"]


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    """Hosts by name."""
    return HOSTS
