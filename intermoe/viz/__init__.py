"""Pictures and video of motion. Importing it imports no drawing or encoding library."""

from intermoe.viz.camera import View
from intermoe.viz.figures import Scene
from intermoe.viz.grid import Grid
from intermoe.viz.video import save_gif, save_mp4

__all__ = ["Grid", "Scene", "View", "save_gif", "save_mp4"]
