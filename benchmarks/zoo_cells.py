"""How much faster are the cells of a zoo trained at once than network by network?

Five learning rates of one width, three seeds each: 15 perceptrons 64-32-32-10 on 1,000 digits, batches of 32, twenty
epochs; beside them one batch size alone (three seeds). The peer is a plain loop with data in memory and torch's own
momentum, which ends at the same weights up to rounding. The goal is 3 times. The limit is the number of networks, which
a machine without work in the networks would reach.
"""

from __future__ import annotations

from functools import partial

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from torch.nn import functional

from weightsmith.analyze._phases.zoo import Momentum
from weightsmith.core.training import Task, train_many
from weightsmith.embedded import digits

SAMPLES, SIZE, SEEDS, RATES = 1000, 32, 3, (0.01, 0.02, 0.05, 0.1, 0.2)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=20)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    images, labels = digits()
    x, y = images.flatten(1)[:SAMPLES], labels[:SAMPLES]
    draw = torch.Generator().manual_seed(0)
    shuffles = [torch.randperm(SAMPLES, generator=draw).split(SIZE) for _ in range(options.epochs)]
    order = [rows for shuffle in shuffles for rows in shuffle if len(rows) == SIZE]

    def at_once(rates: tuple[float, ...]) -> list[dict[str, torch.Tensor]]:
        members = SEEDS * len(rates)
        each = torch.tensor(rates).repeat_interleave(SEEDS)
        return train_many(
            build,
            Task(x.expand(members, -1, -1), y.expand(members, -1)),
            order=[rows.expand(members, -1) for rows in order],
            optimizer=partial(Momentum, rates=each, momentum=0.9, weight_decay=5e-4),
        )

    def one_by_one(rates: tuple[float, ...]) -> list[dict[str, torch.Tensor]]:
        states = []
        for rate in rates:
            for _ in range(SEEDS):
                torch.manual_seed(0)
                model = build()
                optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
                for rows in order:
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x[rows]), y[rows]).backward()
                    optimizer.step()
                states.append(model.state_dict())
        return states

    pairs = zip(at_once(RATES[:3]), one_by_one(RATES[:3]), strict=True)
    error = max(float((mine[name] - its[name]).abs().max()) for mine, its in pairs for name in mine)
    timings = alternate(
        {
            f"{arm}, {SEEDS * len(rates)} networks": partial(train, rates)
            for rates in (RATES, RATES[2:3])
            for arm, train in (("at once", at_once), ("one by one", one_by_one))
        },
        rounds=options.rounds,
        warmup=0,
    )
    print_table(("arm", "s"), [(arm, timing.median) for arm, timing in timings.items()])
    print(f"largest difference of a weight: {error:.2g}")
    many, few = len(RATES) * SEEDS, SEEDS
    ours, peer = timings[f"at once, {many} networks"], timings[f"one by one, {many} networks"]
    finish(
        "zoo_cells",
        ratio=ratio(peer, ours),
        goal=3.0,
        limit=float(many),
        ours=ours.median,
        peer=peer.median,
        unit="s",
        store=options.store,
        ratio_of_three_seeds=ratio(timings[f"one by one, {few} networks"], timings[f"at once, {few} networks"]),
    )


if __name__ == "__main__":
    main()
