"""Two-person motion in InterHuman's layout and a small evaluator of it, for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FRAMES = (18, 31, 17, 22, 16, 40, 19)
CAPTIONS = "Two people bow.\nThe first dancer turns to the left.\nOne of them turns."


@pytest.fixture(scope="session")
def bowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sequences of bodies that sway, seeded; all of them are the split "test"."""
    root = tmp_path_factory.mktemp("bowing")
    rng = np.random.default_rng(0)
    body = np.column_stack([rng.uniform(-0.3, 0.3, 22), rng.uniform(-0.2, 0.2, 22), np.linspace(0.9, 1.7, 22)])
    body[1:3] = [[0.1, 0.0, 0.85], [-0.1, 0.0, 0.85]]  # hips beside each other: the facing direction
    for folder in ("motions_processed/person1", "motions_processed/person2", "annots", "split"):
        (root / folder).mkdir(parents=True)
    names = [str(number) for number in range(1, len(FRAMES) + 1)]
    (root / "split" / "test.txt").write_text("\n".join(names), encoding="utf-8")
    for name, frames in zip(names, FRAMES, strict=True):
        (root / "annots" / f"{name}.txt").write_text(CAPTIONS, encoding="utf-8")
        time = np.arange(frames + 1)[:, None, None] / 30
        for person in ("person1", "person2"):
            values = np.zeros((frames + 1, 492), dtype=np.float32)
            sway = 0.2 * np.sin(2 * time + rng.uniform(0, 6, (1, 22, 3)))
            values[:, :66] = (body + sway + rng.uniform(-1, 1, 3) * (1, 1, 0)).reshape(frames + 1, 66)
            values[:, 186:312] = rng.normal(size=126) + 0.1 * sway[:, :21].repeat(2, axis=-1).reshape(-1, 126)
            np.save(root / "motions_processed" / person / f"{name}.npy", values)
    return root


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
