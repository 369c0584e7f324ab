"""``intermoe live``: what it refuses before a page opens, and a page that is served, saves and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from intermoe.cli import app
from intermoe.cli.live import half_the_cores

pytest.importorskip("viser", reason="the page is viser's")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "0"], "--steps"),
        (["--guidance", "0.5"], "--guidance"),
        (["--seed", "-1"], "--seed"),
        (["--chunk", "1"], "chunk"),
        (["--camera", "back"], "camera"),
        (["--scheduler", "euler-ish"], "scheduler"),
        (["--model", "nothing"], "model"),
        ([" "], "prompt"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["live", *arguments])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert "http://" not in done.output


def test_a_page_goes_on_and_saves_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from intermoe.viz.live import LivePage

    run = LivePage.run

    def interrupted(page: LivePage, stop: Any = None) -> None:
        run(page, lambda: len(page._seen) >= 25)
        page.save("npz")
        raise KeyboardInterrupt

    monkeypatch.setattr(LivePage, "run", interrupted)
    arguments = ["--steps", "1", "--chunk", "16", "--port", "0", "--out", str(tmp_path / "out"), "--seed", "3"]
    done = CliRunner().invoke(app, ["live", "Two people dance salsa.", *arguments])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("http://127.0.0.1:")
    (file,) = (tmp_path / "out").iterdir()
    with np.load(file, allow_pickle=False) as archive:
        assert archive["joints"].shape == (2, 25, 22, 3)
        assert str(archive["prompt"]) == "Two people dance salsa."


@pytest.mark.parametrize(("asked", "threads"), [(None, 4), ("8", 8)])
def test_browsers_have_half_of_the_cores(asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        with half_the_cores():
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 8
        torch.set_num_threads(1)
        with half_the_cores():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
