"""Stick figures, video and exports."""
