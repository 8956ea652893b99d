"""How much faster is an EM step of ProSper's models than the paper's loop over points? Is its cost linear in points?

The peer is a port of the loop: for every point the reconstructions of all its states, formed in NumPy; once for the
log-joints, once for the sums of the M-step. Both arms compute the same sums, which is checked before they are timed.
Each runs on one thread.

Goal: 20 times for the linear models. The limit is the time of the matrix products that the step cannot do without.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from harness import Timing, alternate, finish, gemm_rate, parser, print_table, ratio

from weightsmith.dictionary import BSC, GSC, MCA, TSC
from weightsmith.dictionary._prosper.schedule import Settings

FEATURES, CANDIDATES, ACTIVE, POINTS = 144, 8, 4, 10_000
PEER_POINTS = 1_000
GOAL = 20.0


def loop_over_points(
    points: np.ndarray, components: np.ndarray, pi: float, sigma: float, states: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """One EM step of binary sparse coding, point by point: the sums that its M-step needs."""
    count = len(components)
    odds, precision = np.log(pi / (1 - pi)), 1 / (2 * sigma**2)
    joints = np.empty((len(points), 1 + count + len(states)))
    prior = odds * states.sum(1)
    for n, point in enumerate(points):
        joints[n, 0] = -precision * (point**2).sum()
        joints[n, 1 : 1 + count] = odds - precision * ((components - point) ** 2).sum(1)
        joints[n, 1 + count :] = prior - precision * ((states @ components[candidates[n]] - point) ** 2).sum(1)
    cross, moment, error = np.zeros_like(components), np.zeros((count, count)), 0.0
    for n, point in enumerate(points):
        q = np.exp(joints[n] - joints[n].max())
        q /= q.sum()
        mean, second = q[1 : 1 + count].copy(), np.diag(q[1 : 1 + count])
        several, which = q[1 + count :], candidates[n]
        mean[which] += several @ states
        second[np.ix_(which, which)] += (states * several[:, None]).T @ states
        cross += np.outer(mean, point)
        moment += second
        error += q[0] * (point**2).sum() + q[1 : 1 + count] @ ((components - point) ** 2).sum(1)
        error += several @ ((states @ components[which] - point) ** 2).sum(1)
    return cross, moment, float(error)


def measure(components: int, rounds: int) -> dict[str, float]:
    """Time one number of components."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(POINTS, FEATURES))
    model = BSC(components, n_candidates=CANDIDATES, max_active=ACTIVE, schedule=None, max_iter=1, random_state=0)
    parameters, states = model.fit(points)._parameters, model._states()
    tensor, table = torch.from_numpy(points), states.sets_SC.numpy()
    (block,) = model._expect(tensor[:PEER_POINTS], parameters, states, Settings())
    candidates, few = block.candidates_NC.numpy(), points[:PEER_POINTS]
    plain = parameters.components_HD.numpy(), float(parameters.pi), float(parameters.sigma)
    sums = model._sums(block, parameters, states, 1.0)
    cross, moment, _ = loop_over_points(few, *plain, table, candidates)
    np.testing.assert_allclose(sums["cross_HD"], cross, atol=1e-8)
    np.testing.assert_allclose(sums["moment_HH"], moment, atol=1e-8)

    def step(estimator: object, rows: torch.Tensor) -> None:
        estimator._step(rows, estimator._parameters, estimator._states(), Settings(), torch.Generator(), 1e-3)  # type: ignore[attr-defined]

    others = {
        kind.__name__: kind(components, n_candidates=CANDIDATES, max_active=ACTIVE, max_iter=1, random_state=0).fit(
            np.abs(few)
        )
        for kind in (TSC, GSC, MCA)
    }
    timings = alternate(
        {
            "loop": lambda: loop_over_points(few, *plain, table, candidates),
            "BSC": lambda: step(model, tensor),
            "BSC, a quarter": lambda: step(model, tensor[: POINTS // 4]),
            **{name: lambda other=other: step(other, tensor[:PEER_POINTS].abs()) for name, other in others.items()},
        },
        rounds=rounds,
    )
    scale = POINTS / PEER_POINTS  # the loop's and the other models' cost is proportional to the points
    peer = Timing(tuple(scale * seconds for seconds in timings["loop"].seconds))
    ours = timings["BSC"]
    pairs = CANDIDATES * (CANDIDATES + 1) // 2
    products = 2 * POINTS * (2 * len(table) * (CANDIDATES + pairs) + 2 * components * FEATURES)
    return {
        "components": components,
        "states": states.size,
        "loop": peer.median,
        "ours": ours.median,
        "ratio": ratio(peer, ours),
        "limit": peer.median * gemm_rate(dtype=torch.float64, size=1024, rounds=3) / products,
        "linear": statistics.median(
            full / (4 * part) for full, part in zip(ours.seconds, timings["BSC, a quarter"].seconds, strict=True)
        ),
        **{name: scale * timings[name].median for name in others},
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(components, options.rounds) for components in (32, 64)]
    columns = tuple(rows[0])
    print_table(columns, [tuple(row.values()) for row in rows])
    worst = min(rows, key=lambda row: row["ratio"])
    finish(
        "prosper_em",
        ratio=worst["ratio"],
        goal=GOAL,
        limit=worst["limit"],
        ours=worst["ours"],
        peer=worst["loop"],
        unit="s/EM step of 10,000 points",
        store=options.store,
        sizes=rows,
    )


if __name__ == "__main__":
    main()
