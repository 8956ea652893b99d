"""How fast are two checkpoints of 2.2 GB each averaged on disk, beside mergekit's linear merge and a plain file copy?

Goals: twice mergekit's speed; 60 % of the speed at which one of the checkpoints is copied, which is the limit of
whatever writes one; less than 1 GB of resident memory. mergekit lives in an environment of its own, whose Python is
given with ``--mergekit``. All arms run in processes that have imported what they need before the clock starts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Timing, alternate, finish, parser, print_table, ratio

from weightsmith.core.io import CheckpointReader, CheckpointWriter, TensorSpec

PEAK = """
def peak():  # of this program alone: what getrusage tells includes the process that started it
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmHWM"))
"""

OURS = """
import sys
from pathlib import Path
from weightsmith.merge._wise_ft import wise_ft
print(flush=True)
for _ in sys.stdin:
    base, tuned, out = map(Path, sys.argv[1:])
    wise_ft([base, tuned], out)
    print(peak(), flush=True)
"""

MERGEKIT = """
import sys
import mergekit, torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
real, sys.stdout = sys.stdout, sys.stderr
print(file=real, flush=True)
for _ in sys.stdin:
    base, tuned, out = sys.argv[1:]
    config = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "models": [{"model": path, "parameters": {"weight": 0.5}} for path in (base, tuned)],
    }
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), out, options)
    print(peak(), file=real, flush=True)
"""


class Worker:
    """A process that merges the two checkpoints each time it is asked, and says how much memory it has had."""

    def __init__(self, python: str, script: str, base: Path, tuned: Path, out: Path) -> None:
        self.out, self.peak = out, 0
        arguments = [python, "-c", PEAK + script, str(base), str(tuned), str(out)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def __call__(self) -> None:
        """Merge once."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.peak = int(self._answer()) * 1024

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self.process.wait()}")
        return line


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--mergekit", help="Python of an environment with mergekit")
    options.add_argument("--folder", help="where the checkpoints are made; the temporary folder by default")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.mergekit, arguments.rounds, arguments.store)


def measure(folder: Path, mergekit: str | None, rounds: int, store: bool) -> None:
    base, tuned = folder / "base", folder / "tuned"
    for seed, path in enumerate((base, tuned)):
        make_llama(path, seed)
    weights, copied = base / "model.safetensors", folder / "copy"
    workers = {"weightsmith": Worker(sys.executable, OURS, base, tuned, folder / "ours")}
    if mergekit:
        workers["mergekit"] = Worker(mergekit, MERGEKIT, base, tuned, folder / "theirs")

    def copy() -> None:
        shutil.copyfile(weights, copied)
        with open(copied, "rb+") as file:
            os.fsync(file.fileno())

    arms: dict[str, Callable[[], None]] = {**workers, "copy of one": copy}
    outputs = {name: worker.out for name, worker in workers.items()} | {"copy of one": copied}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else reversed(list(arms)):
            delete(outputs[name])
            os.sync()  # what the arm before left to be written is none of this one's business
            seconds[name] += alternate({name: arms[name]}, rounds=1, warmup=0)[name].seconds
    if mergekit:
        check_equal(outputs["weightsmith"], outputs["mergekit"])
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    size = weights.stat().st_size
    rows = [
        (name, timing.median, size / timing.median / 1e9, workers[name].peak / 1e6 if name in workers else "")
        for name, timing in timings.items()
    ]
    print_table(("arm", "seconds", "GB written/s", "peak MB"), rows)
    ours = timings["weightsmith"]
    finish(
        "merge_folders",
        ratio=ratio(timings["mergekit"], ours) if mergekit else ratio(timings["copy of one"], ours),
        goal=2.0 if mergekit else 0.6,
        limit=ratio(timings["mergekit"], timings["copy of one"]) if mergekit else 1.0,
        ours=ours.median,
        peer=timings["mergekit" if mergekit else "copy of one"].median,
        unit="s",
        store=store,
        share_of_copy_speed=ratio(timings["copy of one"], ours),
        share_of_copy_speed_goal=0.6,
        peak_memory_ours=workers["weightsmith"].peak,
        peak_memory_goal=1_000_000_000,
        peak_memory_mergekit=workers["mergekit"].peak if mergekit else None,
        checkpoint_bytes=size,
    )


def delete(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_llama(path: Path, seed: int) -> None:
    """Write a Llama of 1.1 billion random weights in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    width, inner, vocabulary = 2048, 5632, 32000
    shapes = {"model.embed_tokens": (vocabulary, width), "model.norm": (width,), "lm_head": (vocabulary, width)}
    for block in range(22):
        at = f"model.layers.{block}."
        shapes |= {f"{at}self_attn.{name}_proj": (width, width) for name in "qo"}
        shapes |= {f"{at}self_attn.{name}_proj": (width // 8, width) for name in "kv"}
        shapes |= {f"{at}mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj": (width, inner)}
        shapes |= {f"{at}{name}_layernorm": (width,) for name in ("input", "post_attention")}
    specs = {f"{name}.weight": TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}
    with CheckpointWriter(path, specs) as writer:
        for name, spec in specs.items():
            writer.write(name, torch.randn(spec.shape, generator=generator).mul_(0.02).to(spec.dtype))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))


def check_equal(ours: Path, theirs: Path) -> None:
    """Both arms must have done the same work: the same numbers, up to the last bit of bfloat16."""
    first, second = CheckpointReader(ours), CheckpointReader(theirs)
    assert set(first) == set(second)
    for name in list(first)[:: max(1, len(first) // 8)]:
        torch.testing.assert_close(first.tensor(name), second.tensor(name), rtol=2**-7, atol=1e-5)


if __name__ == "__main__":
    main()
