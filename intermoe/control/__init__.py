"""Steering of what is generated: persons and frames that are given, and places where joints shall be."""

from intermoe.control.known import Control, Given, Known, known_latents
from intermoe.control.targets import Target

__all__ = ["Control", "Given", "Known", "Target", "known_latents"]
