"""Pictures, video and files of generated motion. Importing it imports no drawing or encoding library."""

from intermoe.viz.export import output_stem, save_npz, slug
from intermoe.viz.figures import Scene
from intermoe.viz.video import save_gif, save_mp4

__all__ = ["Scene", "output_stem", "save_gif", "save_mp4", "save_npz", "slug"]
