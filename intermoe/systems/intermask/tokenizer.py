"""InterMask's tokeniser: one person's motion as a grid of codes, and back (Javed et al. 2025, section 3.1).

A motion is an image of one row per joint and one column per frame. Convolutions shrink it to 5 rows and a column for
every 4 frames, and every point of that grid becomes the nearest of the codebook's vectors:

    motion -> image (N, C, J, T) -> encoder -> features (N, code_dim, 5, T / 4) -> codes (N, 5, T / 4)
    codes -> codebook -> decoder -> image -> motion
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor, nn

from intermoe.motion.skeleton import BODY
from intermoe.ops.checks import check_tensor
from intermoe.systems.intermask.codebook import Codebook
from intermoe.systems.intermask.config import TokenizerConfig

DOWNSAMPLING = 4
NUM_PARTS = 5
_CONTACTS = 4


@dataclass(frozen=True)
class Image:
    """How the motion of a data set is seen: shape of a frame, rows and channels, and the strided convolutions.

    ``enlargements`` are the factors by which the decoder repeats rows; ``graph``: graph layers stand at both ends.
    """

    frame_shape: tuple[int, ...]
    rows: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    enlargements: tuple[Fraction, Fraction]
    graph: bool


IMAGES = {
    "interhuman": Image((262,), 22, 12, (4, 4), (2, 2), (Fraction(11, 5), Fraction(2)), graph=True),
    # 55 joints' rotations, and a row of translation and velocity
    "interx": Image((56, 6), 56, 6, (6, 4), (3, 2), (Fraction(7, 2), Fraction(33, 10)), graph=False),
}

# Which motions of a batch, and which of their frames, get messages in the graph layers.
HEARING = {
    "every_frame": (slice(None), slice(None)),
    "first_frame": (slice(None), slice(1)),
    "first_frame_of_batch": (slice(1), slice(1)),
    "none": (slice(0), slice(0)),
}


def motion_to_image(motion: Tensor, representation: str) -> Tensor:
    """Normalised motion (N, T, 262) or (N, T, 56, 6) -> (N, C, J, T).

    A joint of ``interhuman`` has 12 channels: position, velocity, rotation (zeros for the root). Contacts are left out.
    """
    if representation == "interx":
        return rearrange(motion, "n t j c -> n c j t")
    positions, velocities, rotations, _ = motion.split([66, 66, 126, _CONTACTS], dim=-1)
    rotations = nn.functional.pad(rotations.unflatten(-1, (21, 6)), (0, 0, 1, 0))
    joints = torch.cat([positions.unflatten(-1, (22, 3)), velocities.unflatten(-1, (22, 3)), rotations], dim=-1)
    return rearrange(joints, "n t j c -> n c j t")


def image_to_motion(image: Tensor, representation: str) -> Tensor:
    """The inverse of ``motion_to_image``; contacts come back as zeros, their mean before normalising."""
    joints = rearrange(image, "n c j t -> n t j c")
    if representation == "interx":
        return joints
    positions, velocities, rotations = joints.split([3, 3, 6], dim=-1)
    columns = [part.flatten(-2) for part in (positions, velocities, rotations[..., 1:, :])]
    return nn.functional.pad(torch.cat(columns, dim=-1), (0, _CONTACTS))


class SkeletonConv(nn.Module):
    """Graph layer over the joints of a frame (GraphSAGE with projection, Hamilton et al. 2017).

        out_i = W_l mean over neighbours j of relu(W x_j + b) + b_l + W_r x_i

    Frames without ``messages`` (see ``TokenizerConfig``) hear nothing of the neighbours: their mean is 0.
    """

    adjacency: Tensor

    def __init__(self, in_dim: int, out_dim: int, messages: str) -> None:
        super().__init__()
        self.messages = messages
        self.message = nn.Linear(in_dim, in_dim)
        self.neighbours = nn.Linear(in_dim, out_dim)
        self.own = nn.Linear(in_dim, out_dim, bias=False)
        connected = BODY.adjacency(0)
        connected = connected - torch.eye(len(connected))
        self.register_buffer("adjacency", connected / connected.sum(dim=1, keepdim=True), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, J, T) -> (N, out_dim, J, T)."""
        x = rearrange(image, "n c j t -> n t j c")
        out = self.own(x) + self.neighbours.bias
        motions, frames = HEARING[self.messages]
        out[motions, frames] += self._heard(x[motions, frames])
        return rearrange(out, "n t j c -> n c j t")

    def _heard(self, x: Tensor) -> Tensor:
        mean = self.adjacency @ nn.functional.relu(self.message(x))
        return nn.functional.linear(mean, self.neighbours.weight)


