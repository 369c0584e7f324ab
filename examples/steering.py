"""A picture of every kind of steering, made by the default model: the documentation shows them.

python examples/steering.py --out docs/assets/control
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intermoe import MotionPipeline, export
from intermoe.control import Control, Known, Target
from intermoe.export import View

FRAMES, GIVEN = 60, 20
VIEW = View(size=(200, 200))
PROMPT = "two people shake hands"


def reaction(pipe: MotionPipeline, options: dict[str, Any]) -> Any:
    """The first person of one motion is given; the second of another reacts."""
    leader = pipe(PROMPT, FRAMES, seed=1, **options).joints[0, 0]
    return pipe(PROMPT, FRAMES, seed=2, control=Control([Known(0, joints=leader)]), **options)


def gap(pipe: MotionPipeline, options: dict[str, Any]) -> Any:
    """The first and the last frames are given; those between are made."""
    given = pipe(PROMPT, FRAMES, seed=1, **options).joints[0]
    ends = (slice(0, GIVEN), slice(FRAMES - GIVEN, FRAMES))
    known = [Known(person, joints=each[run], frames=run) for person, each in enumerate(given) for run in ends]
    return pipe(PROMPT, FRAMES, seed=2, control=Control(known), **options)


def target(pipe: MotionPipeline, options: dict[str, Any]) -> Any:
    """A wrist of the second person comes to the head of the first, where it was not."""
    to = [Target(1, "left_wrist", [30, 31], to=(0, "head"), distance=0.1)]
    return pipe("two people talk", FRAMES, seed=3, control=Control(targets=to), **options)


def timeline(pipe: MotionPipeline, options: dict[str, Any]) -> Any:
    """Two prompts in one scene."""
    return pipe.timeline([(PROMPT, FRAMES), ("two people dance salsa", FRAMES)], seed=1, **options)


def persons(pipe: MotionPipeline, options: dict[str, Any]) -> Any:
    """Two pairs."""
    return pipe(PROMPT, FRAMES, seed=1, num_persons=4, **options)


KINDS: tuple[Callable[[MotionPipeline, dict[str, Any]], Any], ...] = (reaction, gap, target, timeline, persons)


def live(pipe: MotionPipeline, steps: int) -> np.ndarray[Any, Any]:
    """Three chunks of the one prompt and three of another, sent while the scene goes on."""
    scene = pipe.live(PROMPT, seed=1, num_inference_steps=min(4, steps))
    chunks = [next(scene) for _ in range(3)]
    scene.send("two people dance salsa")
    return np.concatenate([each.numpy() for each in [*chunks, *(next(scene) for _ in range(3))]], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="duets")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipe = MotionPipeline.from_pretrained(arguments.model)
    options = {"num_inference_steps": arguments.steps}
    for kind in KINDS:
        take = kind(pipe, options).take(view=VIEW)
        print(*export.save_take(arguments.out / f"{kind.__name__}.gif", take))
    path = arguments.out / "live.gif"
    print(*export.save(path, live(pipe, arguments.steps), pipe.config.fps, view=VIEW))


if __name__ == "__main__":
    main()
