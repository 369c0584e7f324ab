"""The overflow flag of the static memory mode: raised on the device, read without ever waiting for it.

``select`` with ``max_pairs`` allocates for that many pairs and asks the host for nothing, so it learns too late when
more were selected. Its kernel then keeps within the buffers and writes the number that was needed into a device flag.
The flag is copied to pinned memory behind the kernel (a copy that a CUDA graph captures too); the next ``select`` that
finds it there raises, and ``raise_on_overflow`` waits for the device and raises.
"""

from __future__ import annotations

import threading

import torch


class OverflowFlag:
    """Flag of one device: ``device_pair`` holds (pairs needed, pairs allocated), zeros while nothing overflowed."""

    def __init__(self, device: torch.device) -> None:
        self.device_pair = torch.zeros(2, dtype=torch.int64, device=device)
        self.host_pair = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")

    def publish(self) -> None:
        """Copy the flag towards the host without waiting."""
        self.host_pair.copy_(self.device_pair, non_blocking=True)

    def raise_if_set(self) -> None:
        """Raise ``RuntimeError`` with the numbers if an overflow has reached the host, and reset the flag."""
        needed, allocated = self.host_pair.tolist()
        if needed == 0:
            return
        self.device_pair.zero_()
        self.host_pair.zero_()
        raise RuntimeError(
            f"max_pairs: {needed} (token, expert) pairs were selected but only {allocated} allocated, so results since "
            f"then are wrong; use max_pairs >= {needed}, or max_pairs=None for the exact mode"
        )


_flags: dict[torch.device, OverflowFlag] = {}
_lock = threading.Lock()


def overflow_flag(device: torch.device) -> OverflowFlag:
    """The flag of ``device``, made at its first use (so make one call before capturing a CUDA graph)."""
    with _lock:
        if device not in _flags:
            _flags[device] = OverflowFlag(device)
        return _flags[device]


def raise_on_overflow(device: torch.device | None = None, wait: bool = True) -> None:
    """Raise ``RuntimeError`` if a static-mode call on the device selected more than ``max_pairs``.

    Args:
        device: ``None`` checks every device that the static mode has run on.
        wait: wait for the device, so that every call so far is judged; without, those whose verdict has arrived.
    """
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    for flag in [flag for found, flag in _flags.items() if device is None or found == device]:
        if wait:
            flag.host_pair.copy_(flag.device_pair)
        flag.raise_if_set()
