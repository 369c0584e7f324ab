r"""Causal-Skeletal variational autoencoder: motion of one person to 7 body parts, a quarter of the frames, and back.

::

    motion (B, T, frame) -> joints (B, T, J, C) -> [blocks, pool joints and time] x 2 -> mean, log_var (B, T/4, 7, C)
    latents (B, T', 7, C) -> [unpool joints and time, blocks] x 2 -> joints (B, 4T', J, C) -> motion (B, 4T', frame)

One residual block is ``x + dropout(conv(silu(conv(silu(x)))))``; the skeletal convolution at frame ``t``, joint ``j``:

.. math:: y_{tj} = W_o x_{tj} + \sum_i M_{ji} W_n x_{ti} + \sum_{a=0}^{k-1} \sum_{|b| \le k/2} K_{ab}\, x_{t-a,\,j+b}

with ``M`` the mean over a joint's bone neighbours and itself. Convolutions look back only and pooling never crosses
a group of 4 frames, so a frame depends on its own group and earlier ones: the decoder can stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from intermoe.motion.representation import ABSENT, FRAMES_TOGETHER, REPRESENTATIONS, Representation
from intermoe.systems.intermoe.config import VAEConfig

_MEAN_EPS = 1e-6

# One column per input frame, one row per output frame. Time is interpolated inside a latent frame only: across its
# border the next latent frame would be needed, which a causal decoder does not have yet.
_TIME_POOL = ((0.5, 0.5),)
_TIME_UNPOOL = (((1.0,), (1.0,)), ((1.0, 0.0), (0.75, 0.25), (0.25, 0.75), (0.0, 1.0)))


@dataclass(frozen=True)
class LatentDistribution:
    """Diagonal Gaussian posterior; ``mean`` and ``log_var`` are (B, T/4, 7, latent_dim)."""

    mean: Tensor
    log_var: Tensor

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """``mean + exp(log_var / 2) * noise``, differentiable in both; ``generator`` seeds noise that is not given."""
        if noise is None:
            noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + torch.exp(0.5 * self.log_var) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, averaged over all elements: a scalar."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - self.log_var - 1.0).mean()


class JointLinear(nn.Module):
    """One linear map per joint, stacked: (N, J, in) -> (J, N, out)."""

    def __init__(self, num_joints: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_joints, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_joints, out_features))
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight)


def _padded_slots(representation: Representation) -> tuple[list[list[int]], int]:
    """For each joint the running numbers of its features, filled up to the widest joint with the total count."""
    widths = [len(columns) for columns in representation.features]
    total, widest, start, slots = sum(widths), max(widths), 0, []
    for width in widths:
        slots.append([*range(start, start + width), *[total] * (widest - width)])
        start += width
    return slots, total


class JointEncoder(nn.Module):
    """Frame (N, frame) to joints (N, J, C): per joint Linear, SiLU, Linear.

    Joints have different numbers of features. The first layer's weights are stored without padding, one row per
    feature, and are gathered to a rectangular (J, widest, C) for one batched product.
    """

    slots: Tensor
    columns: Tensor

    def __init__(self, representation: Representation, dim: int) -> None:
        super().__init__()
        slots, total = _padded_slots(representation)
        flat = [
            representation.frame_size if column == ABSENT else column
            for columns in representation.features
            for column in columns
        ]
        columns = [[*flat, representation.frame_size][slot] for row in slots for slot in row]
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        bounds = torch.tensor([len(joint) ** -0.5 for joint in representation.features for _ in joint])
        self.weight = nn.Parameter((torch.rand(total, dim) * 2 - 1) * bounds[:, None])
        joint_bounds = torch.tensor([len(joint) ** -0.5 for joint in representation.features])
        self.bias = nn.Parameter((torch.rand(representation.skeleton.num_joints, dim) * 2 - 1) * joint_bounds[:, None])
        self.out = JointLinear(representation.skeleton.num_joints, dim, dim)

    def forward(self, frames: Tensor) -> Tensor:
        joints, width = self.slots.shape
        features = F.pad(frames, (0, 1)).index_select(1, self.columns).view(-1, joints, width)
        weight = F.pad(self.weight, (0, 0, 0, 1))[self.slots]
        hidden = torch.baddbmm(self.bias.unsqueeze(1), features.transpose(0, 1), weight)
        return self.out(F.silu(hidden).transpose(0, 1)).transpose(0, 1).contiguous()


class JointDecoder(nn.Module):
    """Joints (N, J, C) to frame (N, frame): per joint Linear, SiLU, Linear; features the frame lacks are dropped."""

    slots: Tensor
    rows: Tensor

    def __init__(self, representation: Representation, dim: int) -> None:
        super().__init__()
        slots, total = _padded_slots(representation)
        rows = [0] * representation.frame_size
        for joint, columns in enumerate(representation.features):
            for position, column in enumerate(columns):
                if column != ABSENT:
                    rows[column] = joint * len(slots[0]) + position
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.inner = JointLinear(representation.skeleton.num_joints, dim, dim)
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(total, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(total).uniform_(-bound, bound))

    def forward(self, joints: Tensor) -> Tensor:
        hidden = F.silu(self.inner(joints))
        weight = F.pad(self.weight, (0, 0, 0, 1))[self.slots]
        bias = F.pad(self.bias, (0, 1))[self.slots]
        features = torch.baddbmm(bias.unsqueeze(2), weight, hidden.transpose(1, 2))
        return features.flatten(0, 1).index_select(0, self.rows).t().contiguous()


class History:
    """The input frames that the convolutions of a stream look back on, in the order in which they run."""

    def __init__(self) -> None:
        self._frames: list[Tensor] = []
        self._next = 0

    def start_chunk(self) -> None:
        """Begin a new pass through the same convolutions."""
        self._next = 0

    def extend(self, x: Tensor, reach: int) -> Tensor:
        """``x`` (B, T, J, C) preceded by the ``reach`` frames seen before it, zeros at the start of the motion."""
        if self._next == len(self._frames):
            self._frames.append(x.new_zeros(x.shape[0], reach, *x.shape[2:]))
        extended = torch.cat([self._frames[self._next], x], dim=1)
        self._frames[self._next] = extended[:, x.shape[1] :].detach().clone()
        self._next += 1
        return extended


class SkeletalConv(nn.Module):
    """The skeletal convolution of the module's formula: (B, T, J, C) -> (B, T, J, C)."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.own = nn.Linear(dim, dim)
        self.neighbours = nn.Linear(dim, dim)
        self.temporal = nn.Conv2d(dim, dim, kernel_size)

    def forward(self, x: Tensor, neighbour_mean: Tensor, history: History) -> Tensor:
        batch, frames, joints, dim = x.shape
        reach, half = self.temporal.kernel_size[0] - 1, self.temporal.kernel_size[1] // 2
        # W_o is one more tap of the convolution, at the current frame and joint, and the rows of M sum to 1, so that
        # all three biases act alike: one product and two passes over the output less.
        kernel = self.temporal.weight + F.pad(self.own.weight[:, :, None, None], (half, half, reach, 0))
        bias = cast(Tensor, self.temporal.bias) + self.own.bias + self.neighbours.bias
        # this view is the channels-last layout, in which the convolution runs without copies
        extended = rearrange(history.extend(x, reach), "b t j c -> b c t j")
        out = rearrange(F.conv2d(extended, kernel, bias, padding=(0, half)), "b c t j -> b t j c").contiguous()
        neighbours = F.linear(x, self.neighbours.weight).view(-1, joints, dim)
        out.view(-1, joints, dim).baddbmm_(neighbour_mean.expand(batch * frames, joints, joints), neighbours)
        return out


