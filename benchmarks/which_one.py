"""Which method of adapt and train for what? All on one small task: quality, forgetting, seconds, memory, stored bytes.

A byte-level GPT that knows documentation learns Python source in 120 steps, every method at the best of three learning
rates. Memory is what a training step keeps beside the weights: optimizer state, gradients, and what the forward pass
saves for the backward pass. Seconds are of one core. Stored bytes are the smallest file from which the result can be
rebuilt beside the base model.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from weightsmith.adapt import BoneConfig, LIFTAdamW, lift_groups, match_rank
from weightsmith.adapt._kappatune import adaptable
from weightsmith.analyze import condition_report
from weightsmith.claims.byte_lm import BATCH, LAYERS, byte_text, nll, pretrained, windows
from weightsmith.core.errors import NonFiniteError
from weightsmith.core.results import environment
from weightsmith.core.training import default_loss, fit
from weightsmith.train import (
    LossReweighter,
    PLDLoss,
    compand,
    compander_parameter_groups,
    distillation,
    fold_companders,
    reweighted,
)

STEPS = 120
STORE = Path(__file__).parents[1] / "docs" / "comparisons" / "which-one.json"
TARGETS = list(LAYERS)

Trained = tuple[nn.Module, torch.optim.Optimizer, Any, Callable[[nn.Module], nn.Module], Callable[[nn.Module], int]]
"""The model to train, its optimizer, its loss, what makes it plain again, and the bytes to store."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    bases = [pretrained(seed) for seed in range(options.seeds)]
    for name, (prepare, rates) in METHODS.items():
        tried = [_measure_all(prepare, rate, bases) for rate in rates]
        best = min(filter(None, tried), key=lambda runs: sum(run["target"] for run in runs))
        row = {"method": name} | {key: sum(run[key] for run in best) / len(best) for key in best[0]}
        rows.append(row)
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    start = {"target": 0.0, "control": 0.0}
    for base in bases:
        start["target"] += nll(base, byte_text("source held out")) / len(bases)
        start["control"] += nll(base, byte_text("documentation held out")) / len(bases)
    told = {"start": start, "seeds": options.seeds, "steps": STEPS, "rows": rows, "machine": environment()}
    if options.store:
        STORE.parent.mkdir(exist_ok=True)
        STORE.write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def _measure_all(
    prepare: Callable[[nn.Module, float, int], Trained], rate: float, bases: list[nn.Module]
) -> list[dict]:
    """One run a seed; none where the rate is so high that the loss becomes NaN."""
    try:
        return [_measure(prepare, rate, base, seed) for seed, base in enumerate(bases)]
    except NonFiniteError:
        return []


def _measure(prepare: Callable[[nn.Module, float, int], Trained], rate: float, base: nn.Module, seed: int) -> dict:
    torch.manual_seed(seed)
    model, optimizer, loss, finish, stored = prepare(copy.deepcopy(base), rate, seed)
    kept = _kept_for_backward(model, loss, windows(byte_text("source"), 1, seed))
    samples = windows(byte_text("source"), STEPS, seed + 100)
    start = time.process_time()
    fit(model, samples, loss=loss, optimizer=optimizer, scheduler="cosine", batch_size=BATCH, seed=seed)
    seconds = time.process_time() - start
    state = sum(
        value.numel() * value.element_size()
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    trainable = optimizer.trained() if isinstance(optimizer, LIFTAdamW) else _trainable(model)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    bytes_stored = stored(model)
    plain = finish(model)
    return {
        "rate": rate,
        "trainable": trainable,
        "target": nll(plain, byte_text("source held out")),
        "control": nll(plain, byte_text("documentation held out")),
        "seconds": seconds,
        "memory": state + gradients + kept,
        "stored": bytes_stored,
    }


def _kept_for_backward(model: nn.Module, loss: Any, samples: list[dict[str, torch.Tensor]]) -> int:
    """Bytes that one forward pass saves, the model's own parameters left out."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    own = {p.data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            seen[tensor.data_ptr()] = max(tensor.numel() * tensor.element_size(), seen.get(tensor.data_ptr(), 0))
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        (loss or default_loss)(model, batch)
    return sum(seen.values())


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _bytes(model: nn.Module) -> int:
    return 4 * _trainable(model)


def _full(model: nn.Module, rate: float, seed: int) -> Trained:
    return model, torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), None, _same, _bytes


def _same(model: nn.Module) -> nn.Module:
    return model


def _adapter(config: Callable[[nn.Module], Any]) -> Callable[[nn.Module, float, int], Trained]:
    def prepare(model: nn.Module, rate: float, seed: int) -> Trained:
        adapted = get_peft_model(model, config(model))
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
        return adapted, optimizer, None, lambda m: m.merge_and_unload(), _bytes

    return prepare


def _lora(model: nn.Module) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)


def _kappa(model: nn.Module) -> LoraConfig:
    report = adaptable(condition_report(model, score="kappa"), model)
    targets = report.targets(top_p=0.2)
    rank = match_rank(report, targets, 4)
    return LoraConfig(r=rank, lora_alpha=2 * rank, **targets)


def _lift(model: nn.Module, rate: float, seed: int) -> Trained:
    base = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = LIFTAdamW(lift_groups(model, lora_rank=4, approx_rank=8), lr=rate, update_interval=None)
    return model, optimizer, None, _same, lambda m: optimizer.sparse_delta(base).nbytes


def _reweighted(model: nn.Module, rate: float, seed: int) -> Trained:
    plain = _full(model, rate, seed)
    return (*plain[:2], reweighted(LossReweighter(warmup_steps=6)), *plain[3:])


def _companded(model: nn.Module, rate: float, seed: int) -> Trained:
    compand(model, include=[f"*{name}" for name in LAYERS])
    optimizer = torch.optim.SGD(compander_parameter_groups(model, lr=rate), lr=rate, momentum=0.9, nesterov=True)

    def finish(model: nn.Module) -> nn.Module:
        fold_companders(model)
        return model

    return model, optimizer, None, finish, _bytes


def _sgd(model: nn.Module, rate: float, seed: int) -> Trained:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)
    return model, optimizer, None, _same, _bytes


def _distilled(model: nn.Module, rate: float, seed: int) -> Trained:
    teacher = copy.deepcopy(model)
    samples = windows(byte_text("source"), 4 * STEPS, seed + 200)
    fit(teacher, samples, scheduler="cosine", batch_size=BATCH, learning_rate=4e-3, seed=seed)
    plain = _full(model, rate, seed)
    return (*plain[:2], distillation(teacher, PLDLoss(2.0)), *plain[3:])


ADAM = (1e-3, 4e-3, 1.6e-2)
METHODS = {
    "full fine-tuning": (_full, (1e-3, 2e-3, 4e-3)),
    "LoRA": (_adapter(_lora), ADAM),
    "bone": (_adapter(lambda _: BoneConfig(r=8, target_modules=TARGETS)), ADAM),
    "bone, additive (MiSS)": (_adapter(lambda _: BoneConfig(r=8, variant="miss", target_modules=TARGETS)), ADAM),
    "lift": (_lift, ADAM),
    "kappatune": (_adapter(_kappa), ADAM),
    "loss-reweighting": (_reweighted, (1e-3, 2e-3, 4e-3)),
    "pld": (_distilled, (1e-3, 2e-3, 4e-3)),
    "full fine-tuning, SGD": (_sgd, (0.03, 0.1, 0.3)),
    "weight-compander, SGD": (_companded, (0.03, 0.1, 0.3)),
}


if __name__ == "__main__":
    main()
