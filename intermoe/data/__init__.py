"""Motion of two persons or one: representation, readers, augmentation, statistics and batching."""

from intermoe.data.batching import MotionBatch, collate
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.dataset import MotionDataset
from intermoe.data.interhuman import InterHumanDataset
from intermoe.data.items import DataSet, DatasetReport, MotionItem
from intermoe.data.sets import DATA_SETS, prepare

__all__ = [
    "DATA_SETS",
    "DataSet",
    "DatasetReport",
    "InterHumanDataset",
    "MotionBatch",
    "MotionDataset",
    "MotionItem",
    "collate",
    "mirror_caption",
    "prepare",
    "swap_caption",
]
