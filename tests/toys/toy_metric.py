"""A metric of somebody else's: the height of the highest joint."""

from intermoe.metrics import Metric

METRIC = Metric(
    {"top": "highest joint (m)"},
    lambda sample: {"top": sample.mean(lambda joints: float(joints[..., 1].max(axis=-1).mean()), by_frames=True)},
)
