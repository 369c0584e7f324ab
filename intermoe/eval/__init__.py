"""Evaluation of generated motion: protocols, runner and reports; the numbers themselves are ``intermoe.metrics``."""

from intermoe.eval.identity_report import IdentityReport, evaluate_identity
from intermoe.eval.kinematics import KinematicReport, evaluate_kinematics

__all__ = ["IdentityReport", "KinematicReport", "evaluate_identity", "evaluate_kinematics"]
