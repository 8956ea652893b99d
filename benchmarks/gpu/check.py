"""Everything that needs a GPU, in one run of under eight minutes: ``make gpu-check`` on a machine with one.

The sections are independent; one that fails says so in the report and the others run. ``--dry`` runs all of it on the
CPU with small shapes, so that on a machine with a GPU only the device is new. ``--store`` writes
``docs/benchmarks/gpu/check.json``.

A machine without a network: ``make gpu-wheels`` on a machine with one collects what the project needs, except PyTorch,
in ``wheels/``; there, in an environment that has PyTorch for CUDA,
``pip install --no-index --no-deps wheels/*.whl && pip install --no-index --no-deps --no-build-isolation -e .``.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import alternate, gemm_rate, machine, memory_bandwidth, ratio

from weightsmith.adapt import BoneConfig, LIFTAdamW, lift_groups
from weightsmith.core.training import Task, train_many
from weightsmith.predict import WeightDiffusion, WeightZoo
from weightsmith.sparsify import ActivationPlan, apply_plan, dsnot, remove_plan, sparsegpt
from weightsmith.sparsify._wina.plan import Projection

ROOT = Path(__file__).parents[2]
STORE = ROOT / "docs" / "benchmarks" / "gpu" / "check.json"


@dataclass(frozen=True)
class Size:
    """How large the shapes are."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    hidden: int = 4096
    feed_forward: int = 14336
    layers: int = 4
    pruned: tuple[int, int, int] = (2048, 8192, 16)
    tokens: int = 2048
    members: int = 1000
    draws: int = 256
    adapted: tuple[int, int, int] = (2048, 8192, 4)
    rounds: int = 10


DRY = Size("cpu", torch.float32, 128, 256, 2, (64, 128, 2), 64, 20, 8, (64, 128, 2), 2)


def tests(size: Size) -> dict[str, Any]:
    """Run every test that is marked ``gpu``, the Triton kernels against the CPU's among them."""
    chosen = ["-m", "gpu"] if size.device == "cuda" else ["-m", "gpu", "--collect-only"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-1000:])
    return {"summary": done.stdout.strip().splitlines()[-1]}


@torch.no_grad()
def sparse_decode(size: Size) -> dict[str, Any]:
    """Time the matrices of Llama-3-8B's blocks for one token with half of the columns skipped, against dense ones.

    Goal: 1.4 times, and the same bits each time.
    """
    key = size.hidden // 4
    shapes = {
        "q": (key * 4, size.hidden),
        "k": (key, size.hidden),
        "v": (key, size.hidden),
        "o": (size.hidden, size.hidden),
        "gate": (size.feed_forward, size.hidden),
        "up": (size.feed_forward, size.hidden),
        "down": (size.hidden, size.feed_forward),
    }

    def blocks() -> nn.ModuleList:
        torch.manual_seed(0)
        made = [
            nn.ModuleDict({name: nn.Linear(i, o, False, size.device, size.dtype) for name, (o, i) in shapes.items()})
            for _ in range(size.layers)
        ]
        return nn.ModuleList(made)

    dense, sparse = blocks(), blocks()
    x = {i: torch.randn(1, i, dtype=size.dtype, device=size.device) for i in (size.hidden, size.feed_forward)}
    plan = ActivationPlan(
        0.5,
        "threshold",
        1.0,
        {
            f"{block}.{name}": Projection(0.5, float(x[i].float().abs().quantile(0.5)), norms=False)
            for block in range(size.layers)
            for name, (_, i) in shapes.items()
        },
    )
    apply_plan(sparse, plan, backend="triton" if size.device == "cuda" else "mask")

    def token(model: nn.ModuleList) -> list[torch.Tensor]:
        return [layer(x[shapes[name][1]]) for block in model for name, layer in block.items()]

    first, second = token(sparse), token(sparse)
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    runs, graphs = {"dense": partial(token, dense), "sparse": partial(token, sparse)}, size.device == "cuda"
    if graphs:  # as in decoding: the launches are recorded once
        runs = {name: _graph(run) for name, run in runs.items()}
    times = alternate(runs, rounds=size.rounds, warmup=2)
    remove_plan(sparse)
    weights = sum(o * i for o, i in shapes.values()) * size.layers
    bandwidth = memory_bandwidth(size.device)
    return {
        "ratio": ratio(times["dense"], times["sparse"]),
        "goal": 1.4,
        "deterministic": same,
        "microseconds_per_block": {name: 1e6 * each.median / size.layers for name, each in times.items()},
        "limit_microseconds": 1e6 * weights * size.dtype.itemsize / 2 / bandwidth / size.layers,
        "bandwidth": bandwidth,
    }