class ResidualBlock(nn.Module):
    """x + dropout(conv 1x1(relu(dilated conv 3x3(relu(x)))))."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, J, T) -> (N, width, J, T)."""
        inner = self.conv2(nn.functional.relu(self.conv1(nn.functional.relu(x))))
        return x + nn.functional.dropout(inner, self.dropout, self.training)


class Enlarge(nn.Module):
    """Nearest-neighbour enlargement: rows by ``factor`` (row r is source row floor(r / factor)), columns by 2."""

    def __init__(self, factor: Fraction) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, J, T) -> (N, C, floor(J * factor), 2 T)."""
        sources = [int(row / self.factor) for row in range(int(x.shape[2] * self.factor))]
        return x[:, :, sources].repeat_interleave(2, dim=3)


def _residual_blocks(config: TokenizerConfig) -> nn.Sequential:
    """Dilations fall: 3 then 1 for two blocks."""
    dilations = [config.dilation_growth**depth for depth in reversed(range(config.num_blocks))]
    return nn.Sequential(*(ResidualBlock(config.width, dilation, config.dropout) for dilation in dilations))


class Encoder(nn.Module):
    """Image -> features, one column for every 4."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        image, width = IMAGES[config.representation], config.width
        layers: list[nn.Module]
        if image.graph:
            graphs = [SkeletonConv(size, width, config.messages) for size in (image.channels, width)]
            layers = [graphs[0], nn.ReLU(), graphs[1], nn.ReLU()]
        else:
            layers = [nn.Conv2d(image.channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(width, width, image.kernel, image.stride, padding=1), _residual_blocks(config)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.code_dim, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, J, T) -> (N, code_dim, 5, T / 4)."""
        features: Tensor = self.layers(image)
        return features


class Decoder(nn.Module):
    """Code vectors -> image."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        image, width = IMAGES[config.representation], config.width
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, width, 3, padding=1), nn.ReLU()]
        for factor in image.enlargements:
            layers += [_residual_blocks(config), Enlarge(factor), nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        if image.graph:
            graphs = [SkeletonConv(width, size, config.messages) for size in (width, image.channels)]
            layers += [graphs[0], nn.ReLU(), graphs[1]]
        else:
            layers += [nn.Conv2d(width, image.channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, code_dim, 5, T / 4) -> (N, C, J, T)."""
        image: Tensor = self.layers(vectors)
        return image


@dataclass(frozen=True)
class Tokenized:
    """What training needs: motion decoded through drawn codes, the features, and their codes."""

    motion: Tensor
    features: Tensor
    codes: Tensor


class MotionTokenizer(nn.Module):
    """One person's normalised motion <-> codes (N, 5, T / 4) int64; code -1 stands for no vector and decodes as zeros.

    Motion is (N, T, 262) for the representation ``interhuman``, (N, T, 56, 6) for ``interx``; T is a multiple of 4.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = Codebook(config.num_codes, config.code_dim, config.codebook_decay)
        self.decoder = Decoder(config)

    def forward(self, motion: Tensor, uniforms: Tensor | None = None) -> Tokenized:
        """Motion through the codes and back; gradients pass the codes straight through.

        Args:
            motion: normalised.
            uniforms: (N, 5, T / 4, num_codes) in (0, 1), to draw codes with as training does; without them codes are
                the nearest ones.
        """
        features = self.features(motion)
        points = rearrange(features, "n c part t -> n part t c")
        codes = self.codebook.nearest(points)
        if uniforms is not None:
            codes = self.codebook.draw(points, uniforms, self.config.temperature)
        vectors = rearrange(self.codebook.lookup(codes), "n part t c -> n c part t")
        straight = features + (vectors - features).detach()
        return Tokenized(image_to_motion(self.decoder(straight), self.config.representation), features, codes)

    def features(self, motion: Tensor) -> Tensor:
        """Normalised motion -> features (N, code_dim, 5, T / 4) before they are quantised."""
        shape = IMAGES[self.config.representation].frame_shape
        size = check_tensor("motion", motion, ("N", "T", *shape))
        if size["T"] < DOWNSAMPLING or size["T"] % DOWNSAMPLING:
            raise ValueError(f"motion: expected a multiple of {DOWNSAMPLING} frames, got {size['T']}")
        features: Tensor = self.encoder(motion_to_image(motion, self.config.representation))
        return features

    def encode(self, motion: Tensor) -> Tensor:
        """Normalised motion -> the nearest codes (N, 5, T / 4) int64."""
        return self.codebook.nearest(rearrange(self.features(motion), "n c part t -> n part t c"))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, 5, T / 4), each in [-1, num_codes) -> normalised motion."""
        check_tensor("codes", codes, ("N", NUM_PARTS, "T / 4"))
        vectors = rearrange(self.codebook.lookup(codes), "n part t c -> n c part t")
        return image_to_motion(self.decoder(vectors), self.config.representation)
