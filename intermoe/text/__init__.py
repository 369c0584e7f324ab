"""Text encoders: a prompt becomes one vector. ``build_text_encoder`` chooses by ``TextConfig.kind``."""
