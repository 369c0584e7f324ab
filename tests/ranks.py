"""Run ``main(rank, size, *arguments)`` of a script in several processes: python ranks.py SCRIPT SIZE ARGUMENTS...

They are forks of one interpreter that has imported torch already and started no thread. Where one fails the others are
killed: they would wait for it.
"""

from __future__ import annotations

import multiprocessing
import runpy
import sys
import tempfile
from multiprocessing import connection

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.tensor

import intermoe.nn.moe  # noqa: F401


def run(script: str, rank: int, size: int, meeting: str, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    runpy.run_path(script)["main"](rank, size, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def launch(script: str, size: int, arguments: list[str]) -> int:
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            fork.Process(target=run, args=(script, rank, size, f"{folder}/ranks", arguments)) for rank in range(size)
        ]
        for process in started:
            process.start()
        waiting = list(started)
        while waiting and not any(process.exitcode for process in started):
            connection.wait([process.sentinel for process in waiting])
            waiting = [process for process in waiting if process.exitcode is None]
        for process in started:
            process.kill()
            process.join()
    return int(any(process.exitcode for process in started))


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
