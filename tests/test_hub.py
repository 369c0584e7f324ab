"""Models of the Hub: read offline from a cache laid out as huggingface_hub does, and what an upload asks for."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load, load_file

from intermoe import InterMoEPipeline, hub
from intermoe.cli.common import load_pipeline
from intermoe.hub import is_hub_id, model_card, model_folder
from intermoe.motion.interhuman import INTERHUMAN, SOLO
from intermoe.pipeline import MotionPipeline, model_config

REPO = "someone/two-people"


@pytest.fixture
def cached(tiny_pipeline: InterMoEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds ``REPO`` at main and, named otherwise, at the tag v1; and no way to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--two-people"
    for reference, commit, name in (("main", "a" * 40, "newest"), ("v1", "b" * 40, "first")):
        folder = repository / "snapshots" / commit
        tiny_pipeline.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "name": name}))
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    return tmp_path


def test_a_model_is_read_from_the_cache_by_its_id(cached: Path, tiny_pipeline: InterMoEPipeline) -> None:
    pipeline = MotionPipeline.from_pretrained(REPO)
    assert pipeline.config.name == "newest"
    for name, value in tiny_pipeline.denoiser.state_dict().items():
        assert torch.equal(pipeline.modules["denoiser"].state_dict()[name], value), name
    assert InterMoEPipeline.from_pretrained(REPO, revision="v1").config.name == "first"
    assert MotionPipeline.from_pretrained(REPO, revision="b" * 40).config.name == "first"
    assert model_config(REPO).name == "newest"
    assert load_pipeline(REPO, "cpu").config.name == "newest"  # as the command does


def test_a_folder_comes_before_the_hub(
    cached: Path, tiny_pipeline: InterMoEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.save_pretrained(tmp_path / "here" / REPO)
    monkeypatch.chdir(tmp_path / "here")
    assert model_folder(REPO) == Path(REPO)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_what_is_neither_cached_nor_reached_is_told(cached: Path, revision: str | None) -> None:
    name = "someone/else" if revision is None else REPO
    with pytest.raises(FileNotFoundError, match=f"^model: '{name}'.* is not in the local cache") as caught:
        MotionPipeline.from_pretrained(name, revision=revision)
    assert revision is None or "revision 'v2'" in str(caught.value)


def test_a_revision_belongs_to_the_hub(cached: Path) -> None:
    with pytest.raises(ValueError, match=r"^revision: expected none for a model that is not of the Hub, got 'v1'"):
        MotionPipeline.from_pretrained("duets", revision="v1")


@pytest.mark.parametrize("revision", [5, True, b"main", ["main"]])
def test_a_revision_is_a_text(cached: Path, revision: Any) -> None:
    for name in (REPO, "duets"):
        with pytest.raises(TypeError, match=r"^revision: expected a branch, tag or commit, got"):
            MotionPipeline.from_pretrained(name, revision=revision)


@pytest.mark.parametrize("revision", ["", " "])
def test_a_revision_is_not_empty(cached: Path, revision: str) -> None:
    with pytest.raises(ValueError, match=r"^revision: expected a branch, tag or commit, got"):
        MotionPipeline.from_pretrained(REPO, revision=revision)


@pytest.mark.parametrize("name", [None, 5, b"duets", ["duets"]])
def test_a_model_is_a_name_or_a_path(name: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a folder, a shipped name or owner/name, got"):
        MotionPipeline.from_pretrained(name)


def test_broken_weights_are_named_alone(tiny_pipeline: InterMoEPipeline, tmp_path: Path) -> None:
    """The tokenizer, which is read before, is not to blame."""
    tiny_pipeline.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    told = rf"^{re.escape(str(tmp_path))}/model\.safetensors: expected a readable"
    with pytest.raises(ValueError, match=told):
        MotionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"repo_id": None}, TypeError, "repo_id: expected owner/name, got None"),
        ({"repo_id": Path(REPO)}, TypeError, "repo_id: expected owner/name, got"),
        ({"private": "no"}, TypeError, "private: expected True or False, got 'no'"),
        ({"revision": ""}, ValueError, "revision: expected a branch, got ''"),
        ({"revision": 5}, TypeError, "revision: expected a branch, got 5"),
    ],
)
def test_an_upload_of_another_kind_is_refused_before_it_begins(
    client: type[Client], tiny_pipeline: InterMoEPipeline, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        tiny_pipeline.push_to_hub(**{"repo_id": REPO, **change})
    assert client.calls == []


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"intermoe\[generate\]"):
        model_folder(REPO)


@pytest.mark.parametrize("name", ["a/b", "org.name/model-1_x", f"{'a' * 47}/{'b' * 48}"])
def test_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["duets", "a/b/c", "/a/b", "./model", "../a", "runs/", "a b/c", "a--b/c", "-a/b", f"{'a' * 48}/{'b' * 48}"]
)
def test_names_that_are_no_ids(name: str) -> None:
    assert not is_hub_id(name)


class Client:
    """Stands in for ``huggingface_hub.HfApi``; keeps what was asked of it."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]]
    uploaded: ClassVar[dict[str, bytes]]
    has_card: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        self.calls.append(("client", options))

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("repo", {"repo_id": repo_id, **options}))

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("branch", {"repo_id": repo_id, **options}))

    def file_exists(self, repo_id: str, name: str, **options: Any) -> bool:
        self.calls.append(("exists", {"name": name, **options}))
        return self.has_card

    def upload_folder(self, *, folder_path: Path, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload", options))
        self.uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
        return SimpleNamespace(commit_url="https://example.org/commit")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    made = type("Client", (Client,), {"calls": [], "uploaded": {}})
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


def test_an_upload_is_one_commit_with_a_card(
    client: type[Client], tiny_pipeline: InterMoEPipeline, tmp_path: Path
) -> None:
    address = tiny_pipeline.push_to_hub(REPO, private=True, revision="trial", dtype=torch.float16, token="secret")
    assert address == "https://example.org/commit"
    assert [name for name, _ in client.calls] == ["client", "repo", "branch", "exists", "upload"]
    asked = dict(client.calls)
    assert asked["client"] == {"token": "secret", "library_name": "intermoe"}
    assert asked["exists"] == {"name": "README.md", "revision": "trial"}
    assert asked["repo"] == {"repo_id": REPO, "private": True, "exist_ok": True}
    assert asked["branch"] == {"repo_id": REPO, "branch": "trial", "exist_ok": True}
    assert asked["upload"]["revision"] == "trial"
    assert sorted(client.uploaded) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    _, front, text = client.uploaded["README.md"].decode().split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["library_name"] == "intermoe"
    assert {"text-to-motion", "intermoe"} <= set(values["tags"])
    assert f'from_pretrained("{REPO}")' in text
    for name, content in client.uploaded.items():
        (tmp_path / name).write_bytes(content)
    MotionPipeline.from_pretrained(tmp_path)  # what was written is a model
    sent = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for name, value in sent.items() if name.endswith(".w_down")} == {torch.float16}


