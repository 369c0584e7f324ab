"""Evaluation of generated motion."""

from intermoe.eval.identity import (
    IdentityMetrics,
    bone_inconsistency,
    measure_identity,
    role_break,
    separation,
    style_overlap,
    style_spectra,
    swap_score,
)
from intermoe.eval.identity_report import IdentityReport, evaluate_identity
from intermoe.eval.kinematics import KinematicReport, evaluate_kinematics
from intermoe.eval.metrics import Clip, KinematicMetrics, measure
from intermoe.eval.turns import TurnAgreement, TurnClaim, agreement, parse_turns, turns

__all__ = [
    "Clip",
    "IdentityMetrics",
    "IdentityReport",
    "KinematicMetrics",
    "KinematicReport",
    "TurnAgreement",
    "TurnClaim",
    "agreement",
    "bone_inconsistency",
    "evaluate_identity",
    "evaluate_kinematics",
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
