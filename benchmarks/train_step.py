"""What do the methods that shape training cost a step, against the plain step and against the peer a user would take?

* static sparsity (spdf) against ``torch.nn.utils.prune``, which keeps a second copy of every weight
* the weight compander against ``weight_norm``, another parametrisation of every weight
* loss reweighting against the mean of the same losses
* the meta-gradient by one forward-mode pass against double backward through the virtual step

Each ratio is the peer's time over ours. The limit is the plain step, which none can be faster than. That of the
meta-gradient is the ratio of matrix products: a forward-mode pass computes the outputs once more. Double backward keeps
them from the first pass, and needs their memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Timing, alternate, finish, parser, print_table, ratio
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.data import TensorDataset

from weightsmith.core.models import find_layers
from weightsmith.sparsify import StaticSparsity
from weightsmith.train import LossReweighter, MetaRescaler, compand

LAYERS, WIDTH, BATCH, CLASSES = 4, 1024, 256, 10


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))
    arms = {
        "plain": _step(_network(), x, y),
        "spdf": _sparse(x, y),
        "prune": _pruned(x, y),
        "compander": _companded(x, y),
        "weight_norm": _normed(x, y),
        "reweighting": _step(_network(), x, y, LossReweighter()),
    }
    timings = alternate(arms, rounds=options.rounds, warmup=1)
    meta = alternate(
        {"jvp": _meta_by_jvp(x, y), "double backward": _meta_by_double_backward(x, y)}, rounds=options.rounds, warmup=1
    )
    print_table(("step", "ms"), [(name, 1e3 * timing.median) for name, timing in (timings | meta).items()])
    plain = timings["plain"]
    for name, peer, goal in (
        ("spdf", "prune", 1.0),
        ("compander", "weight_norm", 0.95),
        ("reweighting", "plain", 0.95),  # at 1, the limit, only noise would reach it
    ):
        limit = timings[peer].median / plain.median
        _finish(f"{name}_step", timings[name], timings[peer], goal, limit, options.store)
    forward, backward = LAYERS, 2 * LAYERS - 1  # the first layer's inputs need no gradient
    both = 2 * (forward + backward)
    limit = (both + backward) / (both + forward + backward)
    _finish("meta_gradient", meta["jvp"], meta["double backward"], 0.95, limit, options.store)


def _finish(name: str, ours: Timing, peer: Timing, goal: float, limit: float, store: bool) -> None:
    finish(
        name,
        ratio=ratio(peer, ours),
        goal=goal,
        limit=limit,
        ours=1e3 * ours.median,
        peer=1e3 * peer.median,
        unit=f"ms a step of {LAYERS} layers of {WIDTH}, batch {BATCH}",
        store=store,
    )


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    body = [part for _ in range(LAYERS - 1) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(WIDTH, CLASSES))


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weigh: Callable[[Tensor], Tensor] = torch.mean,
    held: StaticSparsity | None = None,
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    if held is not None:
        held.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        weigh(functional.cross_entropy(model(x), y, reduction="none")).backward()
        optimizer.step()

    return step


def _sparse(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = _network()
    return _step(model, x, y, held=StaticSparsity(model, 0.75))


def _pruned(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = _network()
    for layer in find_layers(model):
        prune.random_unstructured(layer.module, "weight", amount=0.75)
    return _step(model, x, y)


def _companded(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = _network()
    compand(model)
    return _step(model, x, y)


def _normed(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = _network()
    for layer in find_layers(model):
        parametrizations.weight_norm(layer.module)
    return _step(model, x, y)


def _meta_by_jvp(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The derivative of the second batch's loss by the first batch's weights, as the method computes it."""
    model = _network()
    loss = MetaRescaler(TensorDataset(x, y), CLASSES, passes=1)
    named, w = dict(model.named_parameters()), torch.rand(BATCH)

    def compute() -> Tensor:
        each = functional.cross_entropy(model(x), y, reduction="none")
        gradients = torch.autograd.grad((w * each).mean(), [*named.values()])
        pairs = zip(named.items(), gradients, strict=True)
        moved = {name: (p - 1e-3 * g).detach().requires_grad_() for (name, p), g in pairs}
        outer = functional.cross_entropy(functional_call(model, moved, (x.flip(0),)), y.flip(0))
        direction = dict(zip(named, torch.autograd.grad(outer, [*moved.values()]), strict=True))
        return loss._directional(model, named, direction, x, y)

    return compute


def _meta_by_double_backward(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    model = _network()
    named, w = dict(model.named_parameters()), torch.rand(BATCH, requires_grad=True)

    def compute() -> Tensor:
        each = functional.cross_entropy(model(x), y, reduction="none")
        gradients = torch.autograd.grad((w * each).mean(), [*named.values()], create_graph=True)
        pairs = zip(named.items(), gradients, strict=True)
        moved = {name: p - 1e-3 * g for (name, p), g in pairs}
        outer = functional.cross_entropy(functional_call(model, moved, (x.flip(0),)), y.flip(0))
        return torch.autograd.grad(outer, w)[0]

    return compute


if __name__ == "__main__":
    main()
