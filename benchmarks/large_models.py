"""Which methods work on a language model of 8 billion weights on a small machine, how long, and in how much memory?

Makes folders in the shape of Llama 3.1 8B (bfloat16, random weights, several files), runs the commands on them, each in
a process of its own, and watches its resident memory. Beside the time stands the limit: copying what is written, at the
speed at which this machine copies such a folder, and the matrix products that no implementation of the method can
avoid, at the rate of a float32 product on this machine. ``--blocks`` says how many of Llama's 32 blocks the folders
have: a method whose work is the same in every block can be measured on a few, and its memory is that of all 32.

Needs three times the folder's size in ``--work``: 48 GB for 32 blocks. The rows are stored under
``docs/comparisons/large-models.json``; rows that are there and are not measured now stay.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import gemm_rate, machine, parser, print_table
from safetensors.torch import save_file

from weightsmith.embedded import folder as folder_of, load_tokenizer

STORE = Path(__file__).resolve().parents[1] / "docs" / "comparisons" / "large-models.json"
HIDDEN, FEED_FORWARD, HEADS, KEY_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256
TEXTS, TOKENS = 8, 64
ROWS_KEY = HIDDEN * KEY_HEADS // HEADS
LINEARS = {  # rows and columns of the matrices of a block
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (ROWS_KEY, HIDDEN),
    "self_attn.v_proj": (ROWS_KEY, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}
BLOCK = sum(rows * columns for rows, columns in LINEARS.values())
PASS = 2 * BLOCK * TEXTS * TOKENS
"""Floating-point operations of a block's matrices for the calibration text."""
GRAM = 2 * TEXTS * TOKENS * (2 * HIDDEN**2 + HIDDEN**2 + FEED_FORWARD**2)
"""Of the products of the inputs with themselves; q, k and v share theirs, and so do gate and up."""


@dataclass(frozen=True)
class Command:
    """A command line with MODEL, OTHER, OUT and TEXT to be filled in, and what it has to compute per block and once."""

    line: str
    flops: float = 0.0
    once: float = 0.0
    writes: bool = True


SPARSEGPT = (
    GRAM
    + sum(2 * rows * columns**2 for rows, columns in LINEARS.values())
    + sum(columns**3 for columns in (HIDDEN, HIDDEN, HIDDEN, FEED_FORWARD))
)
REMOVED = round(0.2 * FEED_FORWARD)
KEPT = FEED_FORWARD - REMOVED
MODHIFI = (
    2 * TEXTS * TOKENS * FEED_FORWARD**2 + 2 * HIDDEN * REMOVED * KEPT + KEPT**3 / 3 + 2 * HIDDEN * KEPT**2
)  # the inputs with themselves, what the removed ones contributed, the factor, and the solution
CURVATURE = 2 * TEXTS * TOKENS * (2 * VOCABULARY * HIDDEN + HIDDEN**2 + 2 * FEED_FORWARD**2)
"""The head forward and backward, and the moments of one edited block; it edits one block of two, three of 32."""
COMMANDS = {
    "merge wise-ft": Command("merge wise-ft MODEL OTHER OUT"),
    "merge ties": Command("merge ties MODEL OTHER OUT"),
    "sparsify magnitude": Command("sparsify magnitude MODEL OUT --stream"),
    "sparsify wanda": Command("sparsify wanda MODEL OUT --stream --calibration TEXT", 2 * PASS),
    "sparsify dsnot": Command("sparsify dsnot MODEL OUT --stream --calibration TEXT", 2 * PASS),
    "sparsify sparsegpt": Command("sparsify sparsegpt MODEL OUT --stream --calibration TEXT", 2 * PASS + SPARSEGPT),
    "sparsify modhifi": Command("sparsify modhifi MODEL OUT --stream --calibration TEXT", 2 * PASS + MODHIFI),
    "analyze condition": Command(
        "analyze condition MODEL", sum(2 * max(shape) * min(shape) ** 2 for shape in LINEARS.values()), writes=False
    ),
    "merge rebasin": Command("merge rebasin MODEL OTHER OUT", 2 * BLOCK * HIDDEN + 2 * 3 * HIDDEN * FEED_FORWARD**2),
    "forget curvature-edit": Command("forget curvature-edit MODEL OUT --stream --calibration TEXT", PASS, CURVATURE),
}


