"""Training of the autoencoder, the denoiser and an evaluator."""

from intermoe.train.denoiser import run_denoiser
from intermoe.train.evaluator import run_evaluator
from intermoe.train.vae import load_vae_folder, run_vae

__all__ = ["load_vae_folder", "run_denoiser", "run_evaluator", "run_vae"]
