"""Neural modules: autoencoder, denoiser, Mixture-of-Experts block, text encoders."""
