"""Kernels of the InterMoE block, one folder per backend and one file per step. Nothing here imports ``intermoe``."""
