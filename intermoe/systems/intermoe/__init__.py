"""InterMoE (arXiv 2511.13488): Causal-Skeletal VAE, denoiser, pipeline, and the reader of the authors' files."""
