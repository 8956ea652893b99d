"""How much faster than a full SVD are LIFT's masks of all 210 matrices of SmolLM2-135M, and do they agree with it?

Rank 64, 5 % of the weights, the choice of the largest entries included. The weights are those after 199 steps of LIFT
on source code, where the default renews its choice. Goal: a renewal at least 10 times as fast as by full SVD, with
99 % of the exact mask. The limit is the four matrix products of a renewal at this machine's GEMM rate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from torch import Tensor

from weightsmith.adapt import LIFTAdamW, lift_groups
from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.linalg import project, randomized_singular_basis, refine_singular_basis, singular_basis
from weightsmith.core.selection import largest_k
from weightsmith.embedded import load, text

RANK, DENSITY, STEPS, WINDOW = 64, 0.05, 199, 48


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    bases, first, weights = _trained()
    counts = [round(DENSITY * weight.numel()) for weight in weights]

    def by_full_svd(weight: Tensor, number: int) -> Tensor:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        approximation = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        return approximation.abs().flatten().topk(counts[number], sorted=False).indices

    def by_basis(basis_of: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
        return lambda weight, number: largest_k(project(weight, basis_of(weight, number)), counts[number])

    choices = {
        "full SVD": by_full_svd,
        "renewal, one iteration from the last basis": by_basis(lambda w, n: refine_singular_basis(w, bases[n])),
        "exact, Gram eigenvectors": by_basis(lambda w, n: singular_basis(w, RANK)),
        **{
            f"svd_lowrank, niter={niter}": by_basis(
                lambda w, n, niter=niter: randomized_singular_basis(w, RANK, niter=niter)
            )
            for niter in (2, 4, 8, 16)
        },
    }
    masks: dict[str, list[Tensor]] = {}

    def arm(name: str) -> Callable[[], None]:
        return lambda: masks.update({name: [choices[name](weight, n) for n, weight in enumerate(weights)]})

    timings = alternate({name: arm(name) for name in list(choices)[:3]}, rounds=options.rounds, warmup=0)
    cold = alternate({name: arm(name) for name in list(choices)[3:]}, rounds=1, warmup=0)
    faster = {name: ratio(timings["full SVD"], timing) for name, timing in timings.items()}
    faster |= {name: timings["full SVD"].median / timing.median for name, timing in cold.items()}
    overlap = {name: _overlap(masks["full SVD"], found) for name, found in masks.items()}
    overlap["the mask of 199 steps ago"] = _overlap(masks["full SVD"], first)
    rows = [
        (name, timing.median, faster[name], f"{overlap[name]:.2%}")
        for name, timing in [*timings.items(), *cold.items()]
    ]
    stale = "the mask of 199 steps ago"
    print_table(("mask by", "seconds", "times faster", "overlap"), [*rows, (stale, "", "", f"{overlap[stale]:.2%}")])
    products = 4 * 2 * RANK * sum(weight.numel() for weight in weights) / gemm_rate()
    renewal = timings["renewal, one iteration from the last basis"]
    finish(
        "lift_mask",
        ratio=ratio(timings["full SVD"], renewal),
        goal=10.0,
        limit=timings["full SVD"].median / products,
        ours=renewal.median,
        peer=timings["full SVD"].median,
        unit="s for 210 matrices",
        store=options.store,
        overlap=overlap,
        times_faster=faster,
    )


def _trained() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The bases and masks before training, and the weights after it."""
    model, tokenizer = load("smollm2")
    groups = lift_groups(model, DENSITY, RANK)
    weights = [weight.detach() for _, weight in groups[0]["params"]]
    bases = [singular_basis(weight, RANK) for weight in weights]
    masks = [
        largest_k(project(weight, basis), round(DENSITY * weight.numel()))
        for weight, basis in zip(weights, bases, strict=True)
    ]
    optimizer = LIFTAdamW(groups, lr=2e-4, update_interval=None)
    ids = token_ids(tokenizer, text("source"))
    for batch in token_windows(ids, length=WINDOW, count=STEPS, batch_size=1, generator=torch.Generator()):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [basis.bfloat16() for basis in bases], masks, weights


def _overlap(exact: list[Tensor], found: list[Tensor]) -> float:
    """Share of the exact masks' weights that are in the other masks, over all matrices."""
    shared = sum(int(torch.isin(a, b).sum()) for a, b in zip(exact, found, strict=True))
    return shared / sum(map(len, exact))


if __name__ == "__main__":
    main()
