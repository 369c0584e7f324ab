"""InterGen: diffusion of raw motion, one weight-sharing transformer for both persons (Liang et al., IJCV 2024)."""
