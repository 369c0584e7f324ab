"""Pictures, video and files of generated motion. Importing it imports no drawing or encoding library."""

from intermoe.viz.export import output_stem, save_npz, slug
from intermoe.viz.figures import Scene
from intermoe.viz.routing import RoutingTrace, record_routing, trace_generation, trace_motion, trace_record
from intermoe.viz.routing_picture import RoutingScene, draw_routing
from intermoe.viz.video import save_gif, save_mp4

__all__ = [
    "RoutingScene",
    "RoutingTrace",
    "Scene",
    "draw_routing",
    "output_stem",
    "record_routing",
    "save_gif",
    "save_mp4",
    "save_npz",
    "slug",
    "trace_generation",
    "trace_motion",
    "trace_record",
]
