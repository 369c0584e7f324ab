"""Kernels of the InterMoE block, one package per backend and one file per step. Nothing here imports ``intermoe``."""

BACKENDS = ("triton", "native")
"""Packages here that are backends, fastest first; ``contract`` says what each offers."""
