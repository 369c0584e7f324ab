"""Training of the autoencoder and of the denoiser."""

from intermoe.train.denoiser import run_denoiser
from intermoe.train.vae import load_vae_folder, run_vae

__all__ = ["load_vae_folder", "run_denoiser", "run_vae"]
