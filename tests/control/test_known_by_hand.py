"""What is beside given frames, and where a motion is given, by sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intermoe.control.known import BLEND, HOLDING, MOST_BLEND, MOST_RESAMPLING, Control, Given, Known, known_latents
from intermoe.motion.bones import bone_lengths
from intermoe.motion.interhuman import INTERHUMAN, with_positions
from intermoe.motion.rig import REST_POSE, at_rest


def trembling(persons: int, frames: int) -> torch.Tensor:
    """Motion (P, T, 262) of rigid bodies that tremble as a whole."""
    places = 0.05 * torch.randn(persons, frames, 1, 3, generator=torch.Generator().manual_seed(0))
    return with_positions(torch.zeros(persons, frames, 262), torch.as_tensor(at_rest(REST_POSE)).float() + places)


def test_frames_beside_given_ones_are_smoothed_four_times_as_far_as_they_blend() -> None:
    """Each time y, which minimises |y - x|^2 + 10 |third difference of y|^2 over the free frames within four of them.

    Bones are those that are wanted, so that nothing but smoothing moves anybody. Of three persons the first is given
    from frame 6 to 11, the second not at all and the third all the time.
    """
    motion, blend = trembling(3, 24), 4
    where = torch.zeros(3, 24, dtype=torch.bool)
    where[0, 6:12] = where[2] = True
    given = Given(INTERHUMAN, motion * where[..., None], where, blend)
    lengths = bone_lengths(INTERHUMAN.joints(motion))
    found = given.with_rigid_bones(motion, lengths)
    assert torch.equal(found[1:], motion[1:])
    assert torch.equal(found[0, 6:12], motion[0, 6:12])
    x = INTERHUMAN.joints(motion)[0, :, 0].double().numpy()
    free = [2, 3, 4, 5, 12, 13, 14, 15]
    fixed = [frame for frame in range(24) if frame not in free]
    d3 = np.sqrt(10) * np.diff(np.eye(24), n=3, axis=0)
    for _ in range(4):
        rows = np.concatenate([d3[:, free], np.eye(8)])
        x[free] = np.linalg.lstsq(rows, np.concatenate([-d3[:, fixed] @ x[fixed], x[free]]), rcond=None)[0]
    made = INTERHUMAN.joints(found)[0]
    np.testing.assert_allclose(made[:, 0], x, atol=2e-5)
    np.testing.assert_allclose(made[:, 9] - made[:, 0], np.tile(at_rest(REST_POSE)[9], (24, 1)), atol=1e-5)
    assert HOLDING == 4


@pytest.mark.parametrize(("frames", "expected"), [(None, (0, 3)), (slice(5, None), (5, 8)), (slice(None, 3), (0, 3))])
def test_where_frames_go(frames: slice | None, expected: tuple[int, int]) -> None:
    known = Known(1, motion=torch.full((3, 262), 2.0), frames=frames)
    assert known.run == slice(*expected)
    given = Control([known]).place(INTERHUMAN, 8, 2)
    assert given.blend == BLEND == 16
    assert given.motion.shape == (2, 8, 262)
    wanted = [[False] * 8, [expected[0] <= frame < expected[1] for frame in range(8)]]
    assert given.where.tolist() == wanted
    assert ((given.motion == 2.0).all(dim=-1) == given.where).all()
    assert (given.motion[~given.where] == 0).all()


def test_the_largest_values_of_a_control_and_of_a_number() -> None:
    known = [Known(0, motion=torch.full((2, 262), -1e4))]
    assert (MOST_BLEND, MOST_RESAMPLING) == (1000, 100)
    assert Control(known, blend=1000, resampling=100).blend == 1000
    assert Control(known, blend=0, resampling=1).resampling == 1
    for name, value in (("blend", 1001), ("resampling", 0), ("resampling", 101)):
        with pytest.raises(ValueError, match=f"^{name}: expected a value in "):
            Control(known, **{name: value})
    with pytest.raises(ValueError, match=r"^motion: expected finite numbers up to 10000, got others in frame 1$"):
        Known(0, motion=torch.tensor([[1e4], [-1.001e4]]))


def test_what_steers_is_there_where_anything_does() -> None:
    known = [Known(0, motion=torch.zeros(2, 262))]
    assert Control(known).aims is None
    aims = Control(known, bodies_apart=True).aims
    assert aims is not None
    assert (aims.targets, aims.bodies_apart) == ((), True)


def test_latents_of_a_batch_are_padded_with_nothing_known() -> None:
    """Of two motions of 5 and 9 frames, coded by four, the first has two latent frames, of which one is known."""
    motion = torch.arange(9.0)[:, None].expand(9, 262)
    given = [
        Control([Known(1, motion=motion[:count])]).place(INTERHUMAN, frames, 2) for count, frames in ((4, 5), (9, 9))
    ]
    seen: list[tuple[int, ...]] = []

    def encode(motion: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(motion.shape))
        return motion[:, :, 3::4, :5].unflatten(-1, (5, 1))

    known = known_latents(given, encode, 4, by_levels=False)
    assert seen == [(1, 2, 8, 262), (1, 2, 12, 262)]
    assert known.where.tolist() == [[[False] * 3, [True, False, False]], [[False] * 3, [True, True, True]]]
    assert known.latents.shape == (2, 2, 3, 5)
    assert known.latents[:, 1, :, 0].tolist() == [[3.0, 3.0, 0.0], [3.0, 7.0, 8.0]]  # the last frame is held
    assert not known.latents[:, 0].any()
