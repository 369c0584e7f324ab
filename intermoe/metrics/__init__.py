"""Numbers of motion: how it moves, who is who, how it is distributed."""

from intermoe.metrics.clips import METRICS, Clip, Metric, Sample, measure
from intermoe.metrics.identity import (
    IdentityMetrics,
    bone_inconsistency,
    measure_identity,
    role_break,
    separation,
    style_overlap,
    style_spectra,
    swap_score,
)
from intermoe.metrics.turns import TurnAgreement, TurnClaim, agreement, parse_turns, turns

__all__ = [
    "METRICS",
    "Clip",
    "IdentityMetrics",
    "Metric",
    "Sample",
    "TurnAgreement",
    "TurnClaim",
    "agreement",
    "bone_inconsistency",
    "measure",
    "measure_identity",
    "parse_turns",
    "role_break",
    "separation",
    "style_overlap",
    "style_spectra",
    "swap_score",
    "turns",
]
