"""Steering of what is generated: persons and frames that are given."""

from intermoe.control.known import Control, Given, Known, known_latents

__all__ = ["Control", "Given", "Known", "known_latents"]
