"""Native backend: the steps in C++, called through a plain C interface, with matrix products left to torch.

Importing this package loads nothing; the first call of a step loads the shared library.
"""

from .combine import combine
from .experts import experts_backward, experts_forward
from .moe import moe_backward, moe_forward, moe_inference
from .products import linear
from .route import route_backward, route_forward
from .select import select, select_backward
from .status import AUTOMATIC, HALF_SUMS, allocated_pairs, raise_on_overflow, refusal, status

__all__ = [
    "AUTOMATIC",
    "HALF_SUMS",
    "allocated_pairs",
    "combine",
    "experts_backward",
    "experts_forward",
    "linear",
    "moe_backward",
    "moe_forward",
    "moe_inference",
    "raise_on_overflow",
    "refusal",
    "route_backward",
    "route_forward",
    "select",
    "select_backward",
    "status",
]
