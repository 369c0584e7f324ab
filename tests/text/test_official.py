"""The published text encoder's weights in ``ClipTextEncoder``, and CLIP's token ids."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intermoe import official
from intermoe.text.build import build_text_encoder
from intermoe.text.clip import ClipTextEncoder
from intermoe.text.protocol import TextConfig


def drawn_state(archive: Any) -> dict[str, torch.Tensor]:
    """The weights that ``text_condition.npz`` describes by a rule instead of storing them."""
    shapes = json.loads(str(archive["shapes"]))
    draws = np.random.RandomState(json.loads(str(archive["config"]))["weights_seed"])
    state = {}
    for key in sorted(shapes):
        value = draws.standard_normal(shapes[key]).astype(np.float32) * np.float32(0.03)
        if len(shapes[key]) == 1 and key.endswith("weight"):
            value += 1.0
        state[key] = torch.from_numpy(value)
    return state


@pytest.fixture(scope="module")
def published(golden: Any) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    archive = golden("text_condition.npz")
    return archive, drawn_state(archive), json.loads(str(archive["config"]))


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch takes its fused path
def test_condition_equals_the_published_one(published: Any, relative_error: Any, grad: bool) -> None:
    archive, state, config = published
    encoder = official.load_text_encoder(state, config)
    with torch.set_grad_enabled(grad):
        condition = encoder.encode_tokens(torch.from_numpy(archive["tokens"]))
    assert relative_error(condition, archive["cond"]) < 1e-5


CONFIG = {"clip_layers": 2, "clip_heads": 2, "adapter_layers": 1, "adapter_heads": 2}


@pytest.fixture
def state(published_file: Any) -> dict[str, torch.Tensor]:
    """A file as the published text encoder's."""
    known = {"token_embedding.weight": (9, 8), "positional_embedding": (6, 8)}
    known["clipTransEncoder.layers.0.linear1.weight"] = (12, 8)
    return published_file(lambda state: official.load_text_encoder(state, CONFIG), known)


def test_only_the_adapter_trains_and_all_weights_are_saved(state: dict[str, torch.Tensor]) -> None:
    encoder, tokens = official.load_text_encoder(state, CONFIG).train(), torch.tensor([[7, 1, 2, 8, 0, 0]])
    encoder.encode_tokens(tokens).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == name.startswith("adapter"), name
    other = ClipTextEncoder(encoder.config)
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other.eval().encode_tokens(tokens), encoder.eval().encode_tokens(tokens))


def test_keys_are_strict(state: dict[str, torch.Tensor]) -> None:
    missing = {key: value for key, value in state.items() if key != "clip_ln.bias"}
    with pytest.raises(ValueError, match=r"clip_ln\.bias"):
        official.load_text_encoder(missing, CONFIG)
    with pytest.raises(ValueError, match="surplus"):
        official.load_text_encoder({**state, "surplus": torch.zeros(1)}, CONFIG)
    with pytest.raises(ValueError, match=r"resblocks\.1\.ln_2\.bias"):
        official.load_text_encoder({**state, "clip_transformer.resblocks.1.ln_2.bias": torch.zeros(3)}, CONFIG)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's vocab.json and merges.txt, rebuilt from the merges that two PyPI packages carry."""
    pytest.importorskip("transformers")
    for package in ("clip", "open_clip"):
        spec = importlib.util.find_spec(package)
        merges = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz") if spec and spec.origin else None
        if merges is not None and merges.exists():
            break
    else:
        pytest.skip("CLIP's merges are absent: neither clip-anytorch nor open_clip_torch is installed")
    lines = gzip.decompress(merges.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8")
    return folder


def small_clip(folder: Path | str) -> TextConfig:
    return TextConfig(
        kind="clip",
        output_dim=16,
        width=16,
        num_layers=1,
        num_heads=2,
        feedforward_dim=8,
        vocab_size=49408,
        name_or_path=str(folder),
        clip_layers=1,
        clip_heads=2,
    )


@pytest.mark.filterwarnings("ignore:prompts")  # one of the captions is cut
def test_token_ids_equal_clips(golden: Any, clip_folder: Path) -> None:
    cases = golden("clip_tokens.json")
    encoder = ClipTextEncoder(small_clip(clip_folder))
    tokens = encoder.tokenize([case["text"] for case in cases])
    assert tokens.shape == (len(cases), 77)
    for row, case in zip(tokens.tolist(), cases, strict=True):
        assert row == case["tokens"] + [0] * (77 - len(case["tokens"])), case["text"]


def test_long_prompts_are_cut_with_a_warning(clip_folder: Path) -> None:
    encoder = ClipTextEncoder(small_clip(clip_folder))
    with pytest.warns(UserWarning, match="cut to 77"):
        tokens = encoder.tokenize(["spin " * 100])
    assert tokens[0, -1] == 49407


def test_html_and_curly_quotes_are_plain_text(clip_folder: Path) -> None:
    encoder = ClipTextEncoder(small_clip(clip_folder))
    tokens = encoder.tokenize(["they're &amp; bow", "they\u2019re & bow"])
    assert torch.equal(tokens[0], tokens[1])


def test_a_saved_tokenizer_needs_no_folder(clip_folder: Path) -> None:
    encoder = ClipTextEncoder(small_clip(clip_folder)).eval()
    expected = encoder(["two people bow"])
    assert expected.shape == (1, 16)
    assert expected.dtype == torch.float32
    again = build_text_encoder(small_clip("/nowhere"), encoder.tokenizer_json).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(["two people bow"]), expected)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    encoder = build_text_encoder(small_clip(tmp_path / "absent"), None)
    with pytest.raises(ValueError, match="CLIP's tokenizer"):
        encoder(["two people bow"])


def test_bad_values_are_named(clip_folder: Path) -> None:
    config = small_clip(clip_folder)
    with pytest.raises(ValueError, match="output_dim: expected width=16"):
        ClipTextEncoder(TextConfig(**{**config.to_dict(), "output_dim": 8}))
    with pytest.raises(ValueError, match="clip_heads"):
        ClipTextEncoder(TextConfig(**{**config.to_dict(), "clip_heads": 3}))
    with pytest.raises(ValueError, match="vocab_size=2000"):
        ClipTextEncoder(TextConfig(**{**config.to_dict(), "vocab_size": 2000}))(["bow"])
    with pytest.raises(ValueError, match="tokens: expected shape"):
        ClipTextEncoder(config).encode_tokens(torch.zeros(1, 5, dtype=torch.long))
