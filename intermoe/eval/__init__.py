"""Evaluation of generated motion."""

from intermoe.eval.kinematics import KinematicReport, evaluate_kinematics
from intermoe.eval.metrics import Clip, KinematicMetrics, measure
from intermoe.eval.turns import TurnAgreement, TurnClaim, agreement, parse_turns, turns

__all__ = [
    "Clip",
    "KinematicMetrics",
    "KinematicReport",
    "TurnAgreement",
    "TurnClaim",
    "agreement",
    "evaluate_kinematics",
    "measure",
    "parse_turns",
    "turns",
]
