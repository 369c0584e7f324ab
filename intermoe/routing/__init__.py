"""Which experts took which tokens: recorded, traced through a generation, and drawn."""

from intermoe.routing.picture import RoutingScene, draw_routing
from intermoe.routing.record import RoutingRecord, record_routing
from intermoe.routing.trace import RoutingTrace, read_trace, trace_generation, trace_motion, trace_record

__all__ = [
    "RoutingRecord",
    "RoutingScene",
    "RoutingTrace",
    "draw_routing",
    "read_trace",
    "record_routing",
    "trace_generation",
    "trace_motion",
    "trace_record",
]