def test_an_upload_says_what_its_model_is(
    client: type[Client], tiny_pipeline: InterMoEPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of the card is the model's own, and each has another value."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        "intermoe.pipeline.base.model_card", lambda name, **of: (told.update(of, name=name), "a card")[1]
    )
    config = replace(tiny_pipeline.config, min_frames=9, max_frames=63)
    monkeypatch.setattr(tiny_pipeline, "config", config)
    tiny_pipeline.push_to_hub(REPO)
    assert client.uploaded["README.md"] == b"a card"
    sent = load(client.uploaded["model.safetensors"])
    own = [f"{part}.{name}" for part, m in tiny_pipeline.modules.items() for name, _ in m.named_parameters()]
    assert told == {
        "name": REPO, "system": "intermoe", "representation": INTERHUMAN, "fps": config.fps, "frames": (9, 63),
        "parameters": sum(sent[name].numel() for name in own),
    }  # fmt: skip


def test_a_card_that_is_there_stays(client: type[Client], tiny_pipeline: InterMoEPipeline) -> None:
    client.has_card = True
    tiny_pipeline.push_to_hub(REPO)
    assert "README.md" not in client.uploaded
    assert [name for name, _ in client.calls] == ["client", "repo", "exists", "upload"]


@pytest.mark.parametrize("step", ["create_repo", "create_branch", "file_exists", "upload_folder"])
@pytest.mark.parametrize("error", [HfHubHTTPError, ConnectionError, RuntimeError])
def test_an_upload_that_fails_names_the_repository(
    step: str, error: type[Exception], client: type[Client], tiny_pipeline: InterMoEPipeline
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if issubclass(error, HfHubHTTPError):
            raise error("401: who\nare you", response=SimpleNamespace(headers={}, request=None))
        raise error("401: who\nare you")

    setattr(client, step, fail)
    with pytest.raises(OSError, match=rf"^repo_id: '{REPO}' could not be written to: 401: who are you"):
        tiny_pipeline.push_to_hub(REPO, revision="trial")
    assert not client.uploaded


def test_weights_that_are_not_finite_are_not_sent(client: type[Client], tiny_pipeline: InterMoEPipeline) -> None:
    broken = copy.deepcopy(tiny_pipeline)
    next(iter(broken.modules["denoiser"].parameters())).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="expected finite numbers"):
        broken.push_to_hub(REPO)
    assert not client.calls


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"repo_id": "mine"}, ValueError, r"^repo_id: expected owner/name, got 'mine'"),
        ({"private": "yes"}, TypeError, r"^private: expected .*, got 'yes'"),
        ({"revision": 3}, TypeError, r"^revision: expected .*a branch.*, got 3"),
    ],
)
def test_what_no_repository_takes_is_refused_before_anything_is_written(
    change: dict[str, Any],
    error: type[Exception],
    told: str,
    client: type[Client],
    tiny_pipeline: InterMoEPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(tiny_pipeline), "save_pretrained", lambda *_, **__: pytest.fail("written in vain"))
    with pytest.raises(error, match=told):
        tiny_pipeline.push_to_hub(**{"repo_id": REPO, **change})
    assert not client.calls


