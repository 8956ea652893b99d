"""How fast are the trace and the largest eigenvalue of a Hessian, at equal error, beside PyHessian's algorithm?

A perceptron 64-128-128-10 on 640 digits, in 5 batches of 128, trained for a few epochs. The peer is PyHessian's
algorithm, written anew from its description: power iteration of at most 100 products until the value changes by less
than 1e-3, and one random vector after the other for the trace; each product goes over the batches and makes their
gradients anew, or, in the other arm, keeps their graphs as ours does. For the eigenvalue the peer runs until its error
is that of ours, if it gets there in 100 products; for the trace it takes as many vectors as give the same standard
error.
"""

from __future__ import annotations

import itertools
import math
import statistics

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from torch.nn import functional

from weightsmith.analyze import hessian_summary
from weightsmith.core.training import fit
from weightsmith.embedded import digits

MOST = 2000


def trained() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    images, labels = digits()
    x, y = images.flatten(1)[:640], labels[:640]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    fit(model, list(zip(x, y, strict=True)), epochs=3, batch_size=32)
    return model.eval(), list(zip(x.split(128), y.split(128), strict=True))


class _Peer:
    """PyHessian's algorithm."""

    def __init__(self, model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], *, keep: bool) -> None:
        self.parameters, self.model, self.batches = [*model.parameters()], model, batches
        self.kept = [self.gradients(x, y) for x, y in batches] if keep else []

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = functional.cross_entropy(self.model(x), y)
        return torch.autograd.grad(loss, self.parameters, create_graph=True)

    def product(self, vector: list[torch.Tensor]) -> list[torch.Tensor]:
        total = [torch.zeros_like(p) for p in self.parameters]
        count = sum(len(y) for _, y in self.batches)
        for number, (x, y) in enumerate(self.batches):
            gradients = self.kept[number] if self.kept else self.gradients(x, y)
            found = torch.autograd.grad(gradients, self.parameters, vector, retain_graph=bool(self.kept))
            total = [sum_ + each * len(y) / count for sum_, each in zip(total, found, strict=True)]
        return total

    def eigenvalue(self, steps: int, tolerance: float = 1e-3) -> tuple[float, int]:
        torch.manual_seed(0)
        vector = [torch.randn_like(p) for p in self.parameters]
        last, taken = None, 0
        while taken < steps:
            taken += 1
            norm = sum(float(v.square().sum()) for v in vector) ** 0.5
            vector = [v / (norm + 1e-6) for v in vector]
            image = self.product(vector)
            value = sum(float((a * b).sum()) for a, b in zip(vector, image, strict=True))
            if last is not None and abs(value - last) / (abs(last) + 1e-6) < tolerance:
                break
            last, vector = value, image
        return value, taken

    def trace(self, probes: int) -> list[float]:
        torch.manual_seed(0)
        draws = []
        for _ in range(probes):
            signs = [torch.randint_like(p, 2) * 2 - 1 for p in self.parameters]
            image = self.product(signs)
            draws.append(sum(float((a * b).sum()) for a, b in zip(signs, image, strict=True)))
        return draws


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model, batches = trained()
    peer, keeps = _Peer(model, batches, keep=False), _Peer(model, batches, keep=True)
    exact = hessian_summary(model, batches, steps=100, tolerance=1e-6, probes=2).top_eigenvalue
    ours = hessian_summary(model, batches)
    error = abs(ours.top_eigenvalue - exact)
    # as many power iterations as reach our error, with PyHessian's own rule as the least
    least = peer.eigenvalue(100)
    steps = next(n for n in itertools.count(least[1]) if n >= 100 or abs(peer.eigenvalue(n, 0.0)[0] - exact) <= error)
    # as many vectors as give our standard error
    spread = statistics.stdev(peer.trace(60))
    probes = min(MOST, math.ceil((spread / ours.trace_error) ** 2))
    timings = alternate(
        {
            "ours": lambda: hessian_summary(model, batches),
            "PyHessian's algorithm": lambda: (peer.eigenvalue(steps, 0.0), peer.trace(probes)),
            "the same, graphs kept": lambda: (keeps.eigenvalue(steps, 0.0), keeps.trace(probes)),
        },
        rounds=options.rounds,
    )
    print_table(("arm", "s"), [(arm, timing.median) for arm, timing in timings.items()])
    print_table(
        ("arm", "eigenvalue's error", "vectors", "standard error"),
        [
            ("ours", error, ours.probes, ours.trace_error),
            ("peer", abs(peer.eigenvalue(steps, 0.0)[0] - exact), probes, spread / probes**0.5),
        ],
    )
    finish(
        "hessian",
        ratio=ratio(timings["PyHessian's algorithm"], timings["ours"]),
        goal=1.0,
        limit=None,
        ours=timings["ours"].median,
        peer=timings["PyHessian's algorithm"].median,
        unit="s",
        store=options.store,
        against_kept_graphs=ratio(timings["the same, graphs kept"], timings["ours"]),
        products_ours=ours.products,
        products_peer=steps + probes,
    )


if __name__ == "__main__":
    main()
