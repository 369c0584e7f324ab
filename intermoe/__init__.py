"""InterMoE: text to the motion of two people, and the dynamic Mixture-of-Experts block under it (arXiv 2511.13488)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intermoe import backends, official
    from intermoe.nn.moe import InterMoEBlock
    from intermoe.pipeline import MotionPipeline
    from intermoe.systems.intermoe.pipeline import InterMoEPipeline

__version__ = "0.2.0"
__all__ = ["InterMoEBlock", "InterMoEPipeline", "MotionPipeline", "__version__", "backends", "official"]

# loaded on first use: the block alone needs torch, generation needs more
_WHERE = {
    "InterMoEBlock": ("intermoe.nn.moe", "InterMoEBlock"),
    "InterMoEPipeline": ("intermoe.systems.intermoe.pipeline", "InterMoEPipeline"),
    "MotionPipeline": ("intermoe.pipeline", "MotionPipeline"),
    "backends": ("intermoe.backends", None),
    "official": ("intermoe.official", None),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'intermoe' has no attribute {name!r}")
    module_name, attribute = _WHERE[name]
    module = import_module(module_name)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
