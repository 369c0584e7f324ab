"""Reads the checkpoints of the method's published implementation, and of the published evaluators.

Strict: a key that is missing, unexpected or of the wrong shape is a ``ValueError`` that names it. Configurations are
mappings with the keys of the published configuration files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from intermoe.systems.intermoe.official import load_denoiser, load_moe_block, load_text_encoder, load_vae

if TYPE_CHECKING:
    from intermoe.evaluators.official import load_bigru, load_evaluator_motion_encoder, load_interclip
    from intermoe.official.checkpoint import load_checkpoint
    from intermoe.official.networks import load_network

__all__ = [
    "load_bigru",
    "load_checkpoint",
    "load_denoiser",
    "load_evaluator_motion_encoder",
    "load_interclip",
    "load_moe_block",
    "load_network",
    "load_text_encoder",
    "load_vae",
]

# loaded on first use: whole models and evaluators need more than torch
_WHERE = {
    "load_bigru": "intermoe.evaluators.official",
    "load_checkpoint": "intermoe.official.checkpoint",
    "load_evaluator_motion_encoder": "intermoe.evaluators.official",
    "load_interclip": "intermoe.evaluators.official",
    "load_network": "intermoe.official.networks",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'intermoe.official' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
