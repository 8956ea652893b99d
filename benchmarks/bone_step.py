"""What does a training step cost with Bone, against PEFT's MiSS and LoRA at equal trainable numbers?

Blocks of SmolLM2's size (hidden 576, MLP 1536), forward, backward and AdamW on the adapters. Time, and the bytes that
autograd keeps for the backward pass beside the parameters. Goal: bat not slower than PEFT's bat, miss not slower than
PEFT's miss, and none keeps more than LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from peft import LoraConfig, MissConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaModel

from weightsmith.adapt import BoneConfig

R, RANK = 64, 32  # 331 776 numbers per block with bat and miss, 325 632 with LoRA
CONFIGS = {
    "bat": lambda: BoneConfig(r=R, variant="bat"),
    "PEFT bat": lambda: MissConfig(r=R, init_weights="bat", target_modules="all-linear"),
    "miss": lambda: BoneConfig(r=R, variant="miss"),
    "PEFT miss": lambda: MissConfig(r=R, target_modules="all-linear"),
    "bat-row": lambda: BoneConfig(r=R, variant="bat-row"),
    "PEFT LoRA": lambda: LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"),
}
PAIRS = (
    ("bat", "PEFT bat"),
    ("miss", "PEFT miss"),
    ("bat", "PEFT LoRA"),
    ("miss", "PEFT LoRA"),
    ("bat-row", "PEFT LoRA"),
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--tokens", type=int, default=512, help="tokens per step, in sequences of 256")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1024,
    )
    base = LlamaModel(config).requires_grad_(False)
    x = torch.randn(arguments.tokens // 256, 256, 576, requires_grad=True)
    models = {name: get_peft_model(copy.deepcopy(base), make()) for name, make in CONFIGS.items()}
    steps = {"frozen base": _step(base, x), **{name: _step(model, x) for name, model in models.items()}}
    times = alternate(steps, rounds=arguments.rounds, warmup=2)
    memory = {"frozen base": _memory(base, x), **{name: _memory(model, x) for name, model in models.items()}}
    numbers = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}

    matrices = sum(m.weight.numel() for m in base.modules() if isinstance(m, nn.Linear))
    floor = 4 * arguments.tokens * matrices / gemm_rate()
    print_table(
        ("arm", "ms a step", "over the frozen base", "MB kept", "trainable"),
        [
            (name, 1e3 * time.median, ratio(time, times["frozen base"]), memory[name], numbers.get(name, 0))
            for name, time in times.items()
        ],
    )
    finish(
        "bone_step",
        ratio=ratio(times["PEFT bat"], times["bat"]),
        goal=1.0,
        limit=times["PEFT bat"].median / times["frozen base"].median,
        ours=1e3 * times["bat"].median,
        peer=1e3 * times["PEFT bat"].median,
        unit="ms/step",
        store=arguments.store,
        speed={f"{ours} against {peer}": ratio(times[peer], times[ours]) for ours, peer in PAIRS},
        kept={f"{ours} against {peer}": memory[peer] / memory[ours] for ours, peer in PAIRS},
        milliseconds={name: 1e3 * time.median for name, time in times.items()},
        megabytes_kept=memory,
        gemm_floor_milliseconds=1e3 * floor,
        tokens=arguments.tokens,
        blocks=arguments.blocks,
    )


def _step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5) if trainable else None

    def step() -> None:
        x.grad = None
        model(inputs_embeds=x).last_hidden_state.square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _memory(model: nn.Module, x: torch.Tensor) -> float:
    """Megabytes that a forward pass keeps for the backward pass, beside parameters and input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(inputs_embeds=x).last_hidden_state.square().mean()
    return sum(kept.values()) / 2**20


if __name__ == "__main__":
    main()
