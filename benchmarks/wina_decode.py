"""How fast does a language model decode with WINA, against Hugging Face's dense ``generate``?

One sequence, greedy, the user's own call in every arm. ``ours 0%`` reads all weights through the same kernels: what it
gains over the peer is better kernels, what the other arms gain over it is sparsity.
"""

from __future__ import annotations

import copy

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio

from weightsmith import embedded
from weightsmith.core.data import token_ids, token_windows
from weightsmith.sparsify._wina import method as wina

PROMPT = "The history of the city of Paris begins"
GOALS = {0.5: 1.3, 0.65: 1.7}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=32, help="new tokens a round")
    options.add_argument("--model", default="embedded:smollm2", help="embedded:NAME, a folder or a hub id")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    opened = embedded.open_model(arguments.model, dtype=torch.float32)
    dense, tokenizer = opened.model, opened.tokenizer
    prompt = tokenizer(PROMPT, return_tensors="pt")
    calibration = token_windows(token_ids(tokenizer, embedded.text("calibration")), length=256, count=8)

    models: dict[str, torch.nn.Module] = {"dense": dense}
    facts: dict[str, dict[str, float]] = {}
    for sparsity in (0.0, 0.5, 0.65):
        plan = wina.calibrate(dense, calibration, sparsity=sparsity)
        model = copy.deepcopy(dense)
        wina.apply(model, plan)
        models[f"ours {sparsity:.0%}"] = model

    def generate(model: torch.nn.Module) -> None:
        model.generate(  # type: ignore[operator]
            **prompt, max_new_tokens=arguments.tokens, min_new_tokens=arguments.tokens, do_sample=False
        )

    times = alternate({name: lambda m=model: generate(m) for name, model in models.items()}, rounds=arguments.rounds)
    bandwidth = memory_bandwidth()
    rows = []
    for name, model in models.items():
        read = wina.report(model) if name != "dense" else None
        size = read["bytes_sparse"] if read else wina.report(models["ours 0%"])["bytes_dense"]
        facts[name] = {
            "ms_per_token": 1e3 * times[name].median / arguments.tokens,
            "against_dense": ratio(times["dense"], times[name]),
            "against_ours_0": ratio(times["ours 0%"], times[name]),
            "byte_ceiling": read["ceiling"] if read else 1.0,
            "realised_sparsity": read["realised"] if read else 0.0,
            "ms_at_memory_bandwidth": 1e3 * size / bandwidth,
        }
        rows.append((name, *facts[name].values()))
    print_table(("arm", "ms/token", "x dense", "x ours 0%", "byte ceiling", "realised", "ms at bandwidth"), rows)
    print(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s, {arguments.threads} threads")
    for sparsity, goal in GOALS.items():
        name = f"ours {sparsity:.0%}"
        finish(
            f"wina_decode_{round(100 * sparsity)}",
            ratio=facts[name]["against_dense"],
            goal=goal,
            limit=facts["dense"]["ms_per_token"] / facts[name]["ms_at_memory_bandwidth"],
            ours=facts[name]["ms_per_token"],
            peer=facts["dense"]["ms_per_token"],
            unit="ms/token",
            store=arguments.store,
            arms=facts,
            bandwidth=bandwidth,
        )


if __name__ == "__main__":
    main()
