"""Training loss and sampling loop; the schedules and solvers are diffusers'.

Cosine schedule (Nichol and Dhariwal 2021), the network predicts the clean latents, classifier-free guidance
(Ho and Salimans 2022): estimate = scale * conditional + (1 - scale) * unconditional, unconditional = zero text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor

from intermoe.config import Config, _require, check_guidance

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

SCHEDULERS = ("ddim", "dpmsolver++", "unipc", "ddpm")
LAST_LEVEL = 0.03
"""Where in the schedule the last of distilled steps is."""


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """Noise schedule (cosine, Nichol and Dhariwal 2021), conditioning dropout and weighting of the training loss.

    ``snr_gamma`` weighs a timestep's loss by 1 + min(signal-to-noise ratio, snr_gamma); 0 is the plain loss.
    ``latent_scale`` multiplies the latents before noise is added to them, ``timestep_shift`` above 1 draws more noisy
    timesteps; ``guidance_until`` is the share of the schedule below which sampling is not guided (see
    ``intermoe.diffusion``). The release has 1, 1 and 0. ``loss_std_floor`` above 0 divides the squared error along each
    principal direction of the latents by its standard deviation, or by the floor (``intermoe.train.latents``).
    ``scale_input`` brings what the network sees to unit variance at every level (``scaled_input``); not in the release.
    """

    num_train_timesteps: int = 1000
    max_beta: float = 0.999
    condition_dropout: float = 0.1
    snr_gamma: float = 0.0
    latent_scale: float = 1.0
    timestep_shift: float = 1.0
    guidance_until: float = 0.0
    loss_std_floor: float = 0.0
    scale_input: bool = False

    def __post_init__(self) -> None:
        _require(self.latent_scale > 0.0, "latent_scale", "> 0", self.latent_scale)
        _require(0.0 <= self.guidance_until <= 1.0, "guidance_until", "a value in [0, 1]", self.guidance_until)
        _require(self.timestep_shift > 0.0, "timestep_shift", "> 0", self.timestep_shift)
        _require(self.snr_gamma >= 0.0, "snr_gamma", ">= 0", self.snr_gamma)
        _require(self.loss_std_floor >= 0.0, "loss_std_floor", ">= 0", self.loss_std_floor)
        _require(self.num_train_timesteps >= 1, "num_train_timesteps", ">= 1", self.num_train_timesteps)
        _require(0.0 < self.max_beta < 1.0, "max_beta", "a value in (0, 1)", self.max_beta)
        _require(0.0 <= self.condition_dropout <= 1.0, "condition_dropout", "a value in [0, 1]", self.condition_dropout)


@dataclass(frozen=True, eq=False)
class KnownLatents:
    """Latents (B, P, T', X) that sampling keeps ``where`` (B, P, T') says so.

    ``by_levels``: the network is told, by a level of 0 for what is known, and sees it clean; it has to be trained for
    that. Otherwise it sees it with the noise of the step, like the rest (replacement, as Song et al. 2021 impute).
    ``resampling`` is then how often each step is taken: but for the last time its result is noised back to where it
    began, so that the rest can follow what is known (RePaint, Lugmayr et al. 2022).
    """

    latents: Tensor
    where: Tensor
    by_levels: bool
    resampling: int = 1

    @property
    def passes(self) -> int:
        """How often a step is taken."""
        return 1 if self.by_levels else self.resampling

    def kept(self, values: Tensor, scale: float = 1.0) -> Tensor:
        """``values`` (B, P, T', X) with ``scale`` times what is known."""
        return torch.where(self.where[..., None], scale * self.latents.to(values), values)

    @cached_property
    def known_runs(self) -> Tensor:
        """``where`` by runs; found once, as it reads the device."""
        return by_runs(self.where)

    def levels(self, timestep: Tensor) -> Tensor:
        """Timesteps (B, P, K), 0 for what is known and at least 1 elsewhere."""
        return timestep.clamp(min=1).expand(self.known_runs.shape).masked_fill(self.known_runs, 0)


@dataclass(frozen=True)
class Sampler:
    """How latents are made of noise: the solver, how many steps it takes, and how strongly they are guided.

    Args:
        diffusion: the model's own: schedule, scale of latents and input, and where guidance ends.
        scheduler: one of ``SCHEDULERS``.
        num_inference_steps: in [1, num_train_timesteps].
        guidance_scale: >= 1; 1 calls the network on the condition alone.
        timesteps: of DDIM, the noisiest first; by default its own.

    Raises:
        ValueError: for a value outside its range, naming it. ModuleNotFoundError: as ``build_scheduler``.
    """

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    scheduler: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 3.5
    timesteps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        high = self.diffusion.num_train_timesteps
        if not 1 <= self.num_inference_steps <= high:
            raise ValueError(f"num_inference_steps: expected a value in [1, {high}], got {self.num_inference_steps}")
        if self.timesteps:
            falling = all(one > other for one, other in pairwise([high, *self.timesteps, -1]))
            if len(self.timesteps) != self.num_inference_steps or not falling:
                expected = f"{self.num_inference_steps} falling numbers in [0, {high})"
                raise ValueError(f"timesteps: expected {expected}, got {self.timesteps}")
            if self.scheduler != "ddim":
                raise ValueError(f"scheduler: expected 'ddim' with own timesteps, got {self.scheduler!r}")
        check_guidance(self.guidance_scale)

    @cached_property
    def solver(self) -> SchedulerMixin:
        """The scheduler itself."""
        if not self.timesteps:
            return build_scheduler(self.scheduler, self.diffusion)
        return _diffusers().DPMSolverMultistepScheduler(
            **_shared(self.diffusion), algorithm_type="dpmsolver++", solver_order=1, final_sigmas_type="zero"
        )

    def start(self) -> SchedulerMixin:
        """The scheduler before its first step. Its timesteps are the host's, which decides by them without a wait."""
        if self.timesteps:
            self.solver.set_timesteps(timesteps=list(self.timesteps))
        else:
            self.solver.set_timesteps(self.num_inference_steps)
        return self.solver

    def is_guided(self, timestep: int) -> bool:
        """Whether the estimate at a timestep is a guided one."""
        last = self.diffusion.guidance_until * self.diffusion.num_train_timesteps
        return self.guidance_scale > 1 and timestep >= last


@dataclass(frozen=True)
class GuidedApart:
    """A denoiser that is called otherwise at guided timesteps than at the others; each as ``Denoiser.forward``."""

    guided: Callable[..., Tensor]
    unguided: Callable[..., Tensor]


def distilled(diffusion: DiffusionConfig, num_inference_steps: int, guidance_scale: float) -> Sampler:
    """The sampler of distilled steps: DDIM's, at equal distances from the noisiest timestep on.

    But the last is at ``LAST_LEVEL`` of the schedule: where more noise is left what is estimated trembles.
    """
    train, number = diffusion.num_train_timesteps, num_inference_steps
    timesteps = [train - 1 - step * train // number for step in range(number)]
    if number > 1:
        timesteps[-1] = min(timesteps[-1], int(LAST_LEVEL * train))
    return Sampler(diffusion, "ddim", number, guidance_scale, tuple(timesteps))


def by_runs(values: Tensor) -> Tensor:
    """Values (B, P, T') as (B, P, K) for the smallest K dividing T' whose runs of frames are each of one value.

    A denoiser's work for noise levels grows with K, so levels are told by as few runs as can tell them.
    """
    frames = values.shape[2]
    counts = (count for count in range(1, frames + 1) if frames % count == 0)
    candidates = (values.unflatten(2, (count, frames // count)) for count in counts)
    return next(runs[..., 0] for runs in candidates if (runs == runs[..., :1]).all())


def build_scheduler(name: str, config: DiffusionConfig) -> SchedulerMixin:
    """A diffusers scheduler of the given kind on the model's noise schedule.

    Args:
        name: one of ``SCHEDULERS``. DDIM with eta 0 is the release's sampler; DDPM is stochastic.

    Raises:
        ValueError: unknown name. ModuleNotFoundError: diffusers is not installed; says how to install it.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler: expected one of {SCHEDULERS}, got {name!r}")
    diffusers, shared = _diffusers(), _shared(config)
    if name == "ddim":
        return diffusers.DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    if name == "dpmsolver++":
        return diffusers.DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++")
    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(**shared)
    return diffusers.DDPMScheduler(**shared, clip_sample=False)


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("diffusers is needed for diffusion: pip install 'intermoe[generate]'") from error
    return diffusers


def _shared(config: DiffusionConfig) -> dict[str, Any]:
    """What every solver is told of a model's schedule."""
    return {
        "num_train_timesteps": config.num_train_timesteps,
        "trained_betas": _cosine_betas(config),
        "prediction_type": "sample",
        "timestep_spacing": "leading",
    }


def _cosine_betas(config: DiffusionConfig) -> Any:
    from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar

    return betas_for_alpha_bar(config.num_train_timesteps, max_beta=config.max_beta).numpy()


def shifted_timesteps(shares: Tensor, num_train_timesteps: int, shift: float) -> Tensor:
    """Timesteps at ``shares`` u in [0, 1) of the schedule, moved to s u / (1 + (s - 1) u) (Esser et al. 2024).

    Of uniform shares a ``shift`` s above 1 makes more noisy timesteps, where the text decides; 1 leaves them uniform.

    Returns:
        int64, the shape of ``shares``, in [0, num_train_timesteps).
    """
    return (
        (num_train_timesteps * (shift * shares / (1 + (shift - 1) * shares))).long().clamp(max=num_train_timesteps - 1)
    )


class ErrorMetrics(NamedTuple):
    """What the errors of estimates are multiplied by before they are squared."""

    every: Tensor | None = None
    """(X, X), of every error (``intermoe.train.latents.error_metric``)"""
    known: Tensor | None = None
    """(X, Y); in samples of which something is known, the mean over Y of these squares is added
    (``intermoe.train.latents.position_map``)"""


PLAIN_METRICS = ErrorMetrics()
PLAIN = DiffusionConfig(condition_dropout=0.0)
"""A loss that drops no text and weighs every sample alike."""


def training_loss(
    denoiser: Callable[..., Tensor],
    latents: Tensor,
    text_condition: Tensor,
    mask: Tensor | None,
    *,
    scheduler: SchedulerMixin,
    diffusion: DiffusionConfig = PLAIN,
    metrics: ErrorMetrics = PLAIN_METRICS,
    generator: torch.Generator | None = None,
    timesteps: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Masked mean squared error of the clean latents' estimate at random timesteps.

    Args:
        denoiser: called as ``Denoiser.forward``.
        latents: (B, P, T', X) clean latents.
        text_condition: (B, C).
        mask: (B, T') bool, True = valid, or ``None``. What padded frames hold changes nothing.
        scheduler: from ``build_scheduler``; adds the noise.
        diffusion: what of the loss the model's configuration decides; by default nothing.

            - Whole rows of the text are zeroed with probability ``condition_dropout``.
            - ``snr_gamma`` weighs each sample by 1 + min(SNR, snr_gamma), SNR = alpha_bar / (1 - alpha_bar) of its
              timestep. The truncation is that of Hang et al. 2023; at 0 the loss is plain. A larger value asks for
              precision where little noise is left, which decides over jitter.
            - Noise is added to ``latent_scale * latents``; the estimate stays that of the latents themselves. Below 1
              it drowns what many channels and frames agree on, which noise of the same variance leaves legible at
              almost every timestep, so that nothing is left for the text to decide (Chen 2023, input scaling).
            - With ``scale_input`` the network sees ``scaled_input`` of the noisy latents.
        metrics: what errors are multiplied by before they are squared.
        generator: source of timesteps, noise and dropout (on the device of ``latents``).
        timesteps: (B,), or (B, P, K), one for each person and each of K equal runs of frames; K divides T'. Of the
            latter 0 marks what is known: it gets no noise and does not count. noise: like ``latents``. Given ones
            replace random ones.

    Returns:
        Scalar: (weighted) mean over persons and valid frames, but for known ones, of the mean over channels.
    """
    batch, device = latents.shape[0], latents.device
    if timesteps is None:
        high = int(scheduler.config.num_train_timesteps)
        timesteps = torch.randint(high, (batch,), generator=generator, device=device)
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator, device=device, dtype=latents.dtype)
    if diffusion.condition_dropout > 0:
        keep = torch.rand(batch, generator=generator, device=device) >= diffusion.condition_dropout
        text_condition = text_condition * keep[:, None]
    padding = None if mask is None else ~mask[:, None, :, None]
    if padding is not None:
        latents, noise = latents.masked_fill(padding, 0.0), noise.masked_fill(padding, 0.0)
    noisy = _noised(scheduler, diffusion.latent_scale * latents, noise, timesteps)
    if diffusion.scale_input:
        noisy = scaled_input(scheduler, noisy, timesteps, diffusion.latent_scale)
    estimate = denoiser(noisy, timesteps, text_condition, mask)
    error = (estimate - latents).float()
    if padding is not None:
        error = error.masked_fill(padding, 0.0)
    squares = (error if metrics.every is None else error @ metrics.every).square().mean(dim=3)
    if timesteps.dim() == 3:
        if metrics.known is not None:
            known = (timesteps == 0).flatten(1).any(dim=1)[:, None, None]
            squares = squares + known * (error @ metrics.known).square().mean(dim=3)
        return _mean_where_noisy(squares, timesteps, mask, scheduler, diffusion.snr_gamma)
    per_frame = squares.mean(dim=1)
    if diffusion.snr_gamma > 0:
        per_frame = per_frame * _snr_weight(scheduler, timesteps, diffusion.snr_gamma)[:, None]
    if mask is None:
        return per_frame.mean()
    return per_frame.sum() / mask.sum().clamp(min=1)


def scaled_input(scheduler: SchedulerMixin, noisy: Tensor, timesteps: Tensor, latent_scale: float) -> Tensor:
    """Noisy latents x_t (B, P, T', X) over their standard deviation, sqrt(alpha_bar s^2 + 1 - alpha_bar) for latents of
    unit variance times s = ``latent_scale`` (Chen 2023, section 2.3; c_in of Karras et al. 2022).

    Without it what is clean is seen s times as faint as noise, so that a network hardly heeds frames that are known.

    Args:
        timesteps: (B,), or (B, P, K), of which 0 marks what is clean.
    """
    return _scaled_input(scheduler.alphas_cumprod.to(noisy.device), noisy, timesteps, latent_scale)


def _scaled_input(table: Tensor, noisy: Tensor, timesteps: Tensor, latent_scale: float) -> Tensor:
    alpha_bar = table[timesteps]
    if timesteps.dim() == 1:
        variance = (alpha_bar * latent_scale**2 + 1 - alpha_bar)[:, None, None]
    else:
        alpha_bar = alpha_bar.masked_fill(timesteps == 0, 1.0)
        variance = _per_frame(alpha_bar * latent_scale**2 + 1 - alpha_bar, noisy.shape[2])
    return noisy * variance.rsqrt()[..., None].to(noisy.dtype)


def _noised(scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Latents (B, P, T', X) at timesteps (B,), or (B, P, K) whose 0 leaves them as they are."""
    if timesteps.dim() == 1:
        return cast(Tensor, scheduler.add_noise(latents, noise, timesteps))
    runs = (timesteps.numel(), latents.shape[2] // timesteps.shape[2], latents.shape[3])
    noisy = scheduler.add_noise(latents.reshape(runs), noise.reshape(runs), timesteps.flatten()).view(latents.shape)
    return torch.where(_per_frame(timesteps == 0, latents.shape[2])[..., None], latents, noisy)


def _per_frame(runs: Tensor, frames: int) -> Tensor:
    """(B, P, K) as (B, P, T')."""
    return runs.repeat_interleave(frames // runs.shape[2], dim=2)


def _snr_weight(scheduler: SchedulerMixin, timesteps: Tensor, snr_gamma: float) -> Tensor:
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return cast(Tensor, 1 + (alpha_bar / (1 - alpha_bar)).clamp(max=snr_gamma))


def _mean_where_noisy(
    squares: Tensor, timesteps: Tensor, mask: Tensor | None, scheduler: SchedulerMixin, snr_gamma: float
) -> Tensor:
    """The loss of squared errors (B, P, T') at timesteps (B, P, K)."""
    weight = _per_frame(timesteps > 0, squares.shape[2]).to(squares.dtype)
    if mask is not None:
        weight = weight * mask[:, None]
    count = weight.sum().clamp(min=1)
    if snr_gamma > 0:
        weight = weight * _per_frame(_snr_weight(scheduler, timesteps, snr_gamma), squares.shape[2])
    return (squares * weight).sum() / count


@torch.no_grad()
def sample(
    denoiser: Callable[..., Tensor] | GuidedApart,
    text_condition: Tensor,
    shape: tuple[int, int, int, int],
    sampler: Sampler,
    *,
    mask: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    noise: Tensor | None = None,
    known: KnownLatents | None = None,
    steer: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents from noise. Condition and unconditional run as one doubled batch; guidance_scale 1 skips the latter.

    Timesteps below ``guidance_until`` of the schedule are not guided (Kynkäänniemi et al. 2024): there the text has
    decided already, and guidance exaggerates details instead. ``latent_scale`` and ``scale_input`` are as in training.
    Which timestep it is the host knows: the loop itself reads nothing of the device.

    Args:
        denoiser: called as ``Denoiser.forward``.
        text_condition: (B, C).
        shape: (B, P, T', X) of the latents.
        mask: (B, T') bool, True = valid, or ``None``. What noise holds at padded frames changes nothing.
        generators: one CPU generator per sample, so that a sample does not depend on the rest of its batch.
        noise: initial noise in place of one drawn from ``generators``.
        known: latents that are given and stay. The estimate of them is always what they are, so that every solver
            brings them to the level of each step.
        steer: what is made of each estimate of the clean latents, (B, P, T', X) to the same.
        callback: called as ``callback(steps_done, num_inference_steps)``.

    Returns:
        (B, P, T', X), the last estimate of the clean latents.
    """
    latent_scale = sampler.diffusion.latent_scale
    device, dtype = text_condition.device, text_condition.dtype
    if noise is None:
        if generators is None or len(generators) != shape[0]:
            raise ValueError(f"generators: expected one for each of the {shape[0]} samples, got {generators!r}")
        noise = torch.cat([torch.randn((1, *shape[1:]), generator=g) for g in generators])
    wide = torch.promote_types(dtype, torch.float32)
    x = noise.to(device=device, dtype=wide)
    if mask is not None:
        x = x.masked_fill(~mask[:, None, :, None], 0.0)
    both = with_none(text_condition)
    apart = denoiser if isinstance(denoiser, GuidedApart) else GuidedApart(denoiser, denoiser)
    scheduler = sampler.start()
    guided = [sampler.is_guided(timestep) for timestep in scheduler.timesteps.tolist()]
    # what the network is told of the schedule, sent to the device once
    table, alphas = scheduler.timesteps.to(device), scheduler.alphas_cumprod.to(device)
    if known is not None:
        first = table[:1].expand(shape[0])
        x = torch.where(known.where[..., None], scheduler.add_noise(known.kept(x, latent_scale), x, first), x)

    def estimated(x: Tensor, step: int) -> Tensor:
        seen, levels = x, table[step].expand(shape[0])
        if known is not None and known.by_levels:
            seen, levels = known.kept(x, latent_scale), known.levels(table[step])
        if sampler.diffusion.scale_input:
            seen = _scaled_input(alphas, seen, levels, latent_scale)
        seen = seen.to(dtype)
        if guided[step]:
            estimate = guided_estimate(apart.guided, seen, levels, both, mask, sampler.guidance_scale)
        else:
            estimate = apart.unguided(seen, levels, text_condition, mask).to(wide)
        if steer is not None:
            estimate = steer(estimate)
        return estimate if known is None else known.kept(estimate)

    following = [*scheduler.timesteps[1:], None]
    for step, (timestep, after) in enumerate(zip(scheduler.timesteps, following, strict=True)):
        estimate = estimated(x, step)
        for _ in range(0 if known is None or after is None else known.passes - 1):
            fresh = _fresh_noise(generators, mask, shape).to(x)
            x = _noised_back(scheduler, x, latent_scale * estimate, timestep, after, fresh)
            estimate = estimated(x, step)
        x = _stepped(scheduler, latent_scale * estimate, timestep, x, mask, generators)
        if callback is not None:
            callback(step + 1, sampler.num_inference_steps)
    x = x / latent_scale
    return x if known is None else known.kept(x)


def with_none(text_condition: Tensor) -> Tensor:
    """Condition (B, C) and, after it, none: (2B, C)."""
    return torch.cat([text_condition, torch.zeros_like(text_condition)])


def guided_estimate(
    denoiser: Callable[..., Tensor],
    seen: Tensor,
    timesteps: Tensor,
    both: Tensor,
    mask: Tensor | None,
    guidance_scale: float,
) -> Tensor:
    """The guided estimate, at least in float32, of what the network sees, (B, P, T', X); one call of twice as many.

    Args:
        both: (2B, C), from ``with_none``. timesteps, mask: as ``Denoiser.forward`` takes them.
    """
    doubled = None if mask is None else mask.repeat(2, 1)
    estimates = denoiser(torch.cat([seen, seen]), torch.cat([timesteps, timesteps]), both, doubled)
    conditional, unconditional = estimates.to(torch.promote_types(estimates.dtype, torch.float32)).chunk(2)
    return guidance_scale * conditional + (1 - guidance_scale) * unconditional


def _fresh_noise(
    generators: Sequence[torch.Generator] | None, mask: Tensor | None, shape: tuple[int, int, int, int]
) -> Tensor:
    """Noise of ``shape``, a sample's from its own generator and for its valid frames alone."""
    if generators is None:
        raise ValueError("generators: expected one for each sample where steps are resampled, got None")
    batch, persons, frames, width = shape
    counts = [frames] * batch if mask is None else mask.sum(dim=1).tolist()
    noise = torch.zeros(shape)
    for row, count, generator in zip(noise, counts, generators, strict=True):
        drawn = torch.randn((count, persons, width), generator=generator)
        row[:, :count] = rearrange(drawn, "t p x -> p t x")
    return noise


def _noised_back(
    scheduler: SchedulerMixin, x: Tensor, clean: Tensor, timestep: Tensor, after: Tensor, noise: Tensor
) -> Tensor:
    """``x`` at ``timestep`` taken to ``after`` by DDIM's step to the estimate ``clean``, and back by fresh noise."""
    share = scheduler.alphas_cumprod.to(x)
    here, there = share[timestep], share[after]
    error = (x - here.sqrt() * clean) / (1 - here).sqrt()
    less = there.sqrt() * clean + (1 - there).sqrt() * error
    return (here / there).sqrt() * less + (1 - here / there).clamp(min=0).sqrt() * noise


def _stepped(
    scheduler: SchedulerMixin,
    estimate: Tensor,
    timestep: Tensor,
    x: Tensor,
    mask: Tensor | None,
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    """One step of the solver. Noise that it draws is a sample's own, for its valid frames and no others."""
    if generators is None or not _is_stochastic(scheduler):
        return cast(Tensor, scheduler.step(estimate, timestep, x).prev_sample)
    if mask is None:
        return cast(Tensor, scheduler.step(estimate, timestep, x, generator=list(generators)).prev_sample)
    x = x.clone()
    for row, own, valid, generator in zip(x, estimate, mask, generators, strict=True):
        row[:, valid] = scheduler.step(own[:, valid], timestep, row[:, valid], generator=generator).prev_sample
    return x


def _is_stochastic(scheduler: SchedulerMixin) -> bool:
    return type(scheduler).__name__ == "DDPMScheduler"
