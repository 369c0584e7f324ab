"""Replaced models on disk: the host's own files, and a note of the replacement to build it again before loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from intermoe.checkpoints import load_safetensors
from intermoe.integrations.adapters import BlockAdapter
from intermoe.integrations.replace import BLOCK_OPTIONS, CONFIG_KEY, Replacement, find_slots, install, make_feed_forward
from intermoe.reading import read_json

WEIGHTS = "diffusion_pytorch_model"


def reapply_replacement(
    model: nn.Module, config: Mapping[str, Any], *, adapters: Sequence[BlockAdapter] = ()
) -> Replacement:
    """Replace in a freshly built host what ``config`` says was replaced, so that a saved state dict fits it.

    Args:
        model: built as the saved one was, before any replacement.
        config: of ``replacement_config``.
        adapters: those given to ``replace_feed_forward``.

    Raises:
        ValueError: ``config`` is another thing, or of networks that the model has not.
    """
    noted = config.get("feed_forward") if isinstance(config, Mapping) and config.get("version") == 1 else None
    if not isinstance(noted, Mapping) or not all(_is_note(spec) for spec in noted.values()):
        raise ValueError(f"config: expected what replacement_config returns (version 1), got {config!r:.200}")
    slots = {slot.name: slot for slot in find_slots(model, adapters)}
    missing = sorted(set(noted) - set(slots))
    if missing:
        raise ValueError(f"config: expected some of the networks {sorted(slots)} of this model, got {missing}")
    made = []
    for name, saved in noted.items():
        spec = dict(saved)
        condition, residual = spec.pop("condition"), spec.pop("residual")
        made.append(
            (slots[name], make_feed_forward(slots[name], condition, "residual" if residual else "random", spec))
        )
    return install(model, made)


def _is_note(spec: Any) -> bool:
    """Whether these are plain values of one network; what each must be is checked as if it were given."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("residual"), bool):
        return False
    needed = {"num_experts", "expert_dim", "capacity", "condition", "residual"}
    return needed <= set(spec) <= {*needed, *BLOCK_OPTIONS}


def load_pretrained(
    model_class: Any, folder: str | Path, *, variant: str | None = None, adapters: Sequence[BlockAdapter] = ()
) -> Any:
    """Load a model whose feed-forward networks were replaced before its ``save_pretrained``.

    Args:
        model_class: the host's class, of diffusers or transformers, such as ``diffusers.DiTTransformer2DModel``.
        folder: what ``save_pretrained`` wrote; weights in safetensors, in one file or several.
        variant: as given to ``save_pretrained``, such as ``"fp16"``.
        adapters: those given to ``replace_feed_forward``.

    Returns:
        The model in evaluation mode. Every weight must be there and none may be left over.

    Raises:
        ValueError: for a class that neither library knows, a model of another class, or one without replaced networks.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is no folder; download a model of a hub first (snapshot_download)")
    values = _read_config(folder)
    found, loader = _kind(values, model_class)
    replaced = values.get(CONFIG_KEY) is not None
    if not (hasattr(model_class, "load_config") or hasattr(model_class, "config_class")):
        hint = f"{folder} holds a {found}"
        if not replaced:
            hint = "for others save replacement_config(model) beside the weights and use reapply_replacement"
        raise ValueError(
            f"model_class: expected a model class of diffusers or transformers, got {model_class!r}; {hint}"
        )
    if not replaced:
        raise ValueError(f"folder: expected replaced networks in {folder}, got {found} without; use {loader}")
    if model_class.__name__ != found:
        raise ValueError(f"model_class: expected {found}, which {folder} holds, got {model_class.__name__}")
    load = _load_diffusers if hasattr(model_class, "load_config") else _load_transformers
    return load(model_class, folder, values[CONFIG_KEY], variant, adapters).eval()


def _kind(config: Mapping[str, Any], model_class: Any) -> tuple[str, str]:
    """What kind of model a config is of, and what loads one that has no replaced networks."""
    if isinstance(config.get("system"), str):
        return f"a motion model of the system {config['system']!r}", "intermoe.MotionPipeline.from_pretrained"
    named = config.get("_class_name") or " or ".join(config.get("architectures") or [])
    name = getattr(model_class, "__name__", model_class)
    return (named, f"{name}.from_pretrained") if named else ("a model of unknown kind", "what wrote it")


def _there(folder: Path) -> str:
    """Some of the files of a folder, which may have very many."""
    names = sorted(path.name for path in folder.iterdir())
    return f"{names[:8]}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"folder: {file} not found, there are {_there(folder)}; save_pretrained of the host writes it"
        )
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a mapping, got {type(values).__name__}")
    return values


def _load_transformers(
    model_class: Any, folder: Path, note: Mapping[str, Any], variant: str | None, adapters: Sequence[BlockAdapter]
) -> Any:
    """By the host's own loader, which names and ties weights in its way, of a model that is built replaced."""

    def build(self: Any, config: Any, *args: Any, **options: Any) -> None:
        super(replaced, self).__init__(config, *args, **options)
        reapply_replacement(self, note, adapters=adapters)

    members = {"__init__": build, "__module__": model_class.__module__}
    replaced: Any = type(model_class.__name__, (model_class,), members)
    model, report = replaced.from_pretrained(folder, variant=variant, output_loading_info=True, local_files_only=True)
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if name != "error_msgs" and keys}
    if wrong:
        raise ValueError(f"folder: expected in {folder} the weights of {model_class.__name__}, got {wrong}")
    model.__class__ = model_class
    return model


def _load_diffusers(
    model_class: Any, folder: Path, note: Mapping[str, Any], variant: str | None, adapters: Sequence[BlockAdapter]
) -> Any:
    config = dict(model_class.load_config(folder))
    del config[CONFIG_KEY]
    middle = "" if variant is None else f".{variant}"
    files = [folder / f"{WEIGHTS}{middle}.safetensors"]
    index = folder / f"{WEIGHTS}.safetensors.index{middle}.json"
    if index.exists():
        files = [folder / name for name in _shards(index)]
    state: dict[str, Any] = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"folder: {file} not found, there are {_there(folder)}; save_pretrained writes it with "
                "safe_serialization=True, and with the variant in its name if it is given one"
            )
        state |= load_safetensors(file)
    model = model_class.from_config(config)
    reapply_replacement(model, note, adapters=adapters)
    dtype = next(value.dtype for name, value in state.items() if not name.endswith("selection_bias"))
    if dtype != next(model.parameters()).dtype:
        model.to(dtype)
    model.load_state_dict(state)
    return model


def _shards(index: Path) -> list[str]:
    """The files that an index lists, which lie beside it."""
    values = read_json(index)
    listed = values.get("weight_map") if isinstance(values, dict) else None
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index}: expected a weight_map of tensors to names of files beside it, got another")
    return sorted(set(names))