@pytest.mark.parametrize("message", [None, "a better model"])
def test_a_commit_says_what_it_is_told_to(
    message: str | None, client: type[Client], tiny_pipeline: InterMoEPipeline
) -> None:
    tiny_pipeline.push_to_hub(REPO, **({} if message is None else {"commit_message": message}))
    asked = dict(client.calls)["upload"]
    assert asked == {
        "repo_id": REPO, "revision": None, "commit_message": message or "Upload a model of intermoe"
    }  # fmt: skip


@pytest.mark.parametrize(("most", "asked"), [(60, 60), (120, 120), (300, 120)])
def test_a_card_says_sizes_and_asks_for_a_length_that_the_model_has(most: int, asked: int) -> None:
    card = model_card(
        REPO, system="intermoe", representation=INTERHUMAN, parameters=12_345_678, fps=30, frames=(16, most)
    )
    assert "| parameters | 12.3 million |" in card
    assert f"| motion | 16 to {most} frames at 30 a second |" in card
    assert f"num_frames={asked}, seed=0)" in card
    assert "Text to motion of 2 people" in card


def test_all_files_of_a_model_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: (asked.update(options), tmp_path)[1]
    )
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(
            FileNotFoundError, match=r"nor a folder or a repository of the Hub .* with config\.json and"
        ):
            model_folder(REPO, "v1")
        (tmp_path / name).touch()
    assert model_folder(REPO, "v1") == tmp_path
    assert (asked["revision"], asked["allow_patterns"]) == (
        "v1",
        ["config.json", "model.safetensors", "tokenizer.json"],
    )


