"""InterMoEPipeline: a text encoder, a denoiser and an autoencoder that belong together; loading and saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intermoe.diffusion import build_scheduler, sample
from intermoe.files import replacing
from intermoe.motion.bones import with_rigid_bones
from intermoe.motion.feet import with_planted_feet
from intermoe.motion.statistics import Statistics
from intermoe.nn.init import SkipRandomInit
from intermoe.pipeline import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, PipelineResult, model_folder
from intermoe.systems.intermoe.config import PipelineConfig
from intermoe.systems.intermoe.denoiser import Denoiser
from intermoe.systems.intermoe.vae import CausalSkeletalVAE
from intermoe.text.build import build_text_encoder
from intermoe.text.protocol import TextEncoder


class InterMoEPipeline:
    """A text encoder, a denoiser and an autoencoder that belong together.

    Args:
        config: the model's configuration. vae, denoiser, text_encoder: its parts. statistics: of its motion columns.
    """

    def __init__(
        self,
        config: PipelineConfig,
        vae: CausalSkeletalVAE,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        statistics: Statistics,
    ) -> None:
        self.config = config
        self.representation = vae.representation
        self.vae = vae.eval()
        self.denoiser = denoiser.eval()
        self.text_encoder = text_encoder.eval()
        self.statistics = statistics

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, *, device: str | torch.device = "cpu") -> InterMoEPipeline:
        """Load a model folder, or a model shipped with the package by its name (``"salsa"``). Never unpickles.

        Raises:
            FileNotFoundError: neither a folder with a model nor a shipped name; lists the shipped ones.
            ValueError: a file of the model is broken or does not fit the configuration; names file and key.
        """
        folder = model_folder(path_or_name)
        config = PipelineConfig.load(folder / CONFIG_FILE)
        tokenizer = folder / TOKENIZER_FILE
        content = tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None
        with SkipRandomInit():  # every weight is read below
            text_encoder = build_text_encoder(config.text, content)
            vae, denoiser = CausalSkeletalVAE(config.vae), Denoiser(config.denoiser)
        try:
            tensors = load_file(folder / WEIGHTS_FILE)
        except Exception as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: not a readable safetensors file: {error}") from error
        for name, module in (("vae", vae), ("denoiser", denoiser), ("text", text_encoder)):
            _load_part(module, name, tensors, folder / WEIGHTS_FILE)
        try:
            statistics = Statistics(tensors.pop("statistics.mean").numpy(), tensors.pop("statistics.std").numpy())
        except KeyError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: missing key {error}") from error
        if tensors:
            raise ValueError(f"{folder / WEIGHTS_FILE}: unexpected keys {sorted(tensors)}")
        return cls(config, vae, denoiser, text_encoder, statistics).to(device)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and, for an own tokenizer, tokenizer.json; each whole or not at all.

        Args:
            folder: made if absent. dtype: storage type of the weights (``torch.float16`` halves the file); the
                statistics and the selection biases stay in float32. Loading gives float32 weights in any case.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "statistics.mean": torch.tensor(self.statistics.mean),
            "statistics.std": torch.tensor(self.statistics.std),
        }
        for name, module in self._parts().items():
            for key, value in module.state_dict().items():
                narrow = dtype is not None and value.is_floating_point() and not key.endswith("selection_bias")
                tensors[f"{name}.{key}"] = value.detach().cpu().to(dtype if narrow else value.dtype).contiguous()
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        if self.text_encoder.tokenizer_json is not None:
            with replacing(folder / TOKENIZER_FILE) as temporary:
                temporary.write_text(self.text_encoder.tokenizer_json, encoding="utf-8")
        with replacing(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to(self, device: str | torch.device) -> InterMoEPipeline:
        """Move all parts to a device."""
        for module in self._parts().values():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        num_frames: int = 210,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        seed: int = 0,
        scheduler: str = "ddim",
        progress: Callable[[int, int], None] | None = None,
    ) -> PipelineResult:
        """Generate one motion for each prompt.

        Args:
            prompts: one or several descriptions, none empty.
            num_frames: length in frames, in [min_frames, max_frames] of the model.
            num_inference_steps: solver steps. guidance_scale: >= 1, 1 for no guidance.
            seed: prompt i is drawn with seed + i, whatever else is in the call.
            scheduler: one of ``intermoe.diffusion.SCHEDULERS``.
            progress: called as ``progress(steps_done, steps)``.

        Raises:
            ValueError: a value outside its range, named.
        """
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        self.check(prompts, num_frames)
        seeds = tuple(seed + i for i in range(len(prompts)))
        condition = self.text_encoder(prompts)
        latent_frames = -(-num_frames // self.vae.downsampling)
        latents = sample(
            self.denoiser,
            condition,
            (len(prompts), latent_frames, self.representation.persons, self.config.denoiser.input_dim),
            scheduler=build_scheduler(scheduler, self.config.diffusion),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            latent_scale=self.config.diffusion.latent_scale,
            guidance_until=self.config.diffusion.guidance_until,
            generators=[torch.Generator().manual_seed(s) for s in seeds],
            callback=progress,
        )
        motion = self.decode(latents)[:, :, :num_frames]
        joints = self.representation.joints(motion).contiguous()
        return PipelineResult(joints, motion.contiguous(), prompts, seeds, self.config.fps)

    def encode(self, motion: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Motion (B, T, P, ...), T a multiple of 4, to latents (B, T/4, P, X): the mean, or a sample if seeded."""
        persons = motion.shape[2]
        normed = self.statistics.normalise(motion).transpose(1, 2).flatten(0, 1)
        posterior = self.vae.encode(normed)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.flatten(2).unflatten(0, (-1, persons)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, T', P, X) to motion (B, P, 4T', ...), float32 on CPU."""
        persons = latents.shape[2]
        parts = latents.transpose(1, 2).flatten(0, 1).unflatten(-1, (self.vae.latent_joints, -1))
        motion = self.statistics.denormalise(self.vae.decode(parts).float().cpu())
        if self.config.rigid_bones:
            motion = with_rigid_bones(motion)
        if self.config.planted_feet:
            motion = with_planted_feet(motion)
        return motion.unflatten(0, (-1, persons))

    def check(self, prompts: Sequence[str], num_frames: int) -> None:
        """Raise ``ValueError`` for what ``__call__`` would refuse, before any work."""
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError(f"prompts: a prompt must not be empty, got {prompt!r}")
        low, high = self.config.min_frames, self.config.max_frames
        if not low <= num_frames <= high:
            raise ValueError(f"num_frames: must be in [{low}, {high}] for this model, got {num_frames}")

    def _parts(self) -> dict[str, nn.Module]:
        return {"vae": self.vae, "denoiser": self.denoiser, "text": self.text_encoder}


def _load_part(module: nn.Module, name: str, tensors: dict[str, Tensor], path: Path) -> None:
    own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
    expected = module.state_dict()
    for key, value in expected.items():
        if key not in own:
            raise ValueError(f"{path}: missing key '{name}.{key}'")
        if own[key].shape != value.shape:
            raise ValueError(
                f"{path}: '{name}.{key}' must have shape {tuple(value.shape)}, got {tuple(own[key].shape)}"
            )
    unexpected = sorted(own.keys() - expected.keys())
    if unexpected:
        raise ValueError(f"{path}: unexpected keys {[f'{name}.{key}' for key in unexpected]}")
    module.load_state_dict(own)
