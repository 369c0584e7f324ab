"""Evaluation of generated motion: protocols, runner and reports; the numbers themselves are ``intermoe.metrics``."""

from typing import TYPE_CHECKING

from intermoe.registry import exports

if TYPE_CHECKING:
    from intermoe.eval.identity_report import IdentityReport, evaluate_identity
    from intermoe.eval.kinematics import KinematicReport, evaluate_kinematics

__all__ = ["IdentityReport", "KinematicReport", "evaluate_identity", "evaluate_kinematics"]

__getattr__ = exports(
    __name__,
    {
        "IdentityReport": "identity_report",
        "evaluate_identity": "identity_report",
        "KinematicReport": "kinematics",
        "evaluate_kinematics": "kinematics",
    },
)
