"""What does a step of TangleNAS cost beside a training step of the largest network, and beside mixing outputs?

* GPT-2 with three blocks of hidden size 768: a step of the choices and one of the weights, over a space of hidden
  sizes, heads, ratios and depths, against one plain training step of the same batch size; the goal is at most 2.2 times
  the time. Two is the least that two batches can cost.
* four convolutions with three widths and three kernels each, as in the paper's small space: the same step with mixed
  weights against mixed outputs; the goal is at least 3 times as fast.

Each ratio is the peer's time over ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith.core.training import default_loss
from weightsmith.search import DrNAS, Supernet, mix_outputs

BATCH, TOKENS, WORDS = 8, 128, 4096
GPT2 = {
    "hidden_size": (384, 576, 768),
    "num_attention_heads": (6, 12),
    "mlp_ratio": (2, 3, 4),
    "num_hidden_layers": (1, 2, 3),
}
WIDTHS = ((8, 16, 32), (16, 32, 64), (16, 32, 64), (16, 32, 64))


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    heads = GPT2["num_attention_heads"][-1]
    config = GPT2Config(
        vocab_size=WORDS, n_embd=768, n_layer=3, n_head=heads, n_positions=TOKENS, bos_token_id=0, eos_token_id=0
    )
    plain, model = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    ids = torch.randint(WORDS, (BATCH, TOKENS))
    batch = {"input_ids": ids, "labels": ids}
    net = Supernet(model, GPT2, {"input_ids": ids[:1]})
    steps = alternate({"plain": _plain(plain, batch), "search": _search(net, batch)}, rounds=options.rounds, warmup=2)

    images = (torch.randn(32, 3, 16, 16), torch.randint(10, (32,)))
    first = _convolutions()
    second = copy.deepcopy(first)
    weights, outputs = (Supernet(each, _space(), images[0][:1]) for each in (first, second))
    mix_outputs(outputs)
    mixed = alternate(
        {"outputs": _search(outputs, images), "weights": _search(weights, images)}, rounds=options.rounds, warmup=1
    )
    rows = [(f"GPT-2, {name}", timing.median) for name, timing in steps.items()]
    print_table(("step", "seconds"), rows + [(f"CNN, mixed {name}", timing.median) for name, timing in mixed.items()])
    for name, peer, ours, goal, limit in (
        ("tanglenas_step", steps["plain"], steps["search"], 1 / 2.2, 0.5),
        ("tanglenas_mixing", mixed["outputs"], mixed["weights"], 3.0, None),
    ):
        finish(
            name,
            ratio=ratio(peer, ours),
            goal=goal,
            limit=limit,
            ours=ours.median,
            peer=peer.median,
            unit="s",
            store=options.store,
        )


def _plain(model: nn.Module, batch: Any) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        default_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _search(net: Supernet, batch: Any) -> Callable[[], None]:
    """A step of the choices, then one of the weights, as the search takes them."""
    choices = torch.optim.Adam(net.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    weights, generator = _plain(net.model, batch), torch.Generator().manual_seed(0)

    def step() -> None:
        net.state.sample(DrNAS(), 0.0, generator)
        gradients = torch.autograd.grad(default_loss(net.model, batch), list(net.arch_parameters()))
        for alpha, gradient in zip(net.arch_parameters(), gradients, strict=True):
            alpha.grad = gradient
        choices.step()
        net.state.sample(DrNAS(), 0.0, generator, learn=False)
        weights()

    return step


def _convolutions() -> nn.Sequential:
    def layers() -> Iterator[nn.Module]:
        inner = 3
        for outer in WIDTHS:
            yield nn.Conv2d(inner, outer[-1], 7, padding=3)
            yield nn.ReLU()
            inner = outer[-1]

    return nn.Sequential(*layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1][-1], 10))


def _space() -> dict[str, tuple[int, ...]]:
    widths = {f"{2 * place}.out_channels": values for place, values in enumerate(WIDTHS)}
    return widths | {f"{2 * place}.kernel_size": (3, 5, 7) for place in range(len(WIDTHS))}


if __name__ == "__main__":
    main()
