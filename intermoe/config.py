"""Frozen, validated configuration of the model, saved as JSON beside the weights.

Every class checks its values on construction, so a configuration that exists is one that can be built.
``to_dict`` and ``from_dict`` are exact inverses; an unknown key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT", bound="Config")

FUSIONS = ("weighted", "sum", "learned")
NORMS = ("adaln", "none")
ROUTINGS = ("dynamic", "token_choice", "expert_choice")
POOLS = ("batch", "sample")
UNITS = ("frame", "sequence")
LAYOUTS = ("interhuman", "interx", "humanml3d")
TEXT_ENCODERS = ("wordpiece", "huggingface", "clip")


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: must be {expected}, got {got!r}")


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """``value`` as the annotated ``kind``; JSON and YAML know no tuples and write 1.0 as 1."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    if isinstance(kind, type) and issubclass(kind, Config):
        return kind.from_dict(value, where=name)
    origin = typing.get_origin(kind)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), name, "a list", value)
        element = typing.get_args(kind)[0]
        return tuple(_coerce(element, item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str):
        _require(isinstance(value, kind), name, f"of type {kind.__name__}", value)
        _require(kind is bool or not isinstance(value, bool), name, f"of type {kind.__name__}", value)
    return value


@dataclass(frozen=True)
class Config:
    """Base of all configurations: conversion to and from plain mappings and JSON files."""

    @classmethod
    def from_dict(cls: type[ConfigT], values: Any, *, where: str = "config") -> ConfigT:
        """Build from a mapping. Raises ``ValueError`` that names an unknown key, a wrong type or a bad value."""
        if not isinstance(values, dict):
            raise ValueError(f"{where}: must be a mapping, got {type(values).__name__}")
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"{where}: unknown key {key!r}, expected any of {names}")
        for f in dataclasses.fields(cls):
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and f.name not in values:
                raise ValueError(f"{where}: missing key {f.name!r}")
        return cls(**{key: _coerce(hints[key], value, f"{where}.{key}") for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain values that ``from_dict`` turns back into an equal configuration."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def load(cls: type[ConfigT], path: str | Path) -> ConfigT:
        """Read a JSON or YAML file (by suffix). Raises ``ValueError`` naming the file and the offending key."""
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            values = yaml.safe_load(text)
        else:
            try:
                values = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: not valid JSON: {error}") from error
        return cls.from_dict(values, where=str(path))


@dataclass(frozen=True)
class VAEConfig(Config):
    """Causal-Skeletal VAE. ``layout`` fixes joints, graph and input width; see ``intermoe.nn.skeleton``."""

    layout: str = "interhuman"
    latent_dim: int = 64
    num_blocks: int = 2
    kernel_size: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _require(self.layout in LAYOUTS, "layout", f"one of {LAYOUTS}", self.layout)
        _require(self.latent_dim >= 1, "latent_dim", ">= 1", self.latent_dim)
        _require(self.num_blocks >= 1, "num_blocks", ">= 1", self.num_blocks)
        _require(self.kernel_size >= 1 and self.kernel_size % 2 == 1, "kernel_size", "odd", self.kernel_size)
        _require(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True)
class DenoiserConfig(Config):
    """Denoiser. ``input_dim`` is the latent width of one person and frame (coarse joints x latent_dim).

    Persons are exchangeable: which of them a caption's "first dancer" becomes is left to the noise. ``first_person``
    adds a learned vector to the tokens of the first, in whose frame the motion is given: the text can name it then.

    ``recompute`` saves memory in training: a layer's activations are dropped and computed again in the backward.

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
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("input_dim", "text_dim", "dim", "num_layers", "num_heads", "num_experts", "expert_dim"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.dim % self.num_heads == 0, "dim", f"a multiple of num_heads={self.num_heads}", self.dim)
        _require(self.dim % 2 == 0, "dim", "even (sinusoidal positions)", self.dim)
        _require(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)", self.dropout)
        check_moe(self)


def check_moe(config: Any) -> None:
    """Validate the routing values that ``DenoiserConfig`` and ``InterMoEBlock`` share."""
    _require(0.0 < config.capacity <= config.num_experts, "capacity", "in (0, num_experts]", config.capacity)
    _require(config.fusion in FUSIONS, "fusion", f"one of {FUSIONS}", config.fusion)
    _require(0.0 <= config.alpha <= 1.0, "alpha", "in [0, 1]", config.alpha)
    _require(config.num_shared_experts >= 0, "num_shared_experts", ">= 0", config.num_shared_experts)
    _require(config.bias_rate >= 0.0, "bias_rate", ">= 0", config.bias_rate)
    _require(-1.0 < config.bias_init < 0.0, "bias_init", "strictly inside (-1, 0)", config.bias_init)
    for name, known in (("routing", ROUTINGS), ("pool", POOLS), ("unit", UNITS)):
        _require(getattr(config, name) in known, name, f"one of {known}", getattr(config, name))
    if config.routing == "token_choice":
        fits = config.top_k is not None and 1 <= config.top_k <= config.num_experts
        _require(fits, "top_k", "in [1, num_experts] for routing='token_choice'", config.top_k)
    else:
        _require(config.top_k is None, "top_k", f"None for routing={config.routing!r}", config.top_k)
    alone = (config.routing, config.pool, config.unit) == ("expert_choice", "sample", "sequence")
    _require(not alone, "unit", "'frame' with expert_choice in pools of one sample, which hold one row", config.unit)


@dataclass(frozen=True)
class TextConfig(Config):
    """Text encoder. ``kind`` chooses; the other fields describe the trainable part of that kind.

    - ``wordpiece``: own small transformer over word pieces; ``width``, ``num_layers``, ``num_heads``, ``vocab_size``,
      ``max_tokens`` describe it, ``output_dim`` its output.
    - ``huggingface``: ``name_or_path`` is a frozen encoder, the rest describes the adapter on its token states.
    - ``clip``: the release's CLIP tower and adapter; ``clip_*`` describe the tower, the rest the adapter.
    """

    kind: str = "wordpiece"
    output_dim: int = 768
    width: int = 768
    num_layers: int = 2
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    max_tokens: int = 77
    vocab_size: int = 2000
    name_or_path: str | None = None
    clip_layers: int = 12
    clip_heads: int = 12

    def __post_init__(self) -> None:
        _require(self.kind in TEXT_ENCODERS, "kind", f"one of {TEXT_ENCODERS}", self.kind)
        for name in ("output_dim", "width", "num_layers", "num_heads", "feedforward_dim", "max_tokens", "vocab_size"):
            _require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        _require(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}", self.width)
        _require(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)", self.dropout)
        if self.kind == "huggingface":
            _require(bool(self.name_or_path), "name_or_path", "a model name or folder", self.name_or_path)


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """Noise schedule (cosine, Nichol and Dhariwal 2021), conditioning dropout and weighting of the training loss.

    ``snr_gamma`` weighs a timestep's loss by 1 + min(signal-to-noise ratio, snr_gamma); 0 is the plain loss.
    ``latent_scale`` multiplies the latents before noise is added to them, ``timestep_shift`` above 1 draws more noisy
    timesteps; ``guidance_until`` is the share of the schedule below which sampling is not guided (see
    ``intermoe.diffusion``). The release has 1, 1 and 0. ``loss_std_floor`` above 0 divides the squared error along each
    principal direction of the latents by its standard deviation, or by the floor (``intermoe.train.latents``).
    """

    num_train_timesteps: int = 1000
    max_beta: float = 0.999
    condition_dropout: float = 0.1
    snr_gamma: float = 0.0
    latent_scale: float = 1.0
    timestep_shift: float = 1.0
    guidance_until: float = 0.0
    loss_std_floor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.latent_scale > 0.0, "latent_scale", "> 0", self.latent_scale)
        _require(0.0 <= self.guidance_until <= 1.0, "guidance_until", "in [0, 1]", self.guidance_until)
        _require(self.timestep_shift > 0.0, "timestep_shift", "> 0", self.timestep_shift)
        _require(self.snr_gamma >= 0.0, "snr_gamma", ">= 0", self.snr_gamma)
        _require(self.loss_std_floor >= 0.0, "loss_std_floor", ">= 0", self.loss_std_floor)
        _require(self.num_train_timesteps >= 1, "num_train_timesteps", ">= 1", self.num_train_timesteps)
        _require(0.0 < self.max_beta < 1.0, "max_beta", "in (0, 1)", self.max_beta)
        _require(0.0 <= self.condition_dropout <= 1.0, "condition_dropout", "in [0, 1]", self.condition_dropout)


@dataclass(frozen=True)
class PipelineConfig(Config):
    """Everything that ``InterMoEPipeline.from_pretrained`` needs besides weights and tokenizer.

    Of decoded motion, ``rigid_bones`` holds the bones at their mean length over the clip (``intermoe.data.bones``), and
    ``planted_feet`` keeps feet from sliding while its contact columns say that they stand (``intermoe.data.feet``); for
    the layout ``interhuman`` alone; the release does not.
    """

    name: str = "intermoe"
    fps: int = 30
    min_frames: int = 16
    max_frames: int = 300
    rigid_bones: bool = False
    planted_feet: bool = False
    vae: VAEConfig = field(default_factory=VAEConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        _require(self.fps >= 1, "fps", ">= 1", self.fps)
        _require(4 <= self.min_frames <= self.max_frames, "min_frames", "in [4, max_frames]", self.min_frames)
        for name in ("rigid_bones", "planted_feet"):
            ok = not getattr(self, name) or self.vae.layout == "interhuman"
            _require(ok, name, "false for every layout but 'interhuman'", getattr(self, name))
        _require(
            self.text.output_dim == self.denoiser.text_dim,
            "text.output_dim",
            f"denoiser.text_dim={self.denoiser.text_dim}",
            self.text.output_dim,
        )
