"""Whatever padding holds changes nothing: no loss, gradient, count, metric or latent, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intermoe.data import InterHumanDataset, collate
from intermoe.diffusion import Sampler, sample
from intermoe.evaluators.bigru import BiGRUConfig, BiGRUEvaluator
from intermoe.evaluators.interclip import InterClip, InterClipConfig
from intermoe.nn.moe import InterMoEBlock
from intermoe.systems.intermoe.codec import LatentCodec
from intermoe.text.protocol import TextConfig
from intermoe.text.wordpiece import WordPieceTextEncoder
from intermoe.train import load_vae_folder
from intermoe.train.config import SHARES, DenoiserTrainConfig, VAETrainConfig
from intermoe.train.denoiser import DenoiserObjective
from intermoe.train.draws import ItemDraws
from intermoe.train.evaluator import EvaluatorObjective
from intermoe.train.latents import LatentDataset, LatentEncoder, collate_latents
from intermoe.train.loop import Batch, Objective
from intermoe.train.vae import VAEObjective

CPU = torch.device("cpu")
FILLINGS = (math.nan, 1e30, -math.inf)
# the paper's block, and every other rule for which expert takes which token (the rows of the ablations)
ROUTINGS: tuple[dict[str, Any], ...] = (
    {}, {"pool": "sample"}, {"unit": "sequence"}, {"routing": "expert_choice"},
    {"routing": "token_choice", "top_k": 1}, {"num_shared_experts": 1},
)  # fmt: skip
Results = dict[str, Tensor]


def assert_padding_is_nothing(results: Callable[[float], Results]) -> None:
    expected = results(0.0)
    assert all(value.isfinite().all() for value in expected.values() if value.is_floating_point())
    for filling in FILLINGS:
        found = results(filling)
        assert found.keys() == expected.keys()
        changed = [name for name, value in expected.items() if not torch.equal(found[name], value)]
        assert not changed, f"padding of {filling} changes {changed}"


def everything(objective: Objective, batch: Batch, **validation: Any) -> Results:
    """What training and validation on ``batch`` give: values, gradients and counters."""
    objective.train()
    torch.manual_seed(0)  # of dropout
    draws = ItemDraws((0,), range(len(batch["names"])), CPU)
    values = objective(batch, draws)
    objective.zero_grad()
    values["loss"].backward()
    found = {f"train {name}": value.detach() for name, value in values.items()}
    found |= {f"gradient {k}": p.grad.clone() for k, p in objective.named_parameters() if p.grad is not None}
    assert any(name.startswith("gradient") for name in found)
    for name, module in objective.named_modules():
        if isinstance(module, InterMoEBlock):
            found |= {f"counter {n} of {name}": counter.clone() for n, counter in enumerate(module.counters)}
    objective.eval()
    with torch.no_grad():
        draws = ItemDraws((1,), range(len(batch["names"])), CPU)
        found |= {f"validation {k}": v for k, v in objective(batch, draws, validating=True, **validation).items()}
    return found


def drawn(module: nn.Module) -> nn.Module:
    """``module`` with no weight at zero, so that everything has a gradient."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if not parameter.detach().any() and "embedding" not in name:
            nn.init.normal_(parameter, std=0.1)
    return module


@pytest.fixture
def dataset(pairs: Path) -> InterHumanDataset:
    return InterHumanDataset(pairs, "train", min_frames=16, training=False)


@pytest.fixture
def padded(dataset: InterHumanDataset) -> Callable[[float], Batch]:
    """Items of 40, 29 and 26 frames, with something in the frames that are not theirs."""

    def batch(filling: float) -> Batch:
        made = collate([dataset[i] for i in (0, 1, 3)])
        for row, length in zip(made["motion"], made["lengths"].tolist(), strict=True):
            row[:, length:] = filling
        return made

    return batch


def test_autoencoder(padded: Callable[[float], Batch], trained_vae: Path) -> None:
    config = VAETrainConfig.load(trained_vae / "config.json")
    vae, statistics = load_vae_folder(trained_vae / "model")

    def results(filling: float) -> Results:
        objective = VAEObjective(config, statistics)
        objective.vae.load_state_dict(vae.state_dict())
        return everything(objective, padded(filling))

    assert_padding_is_nothing(results)


@pytest.fixture
def make_objective(trained_denoiser: Path, trained_vae: Path, pairs: Path) -> Callable[..., DenoiserObjective]:
    def build(changes: Mapping[str, Any], **levels: float) -> DenoiserObjective:
        values = DenoiserTrainConfig.load(trained_denoiser / "config.json").to_dict()
        values["denoiser"] |= changes
        values["load_balance"] = 0.1
        values["levels"] |= levels
        values["run"] |= {"fid_clips": 4, "fid_steps": 2}
        config = DenoiserTrainConfig.from_dict(values)
        tokenizer = (trained_denoiser / "tokenizer.json").read_text(encoding="utf-8")
        torch.manual_seed(0)
        text = WordPieceTextEncoder(config.text, tokenizer)
        objective = DenoiserObjective(config, LatentEncoder(LatentCodec(*load_vae_folder(trained_vae / "model"))), text)
        drawn(objective)
        return objective

    return build


@pytest.mark.parametrize("changes", ROUTINGS, ids=str)
def test_denoiser_on_latents_encoded_on_the_fly(
    make_objective: Callable[..., DenoiserObjective], padded: Callable[[float], Batch], changes: dict[str, Any]
) -> None:
    assert_padding_is_nothing(lambda f: everything(make_objective(changes), padded(f), generating=True))


