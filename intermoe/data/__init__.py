"""Two-person motion: representation, readers, augmentation, statistics and batching."""

from intermoe.data.batching import MotionBatch, collate
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.interhuman import DatasetReport, InterHumanDataset, MotionItem
from intermoe.data.motion import FOOT_JOINTS, FPS, JOINT_NAMES, PARENTS, joints, mirror_raw, process_pair
from intermoe.data.statistics import Statistics, compute_statistics

__all__ = [
    "FOOT_JOINTS",
    "FPS",
    "JOINT_NAMES",
    "PARENTS",
    "DatasetReport",
    "InterHumanDataset",
    "MotionBatch",
    "MotionItem",
    "Statistics",
    "collate",
    "compute_statistics",
    "joints",
    "mirror_caption",
    "mirror_raw",
    "process_pair",
    "swap_caption",
]
