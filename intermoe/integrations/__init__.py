"""InterMoE in other people's models: replace their feed-forward networks, train on, save and load as before.

Examples:
    >>> from intermoe.integrations import attach_bias_update, replace_feed_forward
    >>> print(replace_feed_forward(model, num_experts=8, expert_dim=1024))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> attach_bias_update(optimizer, model)
"""

from intermoe.integrations.adapters import BlockAdapter, Condition, Mask
from intermoe.integrations.feed_forward import MoEFeedForward
from intermoe.integrations.replace import (
    ReplacedLayer,
    Replacement,
    replace_feed_forward,
    replacement_config,
    restore_feed_forward,
)
from intermoe.integrations.saving import load_pretrained, reapply_replacement
from intermoe.integrations.training import attach_bias_update, balance_losses, calibrated_selection

__all__ = [
    "BlockAdapter",
    "Condition",
    "Mask",
    "MoEFeedForward",
    "ReplacedLayer",
    "Replacement",
    "attach_bias_update",
    "balance_losses",
    "calibrated_selection",
    "load_pretrained",
    "reapply_replacement",
    "replace_feed_forward",
    "replacement_config",
    "restore_feed_forward",
]
