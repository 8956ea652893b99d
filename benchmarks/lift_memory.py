"""Does LIFT train as many weights as LoRA in as little memory? SmolLM2-135M in float32, measured after one step.

Counted are the bytes that training adds to the model: new weights, gradients held at the end of ``backward`` (and,
where they are freed on the way, the largest one that existed meanwhile), and optimizer state. Goal: no more than
LoRA's at the same number of trained weights. The limit is what Adam must keep: two moments and a place (or a weight)
of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from harness import finish, parser, print_table
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from weightsmith.adapt import LIFTAdamW, lift_groups
from weightsmith.embedded import load

RANK = 16
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows = {
        "AdamW on all weights": _measure(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-5)),
        f"LoRA, rank {RANK}": _measure(_lora),
        "LIFT": _measure(lambda model: LIFTAdamW(lift_groups(model, lora_rank=RANK))),
        "LIFT, gradients freed": _measure(lambda m: LIFTAdamW(lift_groups(m, lora_rank=RANK), free_gradients=True)),
        "LIFT, gradients freed, bfloat16 model": _measure(
            lambda m: LIFTAdamW(lift_groups(m.bfloat16(), lora_rank=RANK), free_gradients=True)
        ),
    }
    columns = ("trained", "new weights", "gradients", "state", "total")
    print_table(
        ("training", "trained weights", *(f"{name} MB" for name in columns[1:])),
        [(name, f"{row['trained']:,}", *(row[key] / 1e6 for key in columns[1:])) for name, row in rows.items()],
    )
    lora, ours = rows[f"LoRA, rank {RANK}"], rows["LIFT, gradients freed"]
    assert lora["trained"] == ours["trained"]
    finish(
        "lift_memory",
        ratio=lora["total"] / ours["total"],
        goal=1.0,
        limit=lora["total"] / (12 * ours["trained"]),
        ours=ours["total"] / 1e6,
        peer=lora["total"] / 1e6,
        unit="MB beyond the model",
        store=options.store,
        bytes=rows,
    )


def _lora(model: nn.Module) -> torch.optim.Optimizer:
    adapted: Any = get_peft_model(model, LoraConfig(r=RANK, target_modules=MATRICES))  # type: ignore[arg-type]
    return torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-5)


def _measure(make: Callable[[nn.Module], torch.optim.Optimizer]) -> dict[str, int]:
    model, _ = load("smollm2")
    weights = {id(parameter) for parameter in model.parameters()}
    optimizer = make(model)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for _ in range(2):  # LIFT makes its state during the first step
        optimizer.zero_grad()
        ids = torch.arange(32).unsqueeze(0)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
        if isinstance(optimizer, LIFTAdamW) and optimizer.free_gradients:
            gradients += _bytes(optimizer._kept.values()) + max(_bytes([p]) for p in trained)
        optimizer.step()
    state = _bytes(v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    new = _bytes(parameter for parameter in trained if id(parameter) not in weights)
    count = optimizer.trained() if isinstance(optimizer, LIFTAdamW) else sum(p.numel() for p in trained)
    return {
        "trained": count,
        "new weights": new,
        "gradients": gradients,
        "state": state,
        "total": new + gradients + state,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main()