def test_who_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Libraries ask again for minutes: whether anybody is there is asked first, and then they are told."""
    transformers = pytest.importorskip("transformers")
    from intermoe.text.huggingface import load_frozen, load_tokenizer

    local, asked = [], []

    def load(place: str, *, local_files_only: bool, **_: Any) -> None:
        local.append(local_files_only)
        raise OSError(f"no {place}")

    def silence(api: Any, name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        raise ConnectionError("Name or service not known")

    def refusal(api: Any, name: str, **_: Any) -> None:
        raise HfHubHTTPError("401", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    for answer, expected in ((silence, True), (refusal, False), (lambda *_, **__: None, False)):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
        for read in (load_frozen, load_tokenizer):
            with pytest.raises(ValueError, match=r"name_or_path: expected a .* in 'owner/name': no owner/name"):
                read("owner/name")
            assert local.pop() is expected
    assert [name for name, _ in asked] == ["owner/name"] * 2
    assert all(seconds <= 10 for _, seconds in asked)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("a folder is not asked for"))
    with pytest.raises(ValueError, match="expected a text encoder"):
        load_frozen(str(tmp_path))


def test_a_card_names_its_model_wherever_it_is_used() -> None:
    card = model_card("me/mine", system="a-system", representation=SOLO, parameters=949_999, fps=20, frames=(16, 80))
    lines = card.splitlines()
    assert lines[: lines.index("---", 1)] == [
        "---", "library_name: intermoe", "pipeline_tag: other", "tags:", "- text-to-motion", "- human-motion",
        "- motion-generation", "- diffusion", "- a-system",
    ]  # fmt: skip
    told = "Text to motion of 1 person: a model of the system `a-system` for [intermoe](https://pypi.org/project/intermoe/)."
    for line in (
        "# me/mine",
        told,
        "| representation | `solo` |",
        "| parameters | 0.9 million |",
        "| motion | 16 to 80 frames at 20 a second |",
        'intermoe generate "two people bow to each other" --model me/mine --out results/',
    ):
        assert line in lines
    call = 'MotionPipeline.from_pretrained("me/mine")("two people bow to each other", num_frames=80, seed=0)'
    assert f"result = {call}" in lines


def test_files_are_asked_for_in_the_packages_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *given, **of: (asked.append((given, of)), str(tmp_path))[1]
    )
    assert hub.download(REPO, ["a", "b"]) == tmp_path
    assert asked == [((REPO,), {"revision": None, "allow_patterns": ["a", "b"], "library_name": "intermoe"})]


@pytest.mark.parametrize("error", [OSError("no\nroute"), ValueError("no\nroute"), KeyError("no")])
def test_only_errors_of_the_hub_are_told_as_such(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    kind = KeyError if isinstance(error, KeyError) else FileNotFoundError
    told = rf"^model: '{REPO}' at revision 'v1' is not in the local cache and could not be read from the Hub: no"
    with pytest.raises(kind, match="no" if kind is KeyError else told):
        hub.download(REPO, ["a"], "v1")


def test_what_is_here_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def client(**options: Any) -> Any:
        made.append(options)
        return SimpleNamespace(model_info=lambda name, timeout: made.append((name, timeout)))

    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    assert hub.is_local(str(tmp_path))
    assert made == []
    assert not hub.is_local(REPO)
    assert made == [{"library_name": "intermoe"}, (REPO, 10)]


def test_shipped_models_come_before_folders_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only folders with a configuration are models, in the order of their names."""
    for name in ("zebra", "ant", "mule", "bee", "empty", "owl", "cat"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "here" / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / "shipped" / name / "config.json").touch()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / "here" / name / file).touch()
    monkeypatch.setattr(hub, "MODELS", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path / "here")
    assert hub.available_models() == ["ant", "bee", "cat", "mule", "owl", "zebra"]
    assert model_folder("ant") == tmp_path / "shipped" / "ant"
    assert model_folder("empty") == Path("empty")
    assert model_folder(Path("./ant")) == tmp_path / "shipped" / "ant"
    assert model_folder("./ant") == Path("./ant")
    names = "ant, bee, cat, mule, owl, zebra"
    told = f"model: 'none' is neither a shipped model ({names}) nor a folder or a repository of the Hub (owner/name)"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(told)} with config.json and model.safetensors$"):
        model_folder("none")
    with pytest.raises(ValueError, match=r"^revision: expected none for a model that is not of the Hub, got 'v1'$"):
        model_folder("./ant", "v1")
