"""The text encoders' formulas, written out here once more on small weights."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from intermoe.text.clip import ClipTextEncoder, at_end_of_text
from intermoe.text.protocol import TextConfig, check_prompts, masked_mean, pad_token_ids
from intermoe.text.wordpiece import WordPieceTextEncoder


def test_padded_ids_and_the_mean_of_what_is_valid() -> None:
    ids, mask = pad_token_ids([[5, 6], [7, 8, 9]], torch.device("cpu"), padding=3)
    assert ids.tolist() == [[5, 6, 3], [7, 8, 9]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    states = torch.tensor([[[1.0], [3.0], [torch.nan]], [[1.0], [2.0], [6.0]]])
    assert masked_mean(states, mask).tolist() == [[2.0], [3.0]]


def attention(layer: Any, x: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(D / heads)) v of x (L, D), of the tokens where ``seen`` (L, L)."""
    parts = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in parts)
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return out @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias


def norm(x: Tensor, module: Any) -> Tensor:
    return layer_norm(x, x.shape[-1:], module.weight, module.bias)


def drawn(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def small_clip(**changes: Any) -> ClipTextEncoder:
    values: dict[str, Any] = {
        "kind": "clip", "output_dim": 8, "width": 8, "num_layers": 1, "num_heads": 4, "feedforward_dim": 12,
        "clip_layers": 2, "clip_heads": 2, "max_tokens": 6, "vocab_size": 20, **changes,
    }  # fmt: skip
    clip = ClipTextEncoder(TextConfig(**values)).eval()
    drawn(clip)
    return clip


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch takes its fused path
def test_clip_by_hand(grad: bool) -> None:
    """Causal pre-norm tower with x sigmoid(1.702 x), its norm; post-norm adapter that sees all tokens, padding too."""
    clip, tokens = small_clip(), torch.tensor([[17, 4, 19, 0, 0, 0], [17, 4, 5, 6, 7, 19]])
    seen = torch.ones(6, 6).tril().bool()
    expected = []
    for row, end in zip(tokens, (2, 5), strict=True):
        x = clip.token_embedding.weight[row] + clip.position_embedding
        for layer in clip.tower.layers:
            x = x + attention(layer, norm(x, layer.norm1), 2, seen)
            inner = norm(x, layer.norm2) @ layer.linear1.weight.T + layer.linear1.bias
            x = x + inner * torch.sigmoid(1.702 * inner) @ layer.linear2.weight.T + layer.linear2.bias
        x = norm(x, clip.tower_norm)
        (layer,) = clip.adapter.layers
        x = norm(x + attention(layer, x, 4), layer.norm1)
        inner = gelu(x @ layer.linear1.weight.T + layer.linear1.bias)
        x = norm(x + inner @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)
        expected.append(norm(x, clip.adapter_norm)[end])
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(clip.encode_tokens(tokens), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_only_the_adapter_of_clip_learns() -> None:
    learning = {name.split(".")[0] for name, parameter in small_clip().named_parameters() if parameter.requires_grad}
    assert learning == {"adapter", "adapter_norm"}


def test_the_end_of_text_is_the_largest_id() -> None:
    states = torch.arange(8.0).view(2, 4, 1)
    assert at_end_of_text(states, torch.tensor([[2, 0, 9, 0], [2, 9, 3, 3]])).tolist() == [[2.0], [5.0]]


def test_word_pieces_by_hand() -> None:
    """Embedding + position -> pre-norm layers -> norm -> mean over the prompt's own tokens -> Linear."""
    captions = ["two people bow", "one of them turns"]
    config = TextConfig(
        output_dim=6, width=8, num_layers=2, num_heads=2, feedforward_dim=12, max_tokens=10, vocab_size=80
    )
    encoder = WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(captions, 80)).eval()
    drawn(encoder)
    prompts = ["two turns", "one of them bow people"]
    expected = []
    for prompt in prompts:
        ids = encoder.token_ids(prompt)
        assert len(ids) == len(prompt.split()) + 1
        x = encoder.token_embedding.weight[ids] + encoder.position_embedding[: len(ids)]
        for layer in encoder.transformer.layers:
            x = x + attention(layer, norm(x, layer.norm1), 2)
            inner = gelu(norm(x, layer.norm2) @ layer.linear1.weight.T + layer.linear1.bias)
            x = x + inner @ layer.linear2.weight.T + layer.linear2.bias
        expected.append(encoder.output(norm(x, encoder.norm).mean(0)))
    torch.testing.assert_close(encoder(prompts), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_pieces_are_the_most_shared_first_and_words_are_spelled_by_the_longest() -> None:
    tokenizer = WordPieceTextEncoder.train_tokenizer(["turn turning turned bowing bowed"], 60)
    small = WordPieceTextEncoder.train_tokenizer(["turn turning turned bowing bowed"], 30)
    assert len(small) < len(tokenizer)
    config = TextConfig(
        output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=4, vocab_size=60
    )
    encoder = WordPieceTextEncoder(config, tokenizer)
    names = {index: token for token, index in encoder._vocabulary.items()}
    spelled = {names[index]: [names[piece] for piece in pieces] for index, pieces in encoder._spellings.items()}
    assert spelled["turning"] == ["turn", "##ing"]  # "turn" is a word itself
    assert spelled["turn"] == ["tur", "##n"]
    assert not {"turning", "##urning"} & (set(names.values()) - set(encoder._words))  # of a single word only


def test_every_word_of_the_captions_is_known_and_no_special_token_is() -> None:
    captions = ["able people bow", "they zigzag"]  # the first of the alphabet and the last
    config = TextConfig(output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, vocab_size=60)
    encoder = WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(captions, 60))
    assert encoder.unknown_words("able people bow they zigzag") == []
    assert encoder._words == {"able", "people", "bow", "they", "zigzag"}


@pytest.mark.parametrize("prompt", ["bow\0", "bow \ud83d"])
def test_what_is_no_text_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompts: expected UTF-8 text"):
        check_prompts(["they bow", prompt])


def test_prompts_of_clip_are_unescaped_straightened_and_cut_before_their_end() -> None:
    class Lengths:
        """A tokenizer whose ids are the lengths of words."""

        def encode(self, text: str) -> SimpleNamespace:
            read.append(text)
            return SimpleNamespace(ids=[17, *map(len, text.split(" ")), 19])

    read: list[str] = []
    clip: Any = small_clip()
    clip._tokenizer = Lengths()
    with pytest.warns(UserWarning, match="has 7 tokens, cut to 6"):
        tokens = clip.tokenize(["a bb ccc dddd eeeee", " &amp;quot;x&amp;quot; \u2019y "])
    assert tokens.tolist() == [[17, 1, 2, 3, 4, 19], [17, 3, 2, 19, 0, 0]]
    assert read[1] == '"x" \'y'


def test_room_is_for_the_most_shared_pieces_then_by_the_alphabet() -> None:
    """The ending ab is shared by three words, cd and ef by two each; all letters find room as both ends of a word."""
    words, letters = ["mef", "nef", "pcd", "qcd", "xab", "yab", "zab"], 13
    required = 3 + len(words) + 2 * letters

    def pieces(size: int) -> set[str]:
        vocabulary = json.loads(WordPieceTextEncoder.train_tokenizer(words, size))["model"]["vocab"]
        return {piece for piece in vocabulary if len(piece.removeprefix("##")) == 2}

    assert pieces(required) == set()
    assert pieces(required + 1) == {"##ab"}
    assert pieces(required + 2) == {"##ab", "##cd"}
    with pytest.raises(ValueError, match="expected at least 36 for the captions' 7 words and 13 characters, got 35"):
        pieces(required - 1)


def test_words_in_pieces_that_find_no_room_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = WordPieceTextEncoder.train_tokenizer(["turn turning turned bowing bowed"], 60)
    config = TextConfig(
        output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=4, vocab_size=60
    )
    encoder = WordPieceTextEncoder(config, tokenizer)
    monkeypatch.setattr(torch, "rand", lambda count: torch.zeros(count))  # every word is spelled
    short, full = encoder.token_ids("turning"), encoder.token_ids("turning turned bowing")
    assert encoder._spell_at_random(short) == [*encoder._spellings[short[0]], short[1]]
    assert encoder._spell_at_random(full) == full


def test_words_are_drawn_as_large_as_what_the_layers_add() -> None:
    """N(0, 1) for tokens, N(0, 0.5) for places: of 60 x 64 numbers the deviation is known to 1 in 60."""
    torch.manual_seed(0)
    config = TextConfig(
        output_dim=6, width=64, num_layers=1, num_heads=2, feedforward_dim=8, max_tokens=60, vocab_size=60
    )
    encoder = WordPieceTextEncoder(config, WordPieceTextEncoder.train_tokenizer(["turn"], 60))
    assert float(encoder.token_embedding.weight[1:].detach().std()) == pytest.approx(1.0, rel=0.05)
    assert float(encoder.position_embedding.detach().std()) == pytest.approx(0.5, rel=0.05)
    assert not encoder.token_embedding.weight[0].any()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_a_clip_tokenizer_neither_cuts_nor_fills_whatever_its_file_says(cut: bool, filled: bool) -> None:
    """The encoder does both itself, and warns of what it cuts."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["?", "two", "people", "bow", "[START]", "[END]"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", 4), ("[END]", 5)]
    )
    if cut:
        tokenizer.enable_truncation(3)
    if filled:
        tokenizer.enable_padding(length=6, pad_id=3, pad_token="bow")
    clip = small_clip()
    clip._use_tokenizer(tokenizer.to_str())
    assert clip.tokenize(["two people bow", "two"]).tolist() == [[4, 1, 2, 3, 5, 0], [4, 1, 5, 0, 0, 0]]
    with pytest.warns(UserWarning, match="has 8 tokens, cut to 6"):
        assert clip.tokenize(["two people bow two people bow"]).tolist() == [[4, 1, 2, 3, 1, 5]]
