"""Triton backend: fused kernels of the InterMoE block's steps, forward and backward, for NVIDIA cards from sm_80 up.

Every step is a PyTorch custom operation (namespace ``intermoe_triton``) without autograd formula: ``intermoe.ops.moe``
chains them. On a machine without a GPU they run in Triton's interpreter when Python starts with TRITON_INTERPRET=1.
"""

from .combine import combine
from .configs import use_table
from .experts import experts_forward
from .experts_backward import experts_backward
from .overflow import raise_on_overflow
from .registry import unusable_reason
from .route import route_forward
from .route_backward import route_backward
from .select import select, select_backward

__all__ = [
    "combine",
    "experts_backward",
    "experts_forward",
    "raise_on_overflow",
    "route_backward",
    "route_forward",
    "select",
    "select_backward",
    "unusable_reason",
    "use_table",
]
