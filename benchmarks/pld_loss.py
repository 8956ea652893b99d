"""How long does PLD's loss with its gradient take, against the same formula through autograd, and against KD?

Goal: at most two thirds of autograd's time, the sort included. The limit is reading both logits and writing the
gradient once, at the measured bandwidth.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio

from weightsmith.train import kd_loss, pld_loss

SIZES = {"256 x 1000": (256, 1000), "64 x 50257": (64, 50257)}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows, ratios, times = [], {}, {}
    for name, (samples, classes) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, samples, classes, generator=generator)
        student.requires_grad_()
        labels = torch.randint(classes, (samples,), generator=generator)
        arms = {
            "pld": lambda s=student, t=teacher, y=labels: _step(pld_loss(s, t, y), s),
            "autograd": lambda s=student, t=teacher, y=labels: _step(_plain(s, t, y), s),
            "pld, top 256": lambda s=student, t=teacher, y=labels: _step(pld_loss(s, t, y, top_k=256), s),
            "kd": lambda s=student, t=teacher, y=labels: _step(kd_loss(s, t, y), s),
        }
        timings = alternate(arms, rounds=options.rounds, warmup=1)
        times[name] = timings
        ratios[name] = ratio(timings["autograd"], timings["pld"])
        rows += [(name, arm, 1e3 * timing.median) for arm, timing in timings.items()]
    print_table(("size", "loss", "ms"), rows)
    samples, classes = SIZES["64 x 50257"]
    seconds = 3 * 4 * samples * classes / memory_bandwidth()
    ours, peer = times["64 x 50257"]["pld"].median, times["64 x 50257"]["autograd"].median
    finish(
        "pld_loss",
        ratio=ratios["64 x 50257"],
        goal=1.5,
        limit=peer / seconds,
        ours=1e3 * ours,
        peer=1e3 * peer,
        unit="ms a loss with gradient, 64 x 50257",
        store=options.store,
        ratio_256_x_1000=ratios["256 x 1000"],
    )


def _step(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, student)[0]


def _plain(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    key = teacher.scatter(1, labels[:, None], torch.inf)
    order = key.argsort(dim=1, descending=True, stable=True)
    s, alpha = student.gather(1, order), teacher.softmax(1).gather(1, order)
    return (alpha * (s.flip(1).logcumsumexp(1).flip(1) - s)).sum(1).mean()


if __name__ == "__main__":
    main()
