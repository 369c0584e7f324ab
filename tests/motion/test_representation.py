"""Representations: every column has one owner, every graph is a tree over its joints, every joint is pooled."""

from __future__ import annotations

import pytest
import torch

from intermoe.motion.representation import ABSENT, REPRESENTATIONS, Representation
from intermoe.motion.skeleton import FOOT_JOINTS


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


def test_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match=r"representation: expected one of interhuman, .*got 'kit'"):
        REPRESENTATIONS["kit"]
