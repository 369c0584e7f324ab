"""Motion of two persons or one: representation, readers, augmentation, statistics and batching."""

from intermoe.data.batching import MotionBatch, collate
from intermoe.data.captions import mirror_caption, swap_caption
from intermoe.data.dataset import MotionDataset
from intermoe.data.interhuman import InterHumanDataset
from intermoe.data.items import DatasetReport, MotionItem, MotionKind
from intermoe.data.kinds import KINDS, motion_kind, prepare
from intermoe.data.motion import FOOT_JOINTS, FPS, JOINT_NAMES, PARENTS, joints, mirror_raw, process_pair
from intermoe.data.statistics import Statistics, compute_statistics

__all__ = [
    "FOOT_JOINTS",
    "FPS",
    "JOINT_NAMES",
    "KINDS",
    "PARENTS",
    "DatasetReport",
    "InterHumanDataset",
    "MotionBatch",
    "MotionDataset",
    "MotionItem",
    "MotionKind",
    "Statistics",
    "collate",
    "compute_statistics",
    "joints",
    "mirror_caption",
    "mirror_raw",
    "motion_kind",
    "prepare",
    "process_pair",
    "swap_caption",
]