def make(folder: Path, blocks: int, seed: int) -> None:
    """Write a folder of random weights, four blocks per file, as transformers reads it."""
    if (folder / "model.safetensors.index.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped: the index is written last
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    numbers = torch.randn(2 * FEED_FORWARD * HIDDEN).mul_(0.02).bfloat16()

    def random(rows: int, columns: int) -> torch.Tensor:
        """Random weights: drawn anew they would take longer than most of the commands."""
        begins = torch.randint(len(numbers) - columns, (rows,)).tolist()
        return torch.stack([numbers[begin : begin + columns] for begin in begins])

    index: dict[str, str] = {}
    total = 0

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        total += sum(tensor.numel() * 2 for tensor in tensors.values())

    for first in range(0, blocks, 4):
        tensors = {}
        for block in range(first, min(first + 4, blocks)):
            prefix = f"model.layers.{block}."
            tensors |= {f"{prefix}{name}.weight": random(*shape) for name, shape in LINEARS.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        write(f"model-{first // 4:05d}.safetensors", tensors)
    ends = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN), "lm_head.weight": random(VOCABULARY, HIDDEN)}
    write("model-ends.safetensors", ends | {"model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "num_hidden_layers": blocks,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    load_tokenizer(folder_of("smollm2")).save_pretrained(folder)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def watched(arguments: list[str]) -> tuple[float, int, str]:
    """Run a command; its seconds, its largest resident memory in bytes, and what it printed last."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *[int(value) * 1024 for value in found]])
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{output}")
    return seconds, peak, output.strip().splitlines()[-1] if output.strip() else ""


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, required=True, help="folder for the models; emptied of what is written")
    options.add_argument("--blocks", type=int, default=32, help="blocks of the model, of Llama's 32")
    options.add_argument("--commands", nargs="*", default=list(COMMANDS), help="which commands to run")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    base, other, out = (chosen.work / f"{name}-{chosen.blocks}" for name in ("base", "other", "out"))
    make(base, chosen.blocks, 0)
    if any("OTHER" in COMMANDS[name].line for name in chosen.commands):
        make(other, chosen.blocks, 1)
    size = sum(file.stat().st_size for file in base.iterdir())
    copied = seconds_of(lambda: (shutil.copytree(base, out), os.sync()))
    shutil.rmtree(out)
    rate = gemm_rate()
    print(f"{size / 1e9:.1f} GB are copied in {copied:.0f} s; float32 products run at {rate / 1e9:.0f} GFLOP/s")
    text = chosen.work / "calibration.txt"
    text.write_text(Path(torch.__file__).read_text(encoding="utf-8")[:20_000])
    rows = {row["command"]: row for row in (json.loads(STORE.read_text())["rows"] if STORE.exists() else [])}
    for name in chosen.commands:
        command = COMMANDS[name]
        words = {"MODEL": base, "OTHER": other, "OUT": out, "TEXT": text}
        arguments = [str(words.get(word, word)) for word in command.line.split()]
        if "TEXT" in command.line:
            arguments += ["--calibration-samples", str(TEXTS), "--calibration-length", str(TOKENS)]
        seconds, peak, last = watched([sys.executable, "-m", "weightsmith", *arguments])
        shutil.rmtree(out, ignore_errors=True)
        limit = command.writes * copied + (command.flops * chosen.blocks + command.once) / rate
        rows[name] = {
            "command": name,
            "blocks": chosen.blocks,
            "weights": BLOCK * chosen.blocks + 2 * VOCABULARY * HIDDEN,
            "seconds": round(seconds, 1),
            "limit": round(limit, 1),
            "peak": peak,
            "copy": round(copied, 1),
            "gemm": round(rate / 1e9, 1),
            "load": round(os.getloadavg()[0], 1),
        }
        print(f"{name}: {seconds:.0f} s, limit {limit:.0f} s, {peak / 1e9:.2f} GB; {last}", flush=True)
        if chosen.store:
            ordered = [rows[name] for name in COMMANDS if name in rows]
            tokens = {"texts": TEXTS, "tokens": TOKENS}
            STORE.write_text(json.dumps({"rows": ordered, **tokens, "machine": machine()}, indent=1) + "\n")
    columns = ("command", "blocks", "s", "limit s", "share", "GB")
    print_table(
        columns,
        [
            (
                row["command"],
                row["blocks"],
                row["seconds"],
                row["limit"],
                row["limit"] / row["seconds"],
                row["peak"] / 1e9,
            )
            for row in rows.values()
        ],
    )


if __name__ == "__main__":
    main()
