"""Which product is fastest, by machine, dtype, form of product and rows. Written by the command below, not by hand.

    python -m intermoe.benchmarks.harness.products --write

A row of ``FASTEST`` says for up to how many rows which choice of ``products.CHOICES`` serves; ``None`` for any more.
"""

from __future__ import annotations

Limits = tuple[tuple[int | None, str], ...]

FASTEST: dict[str, dict[tuple[str, str], Limits]] = {
    "amd avx512+bf16": {
        ("float32", "packed"): ((None, "own"),),
        ("float32", "rows"): (
            (2, "torch"),
            (300, "own"),
            (None, "torch"),
        ),
        ("float32", "columns"): ((None, "torch"),),
        ("float32", "sums"): ((None, "torch"),),
        ("float16", "packed"): ((None, "own"),),
        ("float16", "rows"): ((None, "own"),),
        ("float16", "columns"): ((None, "own"),),
        ("float16", "sums"): ((None, "own"),),
        ("bfloat16", "packed"): (
            (2, "torch"),
            (None, "onednn, packed"),
        ),
        ("bfloat16", "rows"): ((None, "torch"),),
        ("bfloat16", "columns"): ((None, "torch"),),
        ("bfloat16", "sums"): ((None, "torch"),),
    },
    "intel avx512": {
        ("float32", "packed"): (
            (2, "torch"),
            (300, "own"),
            (None, "torch"),
        ),
        ("float32", "rows"): (
            (2, "torch"),
            (38, "own"),
            (None, "torch"),
        ),
        ("float32", "columns"): ((None, "torch"),),
        ("float32", "sums"): ((None, "torch"),),
        ("bfloat16", "packed"): ((None, "own"),),
        ("bfloat16", "rows"): ((None, "own"),),
        ("bfloat16", "columns"): (
            (300, "own"),
            (None, "float32"),
        ),
        ("bfloat16", "sums"): (
            (38, "own"),
            (None, "float32"),
        ),
        ("float16", "packed"): ((None, "own"),),
        ("float16", "rows"): (
            (300, "own"),
            (None, "float32"),
        ),
        ("float16", "columns"): ((None, "own"),),
        ("float16", "sums"): (
            (38, "own"),
            (None, "float32"),
        ),
    },
}
