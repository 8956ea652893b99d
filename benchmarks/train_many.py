"""How much faster is a zoo of small networks trained at once than one by one?

200 multilayer perceptrons (32-32-5) on tasks of 200 samples, 50 Adam steps, one thread; beside them linear heads. Both
arms take the same steps; of perceptrons Adam magnifies the rounding. Goal: 3 times. The limit is the operations at the
machine's rate, over what one by one takes.
"""

from __future__ import annotations

from functools import partial

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from torch import nn
from torch.nn import functional

from weightsmith.core.training import Task, train_many

MEMBERS, SAMPLES, FEATURES, CLASSES, WIDTH, STEPS = 200, 200, 32, 5, 32, 50
ADAM = partial(torch.optim.Adam, lr=1e-2)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def head() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def one_by_one(build, tasks: Task) -> list[dict[str, torch.Tensor]]:
    states = []
    for inputs, labels in zip(tasks.inputs, tasks.labels, strict=True):
        torch.manual_seed(0)
        model = build()
        optimizer = ADAM(model.parameters())
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        states.append(model.state_dict())
    return states


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(MEMBERS, SAMPLES, FEATURES, generator=generator)
    tasks = Task(inputs, torch.randint(CLASSES, (MEMBERS, SAMPLES), generator=generator))
    products = {"perceptrons": FEATURES * WIDTH + WIDTH * CLASSES, "heads": FEATURES * CLASSES}
    rows, found = [], {}
    for name, build in (("perceptrons", perceptron), ("heads", head)):
        arms = {
            "at once": lambda build=build: train_many(build, tasks, optimizer=ADAM, steps=STEPS),
            "one by one": lambda build=build: one_by_one(build, tasks),
        }
        pairs = zip(arms["at once"](), arms["one by one"](), strict=True)
        error = max(float((mine[key] - its[key]).abs().max()) for mine, its in pairs for key in mine)
        times = alternate(arms, rounds=options.rounds, warmup=0)
        seconds = 6 * products[name] * MEMBERS * SAMPLES * STEPS / gemm_rate()
        found[name] = times, ratio(times["one by one"], times["at once"]), times["one by one"].median / seconds
        rows += [(name, arm, timing.median, error) for arm, timing in times.items()]
    print_table(("networks", "arm", "s", "largest difference"), rows)
    times, gain, limit = found["perceptrons"]
    finish(
        "train_many",
        ratio=gain,
        goal=3.0,
        limit=limit,
        ours=times["at once"].median,
        peer=times["one by one"].median,
        unit="s",
        store=options.store,
        ratio_of_heads=found["heads"][1],
    )


if __name__ == "__main__":
    main()
