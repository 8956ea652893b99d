"""How fast does a language model decode with WINA, against the dense model?

One sequence, greedy, token by token, eager and with a step compiled by torch.compile on a static cache. The peer is
the faster dense arm. ``ours 0%`` reads all weights through the same kernel: its gain over the peer is that of the
kernel, the gain of the other arms over it is that of sparsity.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from transformers import DynamicCache, StaticCache

from weightsmith import embedded
from weightsmith.core.data import token_ids, token_windows
from weightsmith.sparsify import apply_plan, calibrate_wina, plan_report

PROMPT = "The history of the city of Paris begins"
GOALS = {0.5: 1.3, 0.65: 1.7}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=32, help="new tokens a round")
    options.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    options.add_argument("--model", default="embedded:smollm2", help="embedded:NAME, a folder or a hub id")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    opened = embedded.open_model(arguments.model, dtype=getattr(torch, arguments.dtype))
    dense, tokenizer = opened.model, opened.tokenizer
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    calibration = token_windows(token_ids(tokenizer, embedded.text("calibration")), length=256, count=8)

    models: dict[str, torch.nn.Module] = {"dense": dense}
    facts: dict[str, dict[str, float]] = {}
    for sparsity in (0.0, 0.5, 0.65):
        plan = calibrate_wina(dense, calibration, sparsity=sparsity)
        model = copy.deepcopy(dense)
        apply_plan(model, plan)
        models[f"ours {sparsity:.0%}"] = model

    @torch.no_grad()
    def decode(model: torch.nn.Module, step: Callable[..., Any]) -> None:
        """Greedy; ``step`` is the model, or the model compiled, which needs a cache of constant shape."""
        length = prompt.shape[1] + arguments.tokens
        cache = DynamicCache() if step is model else StaticCache(config=model.config, max_cache_len=length)
        token = model(prompt, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        for _ in range(arguments.tokens):
            token = step(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    arms: dict[str, Callable[[], None]] = {n: lambda m=m: decode(m, m) for n, m in models.items()}
    for name in ("dense", "ours 50%", "ours 65%"):
        model, step, start = models[name], torch.compile(models[name], dynamic=False), time.perf_counter()
        decode(model, step)
        print(f"{name}: compiled in {time.perf_counter() - start:.0f} s")
        models[f"{name}, compiled"] = model
        arms[f"{name}, compiled"] = lambda m=model, s=step: decode(m, s)
    times = alternate(arms, rounds=arguments.rounds)
    peer = min(("dense", "dense, compiled"), key=lambda name: times[name].median)
    bandwidth = memory_bandwidth()
    rows = []
    for name, model in models.items():
        read = None if name.startswith("dense") else plan_report(model)
        size = read["bytes_sparse"] if read else plan_report(models["ours 0%"])["bytes_dense"]
        facts[name] = {
            "ms_per_token": 1e3 * times[name].median / arguments.tokens,
            "against_peer": ratio(times[peer], times[name]),
            "against_ours_0": ratio(times["ours 0%"], times[name]),
            "byte_ceiling": read["ceiling"] if read else 1.0,
            "realized_sparsity": read["realized"] if read else 0.0,
            "ms_at_memory_bandwidth": 1e3 * size / bandwidth,
        }
        rows.append((name, *facts[name].values()))
    print_table(("arm", "ms/token", f"x {peer}", "x ours 0%", "byte ceiling", "realized", "ms at bandwidth"), rows)
    print(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s, {arguments.threads} threads")
    for sparsity, goal in GOALS.items():
        label = f"ours {sparsity:.0%}"
        name = min((n for n in facts if n.startswith(label)), key=lambda n: facts[n]["ms_per_token"])
        finish(
            f"wina_decode_{round(100 * sparsity)}",
            ratio=facts[name]["against_peer"],
            goal=goal,
            limit=facts[peer]["ms_per_token"] / facts[name]["ms_at_memory_bandwidth"],
            ours=facts[name]["ms_per_token"],
            peer=facts[peer]["ms_per_token"],
            unit="ms/token",
            store=arguments.store,
            arms=facts,
            bandwidth=bandwidth,
        )


if __name__ == "__main__":
    main()
