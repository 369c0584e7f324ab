"""InterMask (Javed et al., ICLR 2025): motion as a grid of discrete tokens, and a transformer that unmasks them."""
