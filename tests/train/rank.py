"""What each process of a launcher runs in the tests of several processes, with its arguments as globals.

It leaves the losses of all steps behind and, where it has whole weights, these; what failed is in a file too.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from intermoe.train import loop, run, run_denoiser

ARGUMENTS: dict[str, Any] = {
    name: globals()[name] for name in ("config", "output", "vae", "resume", "data", "sharded", "environment")
}
FOLDER = Path(ARGUMENTS["output"]).parent
_start = run.start


def start_sharded(*args: Any, **options: Any) -> Accelerator:
    """Accelerate chooses FSDP for accelerators alone; its FSDP2 preparation works on the CPU all the same."""
    accelerator = _start(*args, **options)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["DenoiserLayer"],
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )
    return accelerator


class Watched(loop.Trainer):
    def run(self, resume: bool) -> dict[str, Tensor] | None:
        self.losses: list[float] = []
        state = super().run(resume)
        rank = self.accelerator.process_index
        if ARGUMENTS["sharded"]:
            if not all(isinstance(parameter, DTensor) for parameter in self.parameters):
                raise RuntimeError("weights are not sharded")
        else:
            module = self.accelerator.unwrap_model(self.model)
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, FOLDER / f"rank{rank}.safetensors")
        (FOLDER / f"losses{rank}.json").write_text(json.dumps(self.losses))
        return state

    def _optimise(self, batches: Iterator[tuple[loop.Batch, float]]) -> dict[str, Tensor]:
        losses = super()._optimise(batches)
        self.losses.append(self.accelerator.reduce(losses["loss"], "mean").item())
        return losses


def main() -> None:
    torch.set_num_threads(1)
    os.environ.update(ARGUMENTS["environment"])
    loop.Trainer = Watched  # type: ignore[misc]
    if ARGUMENTS["sharded"]:
        run.start = start_sharded
    run_denoiser(*(ARGUMENTS[name] for name in ("config", "output", "vae", "resume", "data")))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


try:
    main()
except BaseException:
    rank = ARGUMENTS["environment"].get("RANK", "0")
    (FOLDER / f"error{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
    raise