class ResidualBlock(nn.Module):
    """Two skeletal convolutions, each after SiLU, around a skip connection."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.conv1 = SkeletalConv(config.latent_dim, config.kernel_size)
        self.conv2 = SkeletalConv(config.latent_dim, config.kernel_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, neighbour_mean: Tensor, history: History) -> Tensor:
        hidden = self.conv1(F.silu(x), neighbour_mean, history)
        hidden = self.conv2(F.silu(hidden), neighbour_mean, history)
        return x + self.dropout(hidden)


class ResidualStack(nn.ModuleList):
    """The residual blocks of one resolution, in sequence."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(ResidualBlock(config) for _ in range(config.num_blocks))

    def forward(self, x: Tensor, neighbour_mean: Tensor, history: History) -> Tensor:
        for block in self:
            x = block(x, neighbour_mean, history)
        return x


def _resample(x: Tensor, time: tuple[tuple[float, ...], ...], joints: Tensor) -> Tensor:
    """Apply ``time`` (frames out, frames in) to each group of frames and ``joints`` (J out, J in), in one product."""
    matrix = torch.kron(joints.new_tensor(time), joints)
    batch, frames, joints_in, dim = x.shape
    groups = x.reshape(-1, len(time[0]) * joints_in, dim)
    out = torch.bmm(matrix.expand(len(groups), *matrix.shape), groups)
    return out.view(batch, frames // len(time[0]) * len(time), joints.shape[0], dim)


class CausalSkeletalVAE(nn.Module):
    """Autoencoder of one person's normalised motion.

    A motion is float (B, T, 262) for the representation ``interhuman``, (B, T, 55, 12) for ``interx``, (B, T, 263) for
    ``humanml3d``, with ``T`` a multiple of ``downsampling``; latents are (B, T/4, 7, latent_dim).
    """

    downsampling = FRAMES_TOGETHER

    adjacency_0: Tensor
    adjacency_1: Tensor
    pool_0: Tensor
    pool_1: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.representation = REPRESENTATIONS[config.representation]
        self.latent_joints = self.representation.skeleton.latent_joints
        for level in range(2):
            self.register_buffer(f"adjacency_{level}", self.representation.skeleton.adjacency(level))
            self.register_buffer(f"pool_{level}", self.representation.skeleton.pool(level))
        self.joint_encoder = JointEncoder(self.representation, config.latent_dim)
        self.encoder = nn.ModuleList(ResidualStack(config) for _ in range(2))
        self.head = JointLinear(self.latent_joints, config.latent_dim, 2 * config.latent_dim)
        self.decoder = nn.ModuleList(ResidualStack(config) for _ in range(2))
        self.joint_decoder = JointDecoder(self.representation, config.latent_dim)

    def _neighbour_mean(self, level: int) -> Tensor:
        adjacency = (self.adjacency_0, self.adjacency_1)[level]
        return adjacency / (adjacency.sum(dim=1, keepdim=True) + _MEAN_EPS)

    def forward(self, motion: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, LatentDistribution]:
        """Encode, sample and decode: reconstruction of the shape of ``motion``, and the posterior."""
        posterior = self.encode(motion)
        return self.decode(posterior.sample(generator)), posterior

    def encode(self, motion: Tensor) -> LatentDistribution:
        """Posterior of ``motion``.

        Raises ``ValueError`` for a shape that is not (B, T, 262) or what the representation has, and if T is not 4, 8,
        12, ...
        """
        self._check_motion(motion)
        batch, frames = motion.shape[:2]
        joints = self.joint_encoder(motion.reshape(batch * frames, self.representation.frame_size))
        x = joints.view(batch, frames, self.representation.skeleton.num_joints, self.config.latent_dim)
        history = History()
        for level, pool in enumerate((self.pool_0, self.pool_1)):
            x = self.encoder[level](x, self._neighbour_mean(level), history)
            x = _resample(x, _TIME_POOL, pool)
        heads = rearrange(self.head(x.flatten(0, 1)), "part (b t) x -> b t part x", b=batch)
        mean, log_var = heads.chunk(2, dim=-1)
        return LatentDistribution(mean.contiguous(), log_var.contiguous())

    def decode(self, latents: Tensor) -> Tensor:
        """Motion with 4T' frames from ``latents`` (B, T', 7, latent_dim). Raises ``ValueError`` for another shape."""
        expected = (self.latent_joints, self.config.latent_dim)
        if latents.dim() != 4 or latents.shape[2:] != expected or 0 in latents.shape:
            raise ValueError(f"latents: expected (B, T', {expected[0]}, {expected[1]}), got {tuple(latents.shape)}")
        return self._decode(latents, History())

    def streaming_decoder(self) -> StreamingDecoder:
        """A decoder that takes one latent frame at a time and returns its 4 frames."""
        return StreamingDecoder(self)

    def _decode(self, x: Tensor, history: History) -> Tensor:
        for stack, level, time in zip(self.decoder, (1, 0), _TIME_UNPOOL, strict=True):
            members = ((self.pool_0, self.pool_1)[level] > 0).to(x.dtype)
            x = _resample(x, time, members.t().contiguous())
            x = stack(x, self._neighbour_mean(level), history)
        frames: Tensor = self.joint_decoder(x.flatten(0, 1))
        return frames.view(*x.shape[:2], *self.representation.frame_shape)

    def _check_motion(self, motion: Tensor) -> None:
        frame = self.representation.frame_shape
        if motion.shape[2:] != frame or 0 in motion.shape:
            wanted = ", ".join(map(str, frame))
            raise ValueError(
                f"motion: expected (B, T, {wanted}) for {self.representation.name}, got {tuple(motion.shape)}"
            )
        if motion.shape[1] % self.downsampling:
            raise ValueError(f"motion: expected a multiple of {self.downsampling} frames, got {motion.shape[1]}")


class StreamingDecoder:
    """Decodes a motion latent frame by latent frame; equal to ``CausalSkeletalVAE.decode`` of all of them.

    Keeps the last ``kernel_size - 1`` input frames of each convolution, whatever the length of the stream. ``vae`` must
    be in eval mode.
    """

    def __init__(self, vae: CausalSkeletalVAE) -> None:
        self._vae = vae
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next step begins a new motion, of any batch size."""
        self._history = History()
        self._batch: int | None = None

    @torch.no_grad()
    def step(self, latent: Tensor) -> Tensor:
        """The next 4 frames, (B, 4, 262) or what the representation has, from ``latent`` (B, 7, latent_dim).

        Raises ``ValueError`` for another shape or a batch size that changed since the stream began, ``RuntimeError``
        in training mode, whose dropout would differ between steps.
        """
        vae = self._vae
        if vae.training:
            raise RuntimeError("streaming decoder: call eval() on the autoencoder first, it is in training mode")
        expected = (vae.latent_joints, vae.config.latent_dim)
        if latent.dim() != 3 or latent.shape[1:] != expected or 0 in latent.shape:
            raise ValueError(f"latent: expected (B, {expected[0]}, {expected[1]}), got {tuple(latent.shape)}")
        if self._batch not in (None, latent.shape[0]):
            raise ValueError(
                f"latent: expected the batch size {self._batch} of this stream, got {latent.shape[0]}; reset() first"
            )
        self._batch = latent.shape[0]
        self._history.start_chunk()
        return vae._decode(latent.unsqueeze(1), self._history)
