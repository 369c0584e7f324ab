"""Representations: every column has one owner, every graph is a tree over its joints, every joint is pooled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intermoe.motion.interx import raw_motion
from intermoe.motion.representation import ABSENT, REPRESENTATIONS, Representation
from intermoe.motion.rotations import rotation_matrices, to_rotation_vectors
from intermoe.motion.skeleton import BODY, FOOT_JOINTS, LEFT_JOINTS, RIGHT_JOINTS, WHOLE_BODY, Skeleton


@pytest.fixture(params=[*REPRESENTATIONS])
def own(request: pytest.FixtureRequest) -> Representation:
    return REPRESENTATIONS[request.param]


@pytest.mark.parametrize(
    ("name", "frame_shape", "sizes"),
    [("interhuman", (262,), (22, 12, 7)), ("interx", (55, 12), (55, 14, 7)), ("humanml3d", (263,), (22, 12, 7))],
)
def test_sizes(name: str, frame_shape: tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    own = REPRESENTATIONS[name]
    assert own.frame_shape == frame_shape
    assert (own.skeleton.num_joints, len(own.skeleton.groups[0]), own.skeleton.latent_joints) == sizes
    assert own.skeleton.pool(0).shape == (sizes[1], sizes[0])
    assert own.skeleton.pool(1).shape == (sizes[2], sizes[1])
    assert own.skeleton.adjacency(0).shape == (sizes[0], sizes[0])
    assert own.skeleton.adjacency(1).shape == (sizes[1], sizes[1])


def test_every_column_belongs_to_exactly_one_joint(own: Representation) -> None:
    owned = [column for columns in own.features for column in columns if column != ABSENT]
    assert sorted(owned) == list(range(own.frame_size))


@pytest.mark.parametrize("level", [0, 1])
def test_graph_is_a_tree(own: Representation, level: int) -> None:
    adjacency = own.skeleton.adjacency(level)
    size = len(adjacency)
    assert torch.equal(adjacency, adjacency.t())
    assert torch.equal(adjacency.diagonal(), torch.ones(size))
    assert len(own.skeleton.edges[level]) == size - 1
    assert (torch.linalg.matrix_power(adjacency, size) > 0).all(), "every joint is reachable from every other"


@pytest.mark.parametrize("level", [0, 1])
def test_pooling_averages_and_leaves_no_joint_out(own: Representation, level: int) -> None:
    pool = own.skeleton.pool(level)
    torch.testing.assert_close(pool.sum(dim=1), torch.ones(len(pool)))
    assert (pool.sum(dim=0) > 0).all()


@pytest.mark.parametrize(("name", "first"), [("interhuman", 258), ("humanml3d", 259)])
def test_contact_columns_go_to_feet_in_their_order(name: str, first: int) -> None:
    own = REPRESENTATIONS[name]
    assert [own.features[joint][-1] for joint in FOOT_JOINTS] == list(range(first, first + 4))


def test_interhuman_root_has_no_rotation_column() -> None:
    assert REPRESENTATIONS["interhuman"].features[0] == (0, 1, 2, *(ABSENT,) * 6, 66, 67, 68)


@pytest.mark.parametrize(("wrist", "first", "part"), [(20, 25, 4), (21, 40, 5)])
def test_interx_fingers_hang_on_their_wrist(wrist: int, first: int, part: int) -> None:
    own = REPRESENTATIONS["interx"]
    neighbours = own.skeleton.adjacency(0)[wrist].nonzero().flatten().tolist()
    assert neighbours == [wrist - 2, wrist, *range(first, first + 15, 3)]
    hand_to_part = own.skeleton.pool(1) @ own.skeleton.pool(0)
    assert (hand_to_part[:, first : first + 15] > 0).all(dim=1).nonzero().flatten().tolist() == [part]


def test_edges_between_limbs_are_where_a_bone_joins_them(own: Representation) -> None:
    limbs, _ = own.skeleton.groups
    limb_of = {joint: number for number, limb in enumerate(limbs) for joint in limb}
    for a, b in own.skeleton.edges[1]:
        joined = {frozenset((limb_of[parent], limb_of[child])) for parent, child in own.skeleton.bones}
        shared = set(limbs[a]) & set(limbs[b])
        assert frozenset((a, b)) in joined or shared, (a, b)


def test_a_finger_is_a_chain_from_its_wrist() -> None:
    parent_of = {child: parent for parent, child in REPRESENTATIONS["interx"].skeleton.bones}
    for wrist, first in ((20, 25), (21, 40)):
        for knuckle in range(first, first + 15, 3):
            assert [parent_of[joint] for joint in range(knuckle, knuckle + 3)] == [wrist, knuckle, knuckle + 1]


@pytest.mark.parametrize(("name", "grounded"), [("interhuman", True), ("interx", False), ("humanml3d", False)])
def test_feet_are_judged_where_contacts_and_places_are_known(name: str, grounded: bool) -> None:
    assert REPRESENTATIONS[name].grounded is grounded


def test_velocities_of_interx_are_steps_to_the_next_frame() -> None:
    rng = np.random.default_rng(0)
    motion = torch.from_numpy(raw_motion(*(rng.normal(size=s) for s in ((6, 2, 55, 3), (6, 2, 3), (55, 3)))))
    own = REPRESENTATIONS["interx"]
    steps = own.positions(motion).diff(dim=0)
    torch.testing.assert_close(motion[:-1, ..., own.velocity], steps, atol=1e-5, rtol=1e-4)
    x, y = motion[..., own.rotation].unflatten(-1, (2, 3)).unbind(-2)  # unit vectors at right angles
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(6, 2, 55))
    torch.testing.assert_close((x * y).sum(-1), torch.zeros(6, 2, 55), atol=1e-5, rtol=0)


def test_rotation_vectors_take_the_short_way() -> None:
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(500, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    vectors = axes * rng.uniform(0, 2 * np.pi, (500, 1))
    found = to_rotation_vectors(rotation_matrices(vectors))
    assert np.linalg.norm(found, axis=-1).max() <= np.pi + 1e-9
    np.testing.assert_allclose(rotation_matrices(found), rotation_matrices(vectors), atol=1e-9)


def test_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match=r"representation: expected one of interhuman, .*got 'kit'"):
        REPRESENTATIONS["kit"]


@pytest.mark.parametrize(
    ("name", "joint", "expected"),
    [  # position, rotation, velocity, contact
        ("interhuman", 8, [24, 25, 26, *range(174, 180), 90, 91, 92, 260]),
        ("interhuman", 21, [63, 64, 65, *range(252, 258), 129, 130, 131]),
        ("humanml3d", 0, [0, 1, 2, 3, 193, 194, 195]),
        ("humanml3d", 8, [25, 26, 27, *range(109, 115), 217, 218, 219, 261]),
        ("interx", 54, [*range(648, 660)]),
    ],
)
def test_columns_of_a_joint(name: str, joint: int, expected: list[int]) -> None:
    assert [*REPRESENTATIONS[name].features[joint]] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("interhuman", (slice(66, 132), slice(132, 258), slice(258, 262))),
        ("solo", (slice(66, 132), slice(132, 258), slice(258, 262))),
        ("humanml3d", (slice(193, 259), slice(67, 193), slice(259, 263))),
        ("interx", (slice(3, 6), slice(6, 12), None)),
    ],
)
def test_where_velocities_rotations_and_contacts_are(name: str, expected: tuple[slice, slice, slice | None]) -> None:
    own = REPRESENTATIONS[name]
    assert own.name == name
    assert (own.velocity, own.rotation, own.contacts) == expected
    assert own.root_centred == (name == "humanml3d")
    assert (own.from_joints is None) == (own.turned is None) == (name in ("humanml3d", "interx"))


def test_solo_is_interhuman_of_one_person() -> None:
    one, two = REPRESENTATIONS["solo"], REPRESENTATIONS["interhuman"]
    assert (one.persons, two.persons) == (1, 2)
    for name in ("fps", "min_frames", "max_frames", "skeleton", "frame_shape", "features"):
        assert getattr(one, name) == getattr(two, name)


@pytest.mark.parametrize("skeleton", [BODY, WHOLE_BODY], ids=["body", "whole body"])
def test_limbs_and_parts_of_one_side_are_those_of_the_other(skeleton: Skeleton) -> None:
    other = {**dict(zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True)), 23: 24}
    other |= {finger: finger + 15 for finger in range(25, 40)}
    other |= {right: left for left, right in other.items()}
    limbs = [frozenset(limb) for limb in skeleton.limbs]
    mirrored = [limbs.index(frozenset(other.get(joint, joint) for joint in limb)) for limb in limbs]
    assert sorted(mirrored) == list(range(len(limbs)))
    parts = [frozenset(part) for part in skeleton.parts]
    assert {frozenset(mirrored[limb] for limb in part) for part in parts} == set(parts)
    edges = {frozenset(edge) for edge in skeleton.limb_edges}
    assert {frozenset(mirrored[limb] for limb in edge) for edge in edges} == edges


@pytest.mark.parametrize("skeleton", [BODY, WHOLE_BODY], ids=["body", "whole body"])
@pytest.mark.parametrize("level", [0, 1])
def test_what_is_pooled_together_hangs_together(skeleton: Skeleton, level: int) -> None:
    for members in skeleton.groups[level]:
        if level == 0 and len(members) == 15:
            continue  # a hand without its wrist
        near = skeleton.adjacency(level)[list(members)][:, list(members)]
        assert (torch.linalg.matrix_power(near, len(members)) > 0).all(), members


def test_limbs_by_their_ends() -> None:
    """Left and right arms are from shoulder to wrist, legs from knee to toes; each is of one part of the body."""
    arms, legs = (16, 18, 20), (4, 7, 10)
    assert BODY.parts[4] == tuple(sorted([6, BODY.limbs.index((9, 13, 16)), BODY.limbs.index(arms)]))
    assert BODY.parts[1] == (0, BODY.limbs.index((0, 1, 4)), BODY.limbs.index(legs))
    assert [len(limb) for limb in BODY.limbs] == [4, 3, 3, 3, 3, 4, 5, 3, 3, 3, 3, 3]
    hands = [skeleton_limb for skeleton_limb in WHOLE_BODY.limbs if len(skeleton_limb) == 15]
    assert hands == [tuple(range(25, 40)), tuple(range(40, 55))]
    assert WHOLE_BODY.limbs[11] == (9, 12, 15, 22, 23, 24)
