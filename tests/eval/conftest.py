"""Two-person motion in InterHuman's layout and a small evaluator of it, for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FRAMES = (18, 31, 17, 22, 16, 40, 19)
CAPTIONS = "Two people bow.\nThe first dancer turns to the left.\nOne of them turns."


@pytest.fixture(scope="session")
def bowing(two_people: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sequences of bodies that sway, seeded; all of them are the split "test"."""
    items = {str(number): frames for number, frames in enumerate(FRAMES, start=1)}
    return two_people(tmp_path_factory.mktemp("bowing"), {"test": items}, CAPTIONS)


@pytest.fixture(scope="session")
def tiny_evaluator() -> Any:
    """An evaluator that was never trained."""
    from intermoe.evaluators.interclip import InterClip, InterClipConfig
    from intermoe.text.protocol import TextConfig
    from intermoe.text.wordpiece import WordPieceTextEncoder

    torch.manual_seed(0)
    text = TextConfig(output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=16, vocab_size=90)
    config = InterClipConfig(width=8, num_layers=1, num_heads=2, feedforward_dim=8, embedding_dim=6, text=text)
    return InterClip(config, WordPieceTextEncoder.train_tokenizer(CAPTIONS.split("\n"), 90)).eval()
