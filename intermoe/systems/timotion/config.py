"""Configuration of TIMotion's network."""

from __future__ import annotations

from dataclasses import dataclass, field

from intermoe.config import _require
from intermoe.systems.intergen.config import InterGenConfig, RawMotionConfig


@dataclass(frozen=True)
class TIMotionConfig(InterGenConfig):
    """Sizes of TIMotion's network; the defaults are the published ones.

    Attention and feed-forward run at width 2 ``dim``. ``local_patterns`` adds the convolution branch (LPA), of
    ``conv_blocks`` blocks with dilations ``dilation_rate`` ** index. The dropout of a layer grows with its index i:
    ``dropout`` * i / ``num_layers``.

    With ``mask_padding`` padded frames are also zero before every convolution along time, so that results do not depend
    on padding. The published network zeroes the input of the branch alone; what its normalisation makes of padding then
    reaches the valid frames beside it.
    """

    dim: int = 512
    num_layers: int = 5
    num_heads: int = 16
    local_patterns: bool = True
    conv_blocks: int = 1
    dilation_rate: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.conv_blocks >= 1, "conv_blocks", ">= 1", self.conv_blocks)
        _require(self.dilation_rate >= 1, "dilation_rate", ">= 1", self.dilation_rate)

    @property
    def attention_width(self) -> int:
        """Two persons' frames side by side."""
        return 2 * self.dim


@dataclass(frozen=True)
class TIMotionModelConfig(RawMotionConfig):
    """A model of TIMotion."""

    system: str = "timotion"
    name: str = "timotion"
    network: TIMotionConfig = field(default_factory=TIMotionConfig)
