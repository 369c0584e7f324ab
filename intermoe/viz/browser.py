"""What pages tell browsers beside viser's own words: how to draw where a processor does it, without a graphics card."""

from __future__ import annotations

SOFTWARE = "swiftshader|llvmpipe|softpipe|basic render"
"""Names of what draws with the processor."""

STYLE = """<style>
canvas { opacity: 1 !important; }  /* viser fades it in once it has prepared surroundings, which are not used */
</style>"""

_BY_PROCESSOR = """<script>
(() => {
  const open = HTMLCanvasElement.prototype.getContext;
  const probe = open.call(document.createElement("canvas"), "webgl2");
  const told = probe && probe.getExtension("WEBGL_debug_renderer_info");
  const drawer = told ? probe.getParameter(told.UNMASKED_RENDERER_WEBGL) : "";
  if (!/%s/i.test(drawer)) return;
%s})();
</script>"""

_EDGES = """
  // Smooth edges are four samples a pixel, which a processor that draws feels.
  HTMLCanvasElement.prototype.getContext = function (kind, options) {
    return open.call(this, kind, kind.startsWith("webgl") ? { ...options, antialias: false } : options);
  };
"""

_PAUSES = """
  // After each picture a pause twice as long as it took, or %d ms: what makes the motion needs the processor, too.
  const next = window.requestAnimationFrame.bind(window);
  let waiting = new Map(), count = 0, asked = false, fresh = false, drawn = 0, due = 0;
  const ask = () => { if (!asked) { asked = true; next(turn); } };
  const turn = now => {
    asked = false;
    if (fresh) due = now + Math.min(2 * (now - drawn), %d);
    fresh = false;
    if (!waiting.size) return;
    if (now >= due) {
      const drawers = waiting;
      waiting = new Map();
      drawn = now;
      fresh = true;
      drawers.forEach(draw => { try { draw(now); } catch (error) { reportError(error); } });
    }
    ask();
  };
  window.requestAnimationFrame = draw => { waiting.set(++count, draw); ask(); return count; };
  window.cancelAnimationFrame = which => { waiting.delete(which); };
"""
LONGEST_PAUSE = 150
"""Milliseconds."""


def file_head() -> str:
    """What stands in the head of a page that is a file."""
    return STYLE + _BY_PROCESSOR % (SOFTWARE, _EDGES)


def served_head() -> str:
    """What stands in the head of a page whose motion this machine sends, and perhaps makes meanwhile."""
    return _BY_PROCESSOR % (SOFTWARE, _EDGES + _PAUSES % (LONGEST_PAUSE, LONGEST_PAUSE))
