"""Motion of two persons or one: representation, readers, augmentation, statistics and batching."""

from intermoe.data.batching import MotionBatch, collate
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.dataset import MotionDataset
from intermoe.data.interhuman import InterHumanDataset
from intermoe.data.items import DatasetReport, MotionItem, MotionKind
from intermoe.data.kinds import KINDS, motion_kind, prepare

__all__ = [
    "KINDS",
    "DatasetReport",
    "InterHumanDataset",
    "MotionBatch",
    "MotionDataset",
    "MotionItem",
    "MotionKind",
    "collate",
    "mirror_caption",
    "motion_kind",
    "prepare",
    "swap_caption",
]
