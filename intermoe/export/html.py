"""A page: one file with the figures, a player and nothing to fetch, which any browser opens offline."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from intermoe.export.format import Format
from intermoe.export.take import Take
from intermoe.files import write_text
from intermoe.viz.browser import file_head
from intermoe.viz.figures import PERSON_COLOURS
from intermoe.viz.scene import Figures, serving, set_stage

_STYLE = """<style>
#caption { position: fixed; z-index: 10; top: 0; left: 0; right: 0; padding: 0.6em 0.8em; pointer-events: none;
  font: 16px/1.35 system-ui, sans-serif; color: rgb(46, 50, 60); }
#caption p { margin: 0 0 0.3em; max-height: 5.4em; overflow: hidden; }
#caption span { margin-right: 1em; white-space: nowrap; }
#caption i { display: inline-block; width: 0.6em; height: 0.6em; margin-right: 0.4em; }
</style>"""


class Page:
    """A page in a notebook: shown where it is the last value of a cell.

    Args:
        take: what it shows.
        height: of its window, in pixels.
    """

    def __init__(self, take: Take, height: int = 480) -> None:
        self.text = page(take)
        self.height = height

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {self.height}px; border: none"
        return f'<iframe srcdoc="{escape(self.text)}" style="{style}"></iframe>'


def write(paths: list[Path], take: Take) -> None:
    """One file with all persons."""
    write_text(paths[0], page(take))


def page(take: Take) -> str:
    """The page as text."""
    with serving() as server, server.atomic():  # nobody is connected: nothing need be sent
        set_stage(server, take.body, take.view.camera)
        figures = Figures(server.scene, take.body, take.names)
        recording = server.get_scene_serializer()
        for frame in range(len(figures)):
            figures.show(frame)
            recording.insert_sleep(1 / take.fps)
        text = recording.as_html()
    people = "".join(
        f'<span><i style="background: rgb{PERSON_COLOURS[person % len(PERSON_COLOURS)]}"></i>{escape(name)}</span>'
        for person, name in enumerate(take.names)
    )
    caption = f'<div id="caption"><p>{escape(take.prompt)}</p>{people}</div>'
    head, rest = text.split("</head>", 1)
    head = re.sub("<title>.*?</title>", lambda _: f"<title>{escape(take.prompt or 'intermoe')}</title>", head, count=1)
    body, end = rest.rsplit("</body>", 1)
    return f"{head}{file_head()}{_STYLE}</head>{body}{caption}</body>{end}"


FORMAT = Format(".html", write, needs=("viser", "trimesh"), extra="view")
