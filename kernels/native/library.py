"""The shared library: found beside this file, loaded with ctypes on first use, checked against the ABI version."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

ABI_VERSION = 6

_FILE_NAMES = {"win32": "intermoe_native.dll", "darwin": "libintermoe_native.dylib"}

_CODES = {
    "v": None,
    "s": ctypes.c_char_p,
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int32,
    "f": ctypes.c_float,
}

# Every function of csrc/intermoe.h: result, then arguments.
SIGNATURES = {
    "intermoe_abi_version": "i:",
    "intermoe_cuda_built": "i:",
    "intermoe_check_cuda": "i:i",
    "intermoe_instruction_set": "s:",
    "intermoe_use_instruction_set": "i:i",
    "intermoe_vendor": "s:",
    "intermoe_half_units": "i:",
    "intermoe_last_error": "s:",
    "intermoe_select_scratch": "l:l",
    "intermoe_select_count_cpu": "i:ppplllppppi",
    "intermoe_select_count_cuda": "i:ppplllppppip",
    "intermoe_select_fill_cpu": "i:pllppppi",
    "intermoe_select_fill_cuda": "i:pllppppip",
    "intermoe_select_backward_cpu": "i:ppplllpi",
    "intermoe_select_backward_cuda": "i:ppplllpip",
    "intermoe_route_forward_cpu": "i:pppppppppllllfii",
    "intermoe_route_forward_cuda": "i:pppppppppllllfiip",
    "intermoe_route_backward_cpu": "i:ppppppppppppllllii",
    "intermoe_route_scratch_cuda": "l:llll",
    "intermoe_route_backward_cuda": "i:ppppppppppppplllliip",
    "intermoe_product_cpu": "i:pllpllipplllliiii",
    "intermoe_packed_count": "l:lli",
    "intermoe_large_page": "l:",
    "intermoe_use_large_pages": "v:pl",
    "intermoe_pack_cpu": "i:pllllipii",
    "intermoe_experts_scratch": "l:lll",
    "intermoe_experts_forward_cpu": "i:ppppppppllllliii",
    "intermoe_gather_cpu": "i:pplllpi",
    "intermoe_gather_cuda": "i:pplllpip",
    "intermoe_swiglu_forward_cpu": "i:ppllii",
    "intermoe_swiglu_forward_cuda": "i:pplliip",
    "intermoe_swiglu_backward_cpu": "i:pppppllii",
    "intermoe_swiglu_backward_cuda": "i:ppppplliip",
    "intermoe_combine_cpu": "i:pppppllllii",
    "intermoe_combine_cuda": "i:ppppplllliip",
    "intermoe_moe_forward_cpu": "i:pppppppppppllllllifii",
    "intermoe_open_driver": "l:p",
    "intermoe_launch": "i:lppp",
}

_REINSTALL = "install g++ or clang++ (Windows: Visual Studio Build Tools) and install intermoe again"


class LibraryUnavailable(RuntimeError):
    """The shared library cannot be used. ``reason`` says why, ``remedy`` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def library_path() -> Path:
    """Where the build puts the shared library."""
    return Path(__file__).parent / _FILE_NAMES.get(sys.platform, "libintermoe_native.so")


@functools.cache
def load() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        LibraryUnavailable: it was not built, cannot be loaded, or was built from other sources than these.
    """
    # torch first: it brings the OpenMP runtime, and a second one beside it would compete for the same cores.
    import torch  # noqa: F401

    return open_library(library_path())


def open_library(path: Path) -> ctypes.CDLL:
    """Load and check the library at ``path``. Raises ``LibraryUnavailable``."""
    if not path.exists():
        raise LibraryUnavailable(f"{path.name} was not built: no C++ compiler when intermoe was installed", _REINSTALL)
    try:
        library = ctypes.CDLL(str(path))
        found = library.intermoe_abi_version()
    except (OSError, AttributeError) as error:
        raise LibraryUnavailable(f"{path.name} cannot be loaded: {error}", _REINSTALL) from error
    if found != ABI_VERSION:
        raise LibraryUnavailable(
            f"{path.name} has ABI version {found}, this package needs {ABI_VERSION}", "install intermoe again"
        )
    for name, signature in SIGNATURES.items():
        if name.endswith("_cuda") and not library.intermoe_cuda_built():
            continue
        result, _, arguments = signature.partition(":")
        function = getattr(library, name)
        function.restype = _CODES[result]
        function.argtypes = [_CODES[code] for code in arguments]
    return library


def check_cuda(device: int | None) -> None:
    """Raise ``LibraryUnavailable`` unless CUDA kernels run on device number ``device``; ``None``: there is none."""
    native = load()
    if not native.intermoe_cuda_built():
        raise LibraryUnavailable(
            "no CUDA kernels, as there was no nvcc when intermoe was installed",
            "install the CUDA toolkit (nvcc) and install intermoe again",
        )
    if device is None:
        raise LibraryUnavailable(
            "no CUDA device for the CUDA kernels", "use a machine with an NVIDIA GPU and a CUDA build of torch"
        )
    if native.intermoe_check_cuda(device) != 0:
        raise LibraryUnavailable(
            f"the CUDA kernels do not run on device {device}: {native.intermoe_last_error().decode()}",
            "update the NVIDIA driver, or use a GPU of compute capability 8.0 or newer",
        )


def instruction_set() -> str:
    """Which CPU variant of the kernels runs: ``baseline``, ``avx2`` or ``avx512``."""
    name: str = load().intermoe_instruction_set().decode()
    return name


def vendor() -> str:
    """Who made the CPU: ``intel``, ``amd`` or ``other``."""
    name: str = load().intermoe_vendor().decode()
    return name


def half_units() -> int | None:
    """Units for half types: 1 for bfloat16, 2 for float16, 3 for both; ``None`` where the library does not know."""
    units: int = load().intermoe_half_units()
    return units if units >= 0 else None
