"""Native backend: the steps in C++ on CPU and CUDA, called through a plain C interface.

Importing this package loads nothing; the first call of a step loads the shared library.
"""

from .select import select

__all__ = ["select"]
