from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from intermoe.train import checkpoint


def _write(folder: Path, step: int, keep: int = 2) -> Path:
    weights = {"w": torch.full((3, 2), float(step)), "count": torch.tensor(step)}
    return checkpoint.write_checkpoint(
        folder, step, model=weights, average=weights, optimizer={"step": torch.tensor(step)}, state={"a": 1}, keep=keep
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, 7)
    model, average = checkpoint.read_weights(path)
    assert torch.equal(model["w"], torch.full((3, 2), 7.0))
    assert torch.equal(average["count"], torch.tensor(7))
    assert checkpoint.read_optimizer(path) == {"step": torch.tensor(7)}
    assert checkpoint.read_state(path) == {"step": 7, "a": 1}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 99_999_999, 100_000_000):  # by number: by name the last would come first
        _write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "step-100000000"


def test_unfinished_checkpoints_are_neither_found_nor_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            _write(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [first]
    shutil.copytree(first, tmp_path / ".writing-step-00000002")  # of a process that was killed
    assert checkpoint.latest_checkpoint(tmp_path) == first
    _write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_numbers_alike_in_another_shape_or_type_are_another_state() -> None:
    states = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(6)]
    assert len({checkpoint._digest({"step": state}) for state in states}) == 4
    assert checkpoint._digest({"step": states[0]}) == checkpoint._digest({"step": torch.zeros(2, 3)})


def test_a_step_is_written_anew(tmp_path: Path) -> None:
    _write(tmp_path, 7)
    assert checkpoint.read_state(_write(tmp_path, 7))["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


@pytest.mark.parametrize("part", ["model", "average", "optimizer"])
def test_numbers_that_are_not_finite_are_no_checkpoint(tmp_path: Path, part: str) -> None:
    parts: dict[str, Any] = {"model": {}, "average": {}, "optimizer": {"state": {"w": {"exp_avg": torch.zeros(2)}}}}
    wrong = {"w": torch.tensor([1.0, torch.nan])}
    parts[part] = {"state": [wrong]} if part == "optimizer" else wrong
    where = "'state.0.w'" if part == "optimizer" else "'w'"
    with pytest.raises(FloatingPointError, match=rf"expected finite numbers, got others in {where}"):
        checkpoint.write_checkpoint(tmp_path, 1, **parts, state={}, keep=1)
    assert not list(tmp_path.iterdir())


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "notes").mkdir()
    assert checkpoint.latest_checkpoint(tmp_path) is None


def test_a_pickle_in_place_of_the_optimizer_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, 1)
    torch.save({"code": Path}, path / checkpoint.OPTIMIZER)
    with pytest.raises(ValueError, match=r"optimizer\.pt: expected an optimiser's state: Weights only load failed"):
        checkpoint.read_optimizer(path)


@pytest.mark.parametrize(
    "name", [checkpoint.MODEL, checkpoint.AVERAGE, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.CONTENTS]
)
@pytest.mark.parametrize("how", ["cut", "edited", "empty"])
def test_a_file_that_is_not_as_it_was_written_is_named(name: str, how: str, tmp_path: Path) -> None:
    path = _write(tmp_path, 7)
    content = bytearray((path / name).read_bytes())
    if how == "edited" and name == checkpoint.STATE:
        content = content.replace(b'"a": 1', b'"a": 2')
    elif how == "edited" and name == checkpoint.CONTENTS:
        content = content.replace(b"optimizer", b"optimiser")
    elif how == "edited" and name == checkpoint.OPTIMIZER:  # most bytes of such a file say nothing
        torch.save({"step": torch.tensor(8)}, path / name)
        content = bytearray((path / name).read_bytes())
    elif how == "edited":
        content[len(content) // 2] ^= 1
    (path / name).write_bytes(content[: {"cut": len(content) - 20, "empty": 0}.get(how, len(content))])
    with pytest.raises(ValueError, match=rf"step-00000007/{name}: (expected|not as it was written)"):
        (checkpoint.read_optimizer if name == checkpoint.OPTIMIZER else checkpoint.read_state)(path)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER])
def test_broken_parts_of_checkpoints_that_know_no_content_are_named(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, 7)
    (path / checkpoint.CONTENTS).unlink()  # as earlier versions wrote it
    assert checkpoint.read_state(path) == {"step": 7, "a": 1}
    (path / name).write_bytes((path / name).read_bytes()[:100])
    read = checkpoint.read_weights if name == checkpoint.MODEL else checkpoint.read_optimizer
    with pytest.raises(ValueError, match=name):
        read(path)


def test_states_that_differ_in_a_name_an_order_or_a_border_are_told_apart() -> None:
    states: list[Any] = [
        {"a": 1}, {"b": 1}, {"a": 1.0}, {1: 1}, {"1": 1}, [1, 2], [2, 1], [12], [[1], [2]], ["1", "2"],
        None, {"a": None}, {"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}, {"a": {"b": 1}},
    ]  # fmt: skip
    assert len({checkpoint._digest(state) for state in states}) == len(states)
    assert checkpoint._digest((1, 2)) == checkpoint._digest([1, 2])  # a file gives back lists or tuples


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-7", "step-0000007", "step-00000007-old", "old-step-00000007", "step-0000000a"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest_checkpoint(tmp_path) is None
    path = _write(tmp_path, 7)
    assert checkpoint.latest_checkpoint(tmp_path) == path
    assert path.name == "step-00000007"


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files and its folder, then the name; then the folder that holds the name."""
    done: list[tuple[str, ...]] = []
    replace, sync = checkpoint.os.replace, checkpoint._sync
    monkeypatch.setattr(checkpoint, "_sync", lambda path: done.append(("sync", path.name)) or sync(path))
    monkeypatch.setattr(checkpoint.os, "replace", lambda a, b: done.append(("name", Path(b).name)) or replace(a, b))
    path = _write(tmp_path, 7)
    done = [step for step in done if step[1] not in {f.name for f in path.iterdir()} or step[0] == "sync"]
    files = {("sync", file.name) for file in path.iterdir()}
    assert len(files) == 5
    assert set(done[:5]) == files
    assert done[5:] == [("sync", f".writing-{path.name}"), ("name", path.name), ("sync", tmp_path.name)]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"optimizer\.pt: cannot be written: PytorchStreamWriter failed writing file"):
        _write(tmp_path, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[7]", '{"a": 1}', '"step"'])
def test_counters_without_a_step_are_no_counters(content: str, tmp_path: Path) -> None:
    path = _write(tmp_path, 7)
    (path / checkpoint.CONTENTS).unlink()
    (path / checkpoint.STATE).write_text(content)
    with pytest.raises(ValueError, match=r"state\.json: expected the counters of a checkpoint, got other values"):
        checkpoint.read_state(path)


def test_a_removal_that_is_cut_short_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1)

    def cut(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]
    assert checkpoint.read_state(tmp_path / "step-00000002")["step"] == 2
    _write(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
