"""Matrices of four bits a weight: a frozen encoder that fits into the file of a small model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 64
_HIGH = 7


class PackedMatrix(nn.Module):
    """A frozen matrix (N, D): integers -7 to 7, two a byte, times a float16 scale for each ``GROUP`` of a row.

    D is a multiple of ``GROUP``. Its error is at most half of the largest weight of the group over 7.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        if columns % GROUP != 0:
            raise ValueError(f"columns: expected a multiple of {GROUP}, got {columns}")
        self.register_buffer("packed", torch.zeros(rows, columns // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(rows, columns // GROUP, dtype=torch.float16))
        self._whole: tuple[tuple[int, ...], Tensor] | None = None

    @torch.no_grad()
    def pack(self, matrix: Tensor) -> None:
        """Take ``matrix`` (N, D), rounded."""
        groups = matrix.float().unflatten(1, (-1, GROUP))
        scale = (groups.abs().amax(dim=2) / _HIGH).to(torch.float16)
        integers = (groups / scale.float().clamp(min=1e-8)[..., None]).round().clamp(-_HIGH, _HIGH).flatten(1)
        low, high = (integers + _HIGH).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
        self.packed.copy_(low + 16 * high)
        self.scale.copy_(scale)

    def rows(self, index: Tensor) -> Tensor:
        """Rows ``index`` (...) as float32 (..., D)."""
        packed, scale = self.packed[index], self.scale[index].float()
        integers = torch.stack([packed % 16, packed // 16], dim=-1).flatten(-2).float() - _HIGH
        return (integers.unflatten(-1, (-1, GROUP)) * scale[..., None]).flatten(-2)

    def matrix(self) -> Tensor:
        """All of it, float32 (N, D); unpacked once."""
        key = (self.packed.data_ptr(), self.packed._version, self.scale.data_ptr(), self.scale._version)
        if self._whole is None or self._whole[0] != key:
            self._whole = key, self.rows(torch.arange(len(self.packed), device=self.packed.device))
        return self._whole[1]
