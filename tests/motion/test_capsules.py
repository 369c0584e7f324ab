"""How thick bodies are, and by how much the deepest two are in each other."""

from __future__ import annotations

import itertools

import pytest
import torch

from intermoe.motion.capsules import CAPSULES, deepest, overlaps, together
from intermoe.motion.skeleton import JOINT_NAMES

CENTIMETRES = {
    ("pelvis", "spine3"): 11, ("spine3", "neck"): 11, ("neck", "head"): 9, ("hip", "knee"): 7, ("knee", "ankle"): 5,
    ("shoulder", "elbow"): 4.5, ("elbow", "wrist"): 3.5,
}  # fmt: skip
THICK = {
    (JOINT_NAMES.index(f"{side}_{start}"), JOINT_NAMES.index(f"{side}_{end}")): thick
    for (start, end), thick in list(CENTIMETRES.items())[3:]
    for side in ("left", "right")
} | {(JOINT_NAMES.index(start), JOINT_NAMES.index(end)): thick for (start, end), thick in list(CENTIMETRES.items())[:3]}


def test_bodies_are_as_thick_as_people() -> None:
    assert {(start, end): round(100 * radius, 6) for start, end, radius in CAPSULES} == THICK
    table = together(torch.zeros(1, dtype=torch.float64))
    assert table.dtype == torch.float64
    for (row, (*_, one)), (column, (*_, other)) in itertools.product(enumerate(CAPSULES), repeat=2):
        assert float(table[row, column]) == pytest.approx(one + other)


def far(persons: int) -> torch.Tensor:
    """Joints (P, 2, 22, 3), every one metres from every other."""
    places = 5.0 * torch.arange(persons * 2 * 22, dtype=torch.float64).view(persons, 2, 22)
    return torch.stack([places, torch.zeros_like(places), 2 * places], dim=-1)


@pytest.mark.parametrize(("one", "other"), [((1, 4), (18, 20)), ((12, 15), (5, 8))])
def test_capsules_that_lie_side_by_side_are_in_each_other_by_what_they_are_thicker(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    """Their axes are 3 cm apart, in the second frame alone."""
    joints = far(3)
    ends = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.5, 0.0]], dtype=torch.float64)
    joints[2, 1, list(one)], joints[0, 1, list(other)] = ends, ends + torch.tensor([0.0, 0.0, 0.03])
    expected = (THICK[one] + THICK[other] - 3) / 100
    found = overlaps(joints[2], joints[0])
    row, column = ([(start, end) for start, end, _ in CAPSULES].index(pair) for pair in (one, other))
    assert float(found[1, row, column]) == pytest.approx(expected)
    assert int(found[0].count_nonzero()) == 0
    assert deepest(joints).tolist() == pytest.approx([0.0, float(found[1].max())])  # neighbours may be deeper
    assert float(deepest(joints[:2]).max()) == 0.0


def test_the_deepest_of_several_counts_once() -> None:
    """Three bodies of one place: trunks are in trunks by 22 cm, and not by the sum of the pairs."""
    joints = far(1).expand(3, 2, 22, 3)
    assert deepest(joints).tolist() == pytest.approx([0.22, 0.22], abs=1e-5)


def test_bodies_of_one_place_have_a_finite_slope() -> None:
    joints = far(1)[0].requires_grad_()
    overlaps(joints, joints.detach()).sum().backward()
    assert joints.grad is not None
    assert torch.isfinite(joints.grad).all()
