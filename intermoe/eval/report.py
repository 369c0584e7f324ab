"""What an evaluation found: means with intervals, beside the ground truth and what was published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intermoe.eval.protocol import CAPTIONS, REPLICATIONS, SAMPLES, SOURCES, Protocol
from intermoe.eval.runner import EvaluationSettings, Numbers
from intermoe.files import write_json, write_text

_TITLES = {
    "fid": "FID",
    "r_precision_1": "R@1",
    "r_precision_2": "R@2",
    "r_precision_3": "R@3",
    "mm_dist": "MM-Dist",
    "diversity": "Div",
    "multimodality": "MM",
    "multimodality_scaled": "MM scaled",
}


@dataclass(frozen=True)
class EvaluationReport:
    """Rows of every finished replication, and what they are about."""

    settings: EvaluationSettings
    protocol: Protocol
    replications: tuple[dict[str, Numbers], ...]
    model_name: str
    evaluator_kind: str
    own_evaluator: bool

    def rows(self) -> dict[str, dict[str, tuple[float, float] | None]]:
        """Mean and half width of the 95 % interval, 1.96 deviations / sqrt(replications), by row and metric."""
        found: dict[str, dict[str, tuple[float, float] | None]] = {}
        for row in self.replications[0]:
            found[row] = {}
            for metric in _TITLES:
                values = [replication[row][metric] for replication in self.replications]
                known = np.array([value for value in values if value is not None])
                interval = 1.96 * known.std() / math.sqrt(len(known)) if len(known) else 0.0
                found[row][metric] = (float(known.mean()), float(interval)) if len(known) else None
        return found

    def deviations(self) -> list[str]:
        """In what the evaluation departs from the published protocol, so that its numbers are none to compare."""
        settings, protocol = self.settings, self.protocol
        found = ["an evaluator trained by its user in place of the published one"] if self.own_evaluator else []
        for name, value, published in (
            ("batches of", settings.batch_size, protocol.batch_size),
            ("split", settings.split, "test"),
            ("replications", len(self.replications), REPLICATIONS),
            ("texts for MultiModality", settings.mm_captions, CAPTIONS),
            ("motions for each of them", settings.mm_samples, SAMPLES),
        ):
            if value != published:
                found.append(f"{name} {value} in place of {published}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = {
            row: {
                metric: None if value is None else {"mean": value[0], "interval_95": value[1]}
                for metric, value in metrics.items()
            }
            for row, metrics in self.rows().items()
        }
        protocol = {key: getattr(self.protocol, key) for key in ("batch_size", "scale", "divide_by")}
        return {
            "model": self.model_name,
            "evaluator": self.evaluator_kind,
            "settings": self.settings.to_dict(),
            "protocol": protocol,
            "deviations_from_protocol": self.deviations(),
            "rows": rows,
            "published": [{"name": row.name, **row.numbers()} for row in self.protocol.published],
            "replications": list(self.replications),
        }

    def save(self, path: str | Path) -> None:
        """Write a JSON file and, beside it, the table in Markdown; each whole or not at all."""
        write_json(path, self.to_dict())
        write_text(Path(path).with_suffix(".md"), self.markdown())

    def table(self) -> list[list[str]]:
        """Header, the measured rows with their intervals, and the published ones, marked with a star."""
        lines = [["", *_TITLES.values()]]
        for row, metrics in self.rows().items():
            name = self.model_name if row == "model" else row
            lines.append([name, *(f"{v[0]:.3f}±{v[1]:.3f}" if v else "–" for v in metrics.values())])
        for published in self.protocol.published:
            numbers = published.numbers()
            cells = (numbers.get(metric) for metric in _TITLES)
            lines.append([f"{published.name} {published.mark}", *("–" if v is None else f"{v:.3f}" for v in cells)])
        return lines

    def markdown(self) -> str:
        """``table`` and ``notes`` in Markdown."""
        header, *lines = self.table()
        rule = ["---"] + ["---:"] * (len(header) - 1)
        table = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
        return table + "\n\n" + "\n".join(f"- {note}" for note in self.notes()) + "\n"

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        scaling = f"times {self.protocol.scale:g}, divided by {self.protocol.divide_by:g}"
        return [
            f"{len(self.replications)} replications, ± is the 95 % interval; texts among {self.settings.batch_size} "
            f"motions; FID of embeddings times {self.protocol.scale:g}; Diversity {scaling}; MM (MultiModality) of "
            f"embeddings as they are, scaled: {scaling}",
            *SOURCES,
            *(f"not the published protocol: {deviation}" for deviation in self.deviations()),
        ]
