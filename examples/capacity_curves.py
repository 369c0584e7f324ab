"""Held-out loss of the motion transformer against capacity and against the number of experts, and dense beside them.

Writes ``capacity.json`` and ``capacity.svg`` to ``--out``; the documentation shows them. Needs matplotlib:

    python examples/capacity_curves.py --out docs/assets
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from comparison import Result, expert_dim_of_equal_flops, train
from motion_transformer import DIM, WIDTH, MotionTransformer, loss, score
from torch import nn

from intermoe.files import replacing, write_json
from intermoe.integrations import calibrated_selection, replace_feed_forward

CAPACITIES, EXPERTS = (0.5, 1.0, 2.0, 4.0), (2, 4, 8, 16)
EXPERTS_OF_CAPACITIES, CAPACITY_OF_EXPERTS = 8, 1.0
EXPERT_DIM = expert_dim_of_equal_flops(DIM, 4 * DIM * WIDTH, EXPERTS_OF_CAPACITIES, 1.0)


def measure_dense(width: int, steps: int) -> Result:
    """The dense model with feed-forward networks of ``width``."""
    torch.manual_seed(0)
    model = MotionTransformer()
    for layer in model.encoder.layers:
        layer.linear1, layer.linear2 = nn.Linear(DIM, width), nn.Linear(width, DIM)
    return train(f"dense {width}", model, loss, score, steps=steps, lr=2e-3, dense_flops=4 * DIM * width)


def measure_moe(num_experts: int, capacity: float, steps: int) -> Result:
    """The model with ``num_experts`` experts, as wide whatever their number."""
    torch.manual_seed(0)
    model = MotionTransformer()
    replace_feed_forward(model, num_experts=num_experts, expert_dim=EXPERT_DIM, capacity=capacity)
    with calibrated_selection(model), torch.no_grad():
        loss(model, 0)
    name = f"{num_experts} experts, capacity {capacity:g}"
    return train(name, model, loss, score, steps=steps, lr=2e-3, dense_flops=4 * DIM * WIDTH)


def draw(dense: list[Result], capacities: list[Result], experts: list[Result], path: Path) -> None:
    """Two panels: loss against operations, loss against the number of experts."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([r.flops / 1e3 for r in dense], [r.loss for r in dense], "s--", color="#777777", label="dense")
    left.plot(
        [r.flops / 1e3 for r in capacities], [r.loss for r in capacities], "o-", color="#1f5a91", label="InterMoE"
    )
    for result, capacity in zip(capacities, CAPACITIES, strict=True):
        left.annotate(
            f"{capacity:g}", (result.flops / 1e3, result.loss), (4, 5), textcoords="offset points", fontsize=8
        )
    left.set_title(f"capacity, {EXPERTS_OF_CAPACITIES} experts", loc="left", fontsize=10)
    left.set_xlabel("kFLOP per token and network, as measured in training")
    left.set_ylabel("held-out loss")
    left.set_xscale("log")
    left.legend(frameon=False)
    right.plot(EXPERTS, [r.loss for r in experts], "o-", color="#1f5a91")
    right.axhline(dense[CAPACITIES.index(1.0)].loss, linestyle="--", color="#777777")
    right.set_title(f"number of experts, capacity {CAPACITY_OF_EXPERTS:g}", loc="left", fontsize=10)
    right.set_xlabel("experts (dashed: dense at the same FLOP)")
    right.set_xscale("log", base=2)
    right.set_xticks(EXPERTS, [str(count) for count in EXPERTS])
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    dense = [measure_dense(int(WIDTH * capacity), arguments.steps) for capacity in CAPACITIES]
    capacities = [measure_moe(EXPERTS_OF_CAPACITIES, capacity, arguments.steps) for capacity in CAPACITIES]
    experts = [
        capacities[CAPACITIES.index(CAPACITY_OF_EXPERTS)]
        if count == EXPERTS_OF_CAPACITIES
        else measure_moe(count, CAPACITY_OF_EXPERTS, arguments.steps)
        for count in EXPERTS
    ]
    curves = {"dense": dense, "capacities": capacities, "experts": experts}
    rows = {name: [{k: v for k, v in asdict(r).items() if k != "seconds"} for r in rs] for name, rs in curves.items()}
    write_json(arguments.out / "capacity.json", {"steps": arguments.steps, **rows})
    draw(dense, capacities, experts, arguments.out / "capacity.svg")
    for results in curves.values():
        for result in results:
            print(
                f"{result.name:28} {result.loss:.4f}  {result.flops / 1e3:7.1f} kFLOP  {result.parameters:,} parameters"
            )


if __name__ == "__main__":
    main()
