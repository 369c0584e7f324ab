from __future__ import annotations

import pytest

from intermoe.train.stream import StreamSampler


@pytest.mark.parametrize(
    ("length", "batch_size"),
    [
        (10, 5),  # batches end with the epoch
        (10, 4),  # batches cross epochs
        (3, 8),  # a batch holds several epochs
        (1, 1),
    ],
)
def test_every_epoch_holds_every_item_once(length: int, batch_size: int) -> None:
    epochs = 4
    batches = list(StreamSampler(length, batch_size, range(-(-epochs * length // batch_size)), seed=0))
    stream = [draw for batch in batches for draw in batch][: epochs * length]
    assert all(len(batch) == batch_size for batch in batches)
    assert sorted(stream) == [(index, epoch) for index in range(length) for epoch in range(epochs)]


def test_a_batch_depends_on_its_number_alone() -> None:
    whole = list(StreamSampler(7, 3, range(20), seed=4))
    assert list(StreamSampler(7, 3, range(11, 20), seed=4)) == whole[11:], "resumed"
    assert list(StreamSampler(7, 3, range(1, 20, 2), seed=4)) == whole[1::2], "second of two ranks"
    assert list(StreamSampler(7, 3, range(20), seed=5)) != whole
