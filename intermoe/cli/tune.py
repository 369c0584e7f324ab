"""``intermoe tune``: faster tiles for the GPU at hand."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from intermoe.cli.common import check_folder, print_table, progress_bar, reported


class Precision(str, Enum):
    """Dtypes whose products have tiles of their own; ``tf32`` is float32 with TF32 products."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    tf32 = "tf32"
    float32 = "float32"


def tune(
    out: Annotated[Path, typer.Option(help="JSON table; entries there that are not measured are kept.")] = Path(
        "tiles.json"
    ),
    tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens of a call; several for several sizes. Default: 300, 1200 and 9600.")
    ] = None,
    dim: Annotated[int, typer.Option(help="Token width.")] = 768,
    experts: Annotated[int, typer.Option(help="Number of experts, up to 64.")] = 8,
    expert_dim: Annotated[int, typer.Option(help="Hidden width of an expert.")] = 1024,
    capacity: Annotated[float, typer.Option(help="Experts per token.")] = 1.0,
    dtype: Annotated[Precision, typer.Option(help="What the products are computed in.")] = Precision.bfloat16,
) -> None:
    """Measure the Triton kernels' tiles on this GPU and write the fastest as a table.

    Nothing uses the table by itself: your program does, with intermoe.kernels.triton.use_table("tiles.json").
    """
    with reported():
        sizes = tokens or [300, 1200, 9600]
        for name, least in (("--tokens", min(sizes)), ("--dim", dim), ("--expert-dim", expert_dim)):
            if least < 1:
                raise ValueError(f"{name}: expected >= 1, got {least}")
        if not 1 <= experts <= 64:
            raise ValueError(f"--experts: expected a value in 1..64, got {experts}")
        if not 0 < capacity <= experts:
            raise ValueError(f"--capacity: expected a value in (0, {experts}], got {capacity}")
        check_folder(out.parent)
        import torch

        from intermoe.files import write_json
        from intermoe.kernels.triton import configs, unusable_reason
        from intermoe.kernels.triton.tune import Workload
        from intermoe.kernels.triton.tune import tune as search

        device = torch.device("cuda")
        table = configs.read_table(out) if out.exists() else {}
        classes = [configs.size_class(size, experts) for size in sizes]
        if len(set(classes)) < len(classes):
            listed = ", ".join(f"{size} is {kind}" for size, kind in zip(sizes, classes, strict=True))
            raise ValueError(f"--tokens: expected one value for each size class, got {listed}")
        stored = torch.float32 if dtype in (Precision.tf32, Precision.float32) else getattr(torch, dtype.value)
        if reason := unusable_reason(device, stored):
            raise ValueError(f"tune: expected a device that can be tuned for, got: {reason}")
        if stored == torch.float32:
            torch.set_float32_matmul_precision("high" if dtype is Precision.tf32 else "highest")
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = [["size", "kernel", "shipped", "best", "tile m, n, k, warps, stages", "tried"]]
        with progress_bar() as progress:
            task = progress.add_task("measuring", total=len(sizes) * len(configs.KERNELS))
            for size in sizes:
                workload = Workload(size, experts, dim, expert_dim, stored, device, capacity)
                for kernel in configs.KERNELS:
                    progress.update(task, description=f"{kernel}, {size} tokens")
                    found = search(workload, kernel)
                    table[found.key] = found.tile
                    write_json(out, configs.table_json(table))
                    times = [f"{time:.1f} µs" for time in (found.shipped_time, found.time)]
                    tile = found.tile
                    shape = (tile.block_m, tile.block_n, tile.block_k, tile.num_warps, tile.num_stages)
                    lines.append([str(size), kernel, *times, ", ".join(map(str, shape)), str(found.tried)])
                    progress.advance(task)
    print_table(lines)
    typer.echo(out)