def test_denoiser_on_latents_that_are_kept(
    make_objective: Callable[..., DenoiserObjective], dataset: InterHumanDataset
) -> None:
    def results(filling: float) -> Results:
        objective = make_objective({})
        encoded = LatentDataset(dataset, objective.encoder, CPU)
        batch = dict(collate_latents([encoded.draw(i, 0) for i in (0, 1, 3)]))
        batch["posterior"].transpose(1, 3)[~batch["mask"]] = filling  # type: ignore[index]
        return everything(objective, batch, generating=True)

    assert_padding_is_nothing(results)


@pytest.mark.parametrize("kind", SHARES[1:])
def test_denoiser_with_levels_for_persons_and_frames(
    make_objective: Callable[..., DenoiserObjective], padded: Callable[[float], Batch], kind: str
) -> None:
    mix = {"one_level": 0.0, kind: 1.0}
    assert_padding_is_nothing(lambda filling: everything(make_objective({}, **mix), padded(filling)))


def test_latents(padded: Callable[[float], Batch], trained_vae: Path) -> None:
    encoder = LatentEncoder(LatentCodec(*load_vae_folder(trained_vae / "model")))

    def results(filling: float) -> Results:
        posterior, mask = encoder(padded(filling))  # type: ignore[arg-type]
        return {"mean": posterior.mean, "log_var": posterior.log_var, "mask": mask}

    assert_padding_is_nothing(results)
    found = results(math.nan)
    assert not found["mean"].transpose(1, 2)[~found["mask"]].any()
    assert not found["log_var"].transpose(1, 2)[~found["mask"]].any()


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("changes", ROUTINGS, ids=str)
def test_block(changes: dict[str, Any], backend: str) -> None:
    from intermoe import backends

    if not backends.available()[backend].usable:
        pytest.skip(f"{backend} is not usable here")
    torch.manual_seed(0)
    block = drawn(InterMoEBlock(dim=16, num_experts=4, expert_dim=8, cond_dim=16, backend=backend, **changes))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    hidden, condition, weights = torch.randn(2, 7, 16), torch.randn(2, 16), torch.randn(2, 7, 16)

    def results(filling: float) -> Results:
        x = hidden.masked_fill(~mask[..., None], filling).requires_grad_()
        before = block.expert_counts.clone()  # counts go on until the bias is updated
        out, balance = block.train()(x, condition, mask, balance=True)
        loss = (out * weights).sum() + balance
        block.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
        return {"out": out.detach(), "hidden": x.grad, "counts": block.expert_counts - before, **gradients}  # type: ignore[dict-item]

    assert_padding_is_nothing(results)
    assert not results(math.nan)["out"][~mask].any()


def test_sampling(make_objective: Callable[..., DenoiserObjective]) -> None:
    objective = make_objective({}).eval()
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    noise, text = torch.randn(2, 2, 6, 28), torch.randn(2, 8)

    def results(filling: float) -> Results:
        given = noise.masked_fill(~mask[:, None, :, None], filling)
        sampler = Sampler(objective.diffusion, num_inference_steps=2)
        made = sample(objective.denoiser, text, (2, 2, 6, 28), sampler, mask=mask, noise=given)
        return {"latents": made}

    assert_padding_is_nothing(results)


def test_evaluator_objective(padded: Callable[[float], Batch]) -> None:
    text = TextConfig(output_dim=6, width=8, num_layers=1, num_heads=2, feedforward_dim=8, vocab_size=60)
    config = InterClipConfig(width=8, num_layers=1, num_heads=2, feedforward_dim=8, embedding_dim=6, text=text)

    def results(filling: float) -> Results:
        torch.manual_seed(0)
        tokenizer = WordPieceTextEncoder.train_tokenizer(padded(0.0)["captions"], 60)
        return everything(EvaluatorObjective(InterClip(config, tokenizer)), padded(filling))

    assert_padding_is_nothing(results)


@pytest.mark.parametrize(
    ("layout", "input_dim", "frame"), [("humanml3d", 259, (1, 263)), ("interx", 56 * 12, (2, 55, 12))]
)
def test_recurrent_evaluators(layout: str, input_dim: int, frame: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 3, "word_dim": 4, "movement_dim": 8, "motion_dim": 8, "text_dim": 4, "embedding_dim": 4}
    config = BiGRUConfig(representation=layout, input_dim=input_dim, max_frames=24, **small)  # type: ignore[arg-type]
    evaluator = BiGRUEvaluator(config, '["sos", "eos", "unk"]')
    motion, lengths = torch.randn(2, frame[0], 20, *frame[1:]), torch.tensor([20, 9])

    def results(filling: float) -> Results:
        given = motion.clone()
        given[1, :, 9:] = filling
        embedded = evaluator.embed_motion(given, lengths)
        evaluator.zero_grad()
        embedded.square().sum().backward()
        gradients = {k: p.grad.clone() for k, p in evaluator.named_parameters() if p.grad is not None}
        return {"embedded": embedded.detach(), **gradients}

    assert_padding_is_nothing(results)


def test_text_encoder() -> None:
    """Of words the padding is a row of the embedding, which is at zero when it is drawn."""
    config = TextConfig(output_dim=6, width=8, num_layers=2, num_heads=2, feedforward_dim=8, vocab_size=60, dropout=0.0)
    prompts = ["one person bows to the other", "they bow"]
    tokenizer = WordPieceTextEncoder.train_tokenizer(prompts, 60)

    def results(filling: float) -> Results:
        torch.manual_seed(0)
        encoder = WordPieceTextEncoder(config, tokenizer)
        with torch.no_grad():
            encoder.token_embedding.weight[0] = filling
        embedded = encoder(prompts)
        embedded.square().sum().backward()
        gradients = {k: p.grad.clone() for k, p in encoder.named_parameters() if p.grad is not None}
        return {"embedded": embedded.detach(), **gradients}

    assert_padding_is_nothing(results)
