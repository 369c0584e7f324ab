"""Reads the checkpoints of the method's published implementation, and of the published evaluators.

Strict: a key that is missing, unexpected or of the wrong shape is a ``ValueError`` that names it. Configurations are
mappings with the keys of the published configuration files.
"""

from intermoe.official.model import load_denoiser, load_moe_block, load_text_encoder, load_vae

__all__ = ["load_denoiser", "load_moe_block", "load_text_encoder", "load_vae"]
