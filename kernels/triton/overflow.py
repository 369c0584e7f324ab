"""The overflow flag of the static memory mode: written by the device into the host's memory, never waited for.

``select`` with ``max_pairs`` allocates for that many pairs and asks the host for nothing, so it learns too late when
more were selected. Its kernel then keeps within the buffers and writes the number that was needed into a flag in pinned
memory, which the device reaches by itself, in a CUDA graph too; the next ``select`` that finds it there raises, and
``raise_on_overflow`` waits for the device and raises.
"""

from __future__ import annotations

import threading

import torch


class OverflowFlag:
    """Flag of one device: ``pair`` holds (pairs needed, pairs allocated), zeros while nothing overflowed."""

    def __init__(self, device: torch.device) -> None:
        self.pair = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.numbers = self.pair.numpy()  # the same memory
        self._read = self.numbers.data  # and once more, read in a twentieth of a microsecond

    def raise_if_set(self) -> None:
        """Raise ``RuntimeError`` with the numbers if an overflow has reached the host, and reset the flag."""
        if self._read[0] == 0:
            return
        needed, allocated = self.numbers.tolist()
        self.numbers[:] = 0
        raise RuntimeError(
            f"max_pairs: {needed} (token, expert) pairs were selected but only {allocated} allocated, so results since "
            f"then are wrong; use max_pairs >= {needed}, or max_pairs=None for the exact mode"
        )


_flags: dict[torch.device, OverflowFlag] = {}
_lock = threading.Lock()


def overflow_flag(device: torch.device) -> OverflowFlag:
    """The flag of ``device``, made at its first use (so make one call before capturing a CUDA graph)."""
    found = _flags.get(device)
    if found is None:
        with _lock:
            found = _flags.setdefault(device, OverflowFlag(device))
    return found


def raise_on_overflow(device: torch.device | None = None, wait: bool = True) -> None:
    """Raise ``RuntimeError`` if a static-mode call on the device selected more than ``max_pairs``.

    Args:
        device: ``None`` checks every device that the static mode has run on.
        wait: wait for the device, so that every call so far is judged; without, those whose verdict has arrived.
    """
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    for found, flag in list(_flags.items()):
        if device is None or found == device:
            if wait and found.type == "cuda":
                torch.cuda.synchronize(found)
            flag.raise_if_set()
