"""Networks that judge motion against text, as the published protocols do."""
