"""Triton backend: fused kernels of the InterMoE block's steps, forward and backward, for NVIDIA cards from sm_80 up.

On a machine without a GPU they run in Triton's interpreter when Python starts with TRITON_INTERPRET=1.
"""

from .combine import combine
from .configs import use_table
from .experts import experts_forward
from .experts_backward import experts_backward
from .moe import moe_backward, moe_forward, moe_inference
from .overflow import raise_on_overflow
from .registry import AUTOMATIC, HALF_SUMS, allocated_pairs, linear, refusal, status, unusable_reason
from .route import route_forward
from .route_backward import route_backward
from .select import select, select_backward

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
    "unusable_reason",
    "use_table",
]
