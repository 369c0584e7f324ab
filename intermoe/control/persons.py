"""Another number of persons than a model makes together: groups of as many as it makes, in one scene.

A pair model has seen nobody beside the pair, and its first person always at the origin. So every group is made where
the model has it, and is then put beside those that stand already, as near as nobody reaches into another group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intermoe.config import check_integer
from intermoe.control.known import Control, Known
from intermoe.motion.representation import Representation
from intermoe.seeds import derived_seed

MOST = 8
GAP = 0.1
"""Metres between what two persons of different groups reach, at least, seen from above."""
_STEP, _DIRECTIONS = 0.25, 24

Make = Callable[[Sequence[int], Sequence[int], Control | None], list[Tensor]]
"""Which prompts, a seed for each, and a control to motions (P, T, ...) of as many persons as the model makes."""


def check_persons(num_persons: int, representation: Representation) -> int:
    """``num_persons`` as an integer.

    Raises:
        ValueError: fewer than 1, more than ``MOST``, or more than the model makes where its motion cannot be moved.
        TypeError: no integer.
    """
    num_persons = check_integer(num_persons, "num_persons", low=1, high=MOST)
    if num_persons > representation.persons and representation.turned is None:
        raise ValueError(
            f"num_persons: expected at most {representation.persons}, the motion of {representation.name} cannot be "
            f"moved, got {num_persons}"
        )
    return num_persons


def count_groups(num_persons: int, representation: Representation, prompts: int, *, reacts: bool) -> int:
    """How often ``crowd`` calls ``make``."""
    whole, left = divmod(num_persons, representation.persons)
    return max(whole, 1) if not left or not whole else whole + (prompts if reacts else 1)


def crowd(
    make: Make,
    representation: Representation,
    seeds: Sequence[int],
    num_persons: int,
    control: Control | None = None,
    *,
    reacts: bool = False,
) -> list[Tensor]:
    """Motions (num_persons, T, ...) of as many prompts as there are seeds.

    The first group is what the model makes of the prompt alone, and keeps ``control``, of which others keep
    ``bodies_apart``. They have noise of their own.
    Who is left over reacts to the first person, if ``reacts``, or else is the first of one more group.
    """
    size, every = representation.persons, range(len(seeds))
    apart = Control(bodies_apart=True) if control is not None and control.bodies_apart else None
    scenes = [[motion[:num_persons]] for motion in make(every, seeds, control)]
    for number in range(1, -(-num_persons // size)):
        left = num_persons - number * size
        own = [derived_seed(seed, number) for seed in seeds]
        if left >= size or not reacts:
            added = [motion[:left] for motion in make(every, own, apart)]
        else:
            added = []
            for index, scene in enumerate(scenes):
                given = [Known(person, motion=scene[0][person]) for person in range(size - left)]
                added.append(
                    make([index], [own[index]], Control(given, bodies_apart=apart is not None))[0][size - left :]
                )
        for scene, group in zip(scenes, added, strict=True):
            scene.append(_beside(scene, group, representation))
    return [torch.cat(scene) for scene in scenes]


def _beside(there: Sequence[Tensor], group: Tensor, representation: Representation) -> Tensor:
    """``group`` moved on the ground, as little as lets everybody in it keep clear of everybody ``there``."""
    turned = representation.turned
    if turned is None:  # refused already
        raise ValueError(representation.name)
    places, reach = _circles(torch.cat(list(there)), representation)
    own, own_reach = _circles(group, representation)
    wanted = reach[:, None] + own_reach + GAP
    ways = torch.arange(_DIRECTIONS) * 2 * torch.pi / _DIRECTIONS
    ways = torch.stack([ways.cos(), ways.sin()], dim=-1)  # the first is to a side of the first person, who faces Z+
    for step in itertools.count():
        shifts = step * _STEP * ways
        apart = (own + shifts[:, None, None, None] - places[:, None]).norm(dim=-1)
        clear = (apart >= wanted).flatten(1).all(dim=1)
        if clear.any():
            x, z = shifts[int(clear.int().argmax())].tolist()
            break
    return torch.stack([turned(each, torch.eye(3), -torch.tensor([x, 0.0, z])) for each in group])


def _circles(motion: Tensor, representation: Representation) -> tuple[Tensor, Tensor]:
    """Places (P, T, 2) of pelvises on the ground, and how far (P, T) any joint is from there."""
    ground = representation.joints(motion)[..., [0, 2]]
    pelvis = ground[..., 0, :]
    return pelvis, (ground - pelvis[..., None, :]).norm(dim=-1).amax(dim=-1)
