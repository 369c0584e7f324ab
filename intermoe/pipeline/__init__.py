"""What every system keeps: prompts in, motion of several persons out; its result, and the systems and models there are.

Generation, evaluation, control, export and the command know systems only through ``MotionPipeline``. A new system is a
folder in ``intermoe.systems`` and a line in ``SYSTEMS``.
"""

from intermoe.pipeline.base import UNTRAINED, MotionPipeline
from intermoe.pipeline.models import SYSTEMS, ModelConfig, model_config
from intermoe.pipeline.result import PipelineResult
from intermoe.pipeline.system import Progress, check_batch

__all__ = [
    "SYSTEMS",
    "UNTRAINED",
    "ModelConfig",
    "MotionPipeline",
    "PipelineResult",
    "Progress",
    "check_batch",
    "model_config",
]
