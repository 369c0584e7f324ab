"""Models on the Hugging Face Hub: their ids, reading a revision into the local cache, writing a repository."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_ID = re.compile(f"{_PART}/{_PART}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` of a repository's id."""
    return _ID.fullmatch(name) is not None and len(name) <= 96 and "--" not in name and ".." not in name


def download(repo_id: str, files: list[str], revision: str | None = None) -> Path:
    """The local folder of a repository's ``files``, read from the Hub unless the local cache has them.

    What the environment says of tokens, cache and being offline (``HF_TOKEN``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``)
    is huggingface_hub's affair.

    Args:
        revision: branch, tag or commit; by default the main branch.

    Raises:
        ModuleNotFoundError: huggingface_hub is absent; names the extra.
        FileNotFoundError: no such repository or revision, or neither the Hub can be reached nor the cache has it.
    """
    hub = _huggingface_hub()
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=files, library_name="intermoe"))
    except (OSError, ValueError) as error:  # every error of the Hub is one of both
        raise FileNotFoundError(
            f"model: {repo_id!r}{at} is not in the local cache and could not be read from the Hub: {error}"
        ) from error


def upload(
    repo_id: str,
    folder: Path,
    *,
    card: str,
    private: bool | None,
    revision: str | None,
    message: str,
    token: str | None,
) -> str:
    """Write a folder's files to a repository, made if absent, as one commit; returns the commit's address.

    ``card`` becomes its README.md where it has none.

    Raises:
        ModuleNotFoundError: huggingface_hub is absent. ValueError: no id of a repository.
    """
    hub = _huggingface_hub()
    if not is_hub_id(repo_id):
        raise ValueError(f"repo_id: expected owner/name, got {repo_id!r}")
    api = hub.HfApi(token=token, library_name="intermoe")
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    if not api.file_exists(repo_id, "README.md", revision=revision):
        (folder / "README.md").write_text(card, encoding="utf-8")
    commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    return str(commit.commit_url)


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "huggingface_hub is needed for models of the Hub: pip install 'intermoe[generate]'"
        ) from error
    return huggingface_hub
