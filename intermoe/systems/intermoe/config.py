"""Configuration of the InterMoE system: autoencoder, denoiser, and the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from intermoe.config import Config, _require, check_moe
from intermoe.diffusion import DiffusionConfig
from intermoe.motion.representation import REPRESENTATIONS
from intermoe.pipeline import ModelConfig
from intermoe.text.protocol import TextConfig


@dataclass(frozen=True)
class VAEConfig(Config):
    """Causal-Skeletal VAE. ``representation`` fixes joints, graph and input width; see ``intermoe.motion``."""

    RENAMED: ClassVar[dict[str, str]] = {"layout": "representation"}

    representation: str = "interhuman"
    latent_dim: int = 64
    num_blocks: int = 2
    kernel_size: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        known = self.representation in REPRESENTATIONS
        _require(known, "representation", f"one of {tuple(REPRESENTATIONS)}", self.representation)
        _require(self.latent_dim >= 1, "latent_dim", ">= 1", self.latent_dim)
        _require(self.num_blocks >= 1, "num_blocks", ">= 1", self.num_blocks)
        _require(self.kernel_size >= 1 and self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)


@dataclass(frozen=True)
class ShortcutConfig(Config):
    """What a denoiser learned beside its weights to sample in few steps (``intermoe.train.distill``).

    ``steps`` of DDIM (``intermoe.diffusion.distilled``) at ``guidance_scale``, 0 for nothing learned; ``width`` of the
    networks that it is held in.
    """

    steps: int = 0
    guidance_scale: float = 3.5
    width: int = 48

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "steps", ">= 0", self.steps)
        _require(self.guidance_scale > 1.0, "guidance_scale", "> 1", self.guidance_scale)
        _require(self.width >= 1, "width", ">= 1", self.width)


@dataclass(frozen=True)
class DenoiserConfig(Config):
    """Denoiser. ``input_dim`` is the latent width of one person and frame (coarse joints x latent_dim).

    Persons are exchangeable: which of them a caption's "first dancer" becomes is left to the noise. ``first_person``
    adds a learned vector to the tokens of the first, in whose frame the motion is given: the text can name it then.

    ``zero_key``: both attentions have a key and value of zero beside the frames', as in the release
    (``intermoe.nn.attention.Attention``).

    ``recompute`` saves memory in training: a layer's activations are dropped and computed again in the backward.

    ``shortcut`` is for sampling in few steps.

    The routing values are those of ``intermoe.InterMoEBlock``, whose rows here are samples: both persons' frames.
    """

    input_dim: int = 448
    text_dim: int = 768
    dim: int = 768
    num_layers: int = 8
    num_heads: int = 8
    num_experts: int = 8
    expert_dim: int = 1024
    capacity: float = 1.0
    fusion: str = "weighted"
    alpha: float = 0.5
    num_shared_experts: int = 0
    bias_rate: float = 1e-3
    bias_init: float = -0.5
    dropout: float = 0.1
    routing: str = "dynamic"
    top_k: int | None = None
    pool: str = "batch"
    unit: str = "frame"
    first_person: bool = False
    zero_key: bool = True
    recompute: bool = False
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)

    def __post_init__(self) -> None:
        for name in ("input_dim", "text_dim", "dim", "num_layers", "num_heads", "num_experts", "expert_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.dim % self.num_heads == 0, "dim", f"a multiple of num_heads={self.num_heads}", self.dim)
        _require(self.dim % 2 == 0, "dim", "an even number (sinusoidal positions)", self.dim)
        _require(0.0 <= self.dropout < 1.0, "dropout", "a value in [0, 1)", self.dropout)
        check_moe(self)


@dataclass(frozen=True)
class BetweenConfig(Config):
    """A network that fills short gaps between given frames (``intermoe.systems.intermoe.between``).

    ``width`` of its layers, 0 for none, ``layers`` behind the first, ``code`` numbers that a frame's joints become,
    ``waves`` of a gap, and ``max_frames`` of the longest one.
    """

    width: int = 0
    layers: int = 2
    code: int = 36
    waves: int = 6
    max_frames: int = 45

    def __post_init__(self) -> None:
        _require(self.width >= 0, "width", ">= 0", self.width)
        for name in ("layers", "code", "waves", "max_frames"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))


@dataclass(frozen=True)
class PipelineConfig(ModelConfig):
    """Everything that ``InterMoEPipeline.from_pretrained`` needs besides weights and tokenizer.

    Of decoded motion, ``rigid_bones`` holds the bones at their mean length over the clip (``intermoe.motion.bones``),
    and ``smooth`` takes away its trembling (``intermoe.motion.smooth``). Of what is generated, ``on_floor`` has persons
    touch the floor again and again (``intermoe.motion.floor``), ``planted_feet`` keeps feet from sliding while the
    contact columns say that they stand (``intermoe.motion.feet``), and ``bodies_apart`` moves persons out of each other
    (``intermoe.motion.apart``), but not where joints are asked for at places, or one person is given, whom the other
    may touch; what is only decoded stays where it was, on a ladder or a stool too.
    All but ``levels`` are for representations whose feet stand in the world; the release does none of it. ``levels``
    tells that the denoiser was trained with a noise level for each person and frame
    (``intermoe.train.config.LevelMixConfig``). ``between`` is for gaps between given frames, of InterHuman's layout.
    """

    rigid_bones: bool = False
    planted_feet: bool = False
    on_floor: bool = False
    bodies_apart: bool = False
    smooth: bool = False
    levels: bool = False
    vae: VAEConfig = field(default_factory=VAEConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    between: BetweenConfig = field(default_factory=BetweenConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.between.width == 0 or self.vae.representation == "interhuman"
        _require(ok, "between.width", f"0 for {self.vae.representation}", self.between.width)
        for name in ("rigid_bones", "planted_feet", "on_floor", "bodies_apart", "smooth"):
            ok = not getattr(self, name) or REPRESENTATIONS[self.vae.representation].grounded
            _require(ok, name, f"false for {self.vae.representation}", getattr(self, name))
        _require(
            self.text.output_dim == self.denoiser.text_dim,
            "text.output_dim",
            f"denoiser.text_dim={self.denoiser.text_dim}",
            self.text.output_dim,
        )

    @property
    def max_steps(self) -> int:
        """Timesteps of the noise schedule."""
        return self.diffusion.num_train_timesteps
