"""Which product is fastest, by machine, dtype, kind of product and rows. Written by the command below, not by hand.

    python -m intermoe.benchmarks.products --write

A row of ``FASTEST`` says for up to how many rows which choice of ``products.CHOICES`` serves; ``None`` for any more.
"""

from __future__ import annotations

Limits = tuple[tuple[int | None, str], ...]

FASTEST: dict[str, dict[tuple[str, str], Limits]] = {}