def _graph(run: Callable[[], object]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def pruning(size: Size) -> dict[str, Any]:
    """Time SparseGPT and DSnoT on a model in the shape of Llama 3.2 1B, and measure their largest memory."""
    model = _llama(size, size.pruned)
    ids = torch.randint(1000, (max(1, size.tokens // 512), min(512, size.tokens)), device=size.device)
    batches = [{"input_ids": row[None]} for row in ids]
    found: dict[str, Any] = {"weights": sum(p.numel() for p in model.parameters())}
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name, method in (("sparsegpt", sparsegpt), ("dsnot", dsnot)):
        model.load_state_dict(start)
        _reset_peak(size)
        begun = time.perf_counter()
        result = method(model, batches)
        found[name] = {
            "seconds": time.perf_counter() - begun,
            "sparsity": result.totals["sparsity"],
            **_peak(size),
        }
    return found


def zoo(size: Size) -> dict[str, Any]:
    """Train small perceptrons at once and one by one. Goal: 20 times."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size.members, 200, 32, generator=generator).to(size.device)
    labels = torch.randint(5, (size.members, 200), generator=generator).to(size.device)
    adam, steps, alone = partial(torch.optim.Adam, lr=1e-2), 50, min(10, size.members)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).to(size.device)

    def one_by_one() -> None:
        for x, y in zip(inputs[:alone], labels[:alone], strict=True):
            model = build()
            optimizer = adam(model.parameters())
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

    at_once = partial(train_many, build, Task(inputs, labels), optimizer=adam, steps=steps)
    times = alternate({"at once": at_once, "one by one": one_by_one}, rounds=3)
    seconds = {"at once": times["at once"].median / size.members, "one by one": times["one by one"].median / alone}
    return {"ratio": seconds["one by one"] / seconds["at once"], "goal": 20.0, "seconds_per_network": seconds}


def diffusion(size: Size) -> dict[str, Any]:
    """Draw weights of classifier heads: how many per second, by DDIM with its default steps."""
    torch.manual_seed(0)
    states = [nn.Linear(64, 10).state_dict() for _ in range(64)]
    generator = WeightDiffusion(WeightZoo.from_state_dicts(states)).to(size.device)
    generator.fit(vae_steps=50, steps=50, batch_size=32)
    times = alternate({"draw": partial(generator.sample, count=size.draws)}, rounds=3)
    return {"draws": size.draws, "seconds": times["draw"].median, "per_second": size.draws / times["draw"].median}


def steps(size: Size) -> dict[str, Any]:
    """Time training steps of LIFT, Bone and PEFT's LoRA of as many trained weights, and measure their memory."""
    from peft import LoraConfig, get_peft_model

    ids = torch.randint(1000, (2, min(512, size.tokens)), device=size.device)
    found: dict[str, Any] = {}

    def lift(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        return model, LIFTAdamW(lift_groups(model, lora_rank=16), lr=1e-5)

    def peft(config: Any, model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
        return adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-5)

    arms = {
        "LoRA": partial(peft, LoraConfig(r=16, target_modules="all-linear")),
        "Bone": partial(peft, BoneConfig(r=32)),
        "LIFT": lift,
    }
    for name, make in arms.items():
        gc.collect()
        _reset_peak(size)
        model, optimizer = make(_llama(size, size.adapted))

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times = alternate({name: step}, rounds=size.rounds, warmup=2)
        found[name] = {"milliseconds": 1e3 * times[name].median, **_peak(size)}
        del model, optimizer, step
    found["ratio"] = {name: found["LoRA"]["milliseconds"] / found[name]["milliseconds"] for name in ("Bone", "LIFT")}
    return found


SECTIONS = {
    "tests": tests,
    "sparse decode": sparse_decode,
    "pruning": pruning,
    "zoo": zoo,
    "diffusion": diffusion,
    "training steps": steps,
}


def _llama(size: Size, shape: tuple[int, int, int]) -> LlamaForCausalLM:
    hidden, feed_forward, layers = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 or 1,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=32000 if size.device == "cuda" else 1000,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(size.device):
        return LlamaForCausalLM(config).to(size.dtype)


def _reset_peak(size: Size) -> None:
    if size.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(size: Size) -> dict[str, float]:
    return {"gigabytes": torch.cuda.max_memory_allocated() / 1e9} if size.device == "cuda" else {}


def main() -> None:
    """Run the sections and print one line of JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dry", action="store_true", help="small shapes on the CPU")
    options.add_argument("--store", action="store_true", help=f"write {STORE.relative_to(ROOT)}")
    options.add_argument("--sections", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    chosen = options.parse_args()
    if not (chosen.dry or torch.cuda.is_available()):
        raise SystemExit("no CUDA device; --dry runs small shapes on the CPU")
    size = DRY if chosen.dry else Size()
    if size.device == "cuda" and torch.cuda.get_device_properties(0).total_memory < 20e9:
        size = replace(size, pruned=(1024, 4096, 8), layers=2)
    report: dict[str, Any] = {}
    failed = []
    for name in chosen.sections:
        begun = time.perf_counter()
        try:
            report[name] = SECTIONS[name](size)
        except Exception:
            report[name] = {"error": traceback.format_exc()[-4000:]}
            failed.append(name)
        report[name]["wall"] = time.perf_counter() - begun
        gc.collect()
        _reset_peak(size)
        print(f"{name}: {json.dumps(report[name])}", flush=True)
    report["machine"] = machine() | {"gemm": gemm_rate(size.device, dtype=size.dtype)}
    if chosen.store and not chosen.dry:
        STORE.parent.mkdir(parents=True, exist_ok=True)
        STORE.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
