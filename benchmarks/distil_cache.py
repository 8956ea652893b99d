"""What does a teacher cost in every step of distillation, and what its stored logits?

A vision transformer of twelve blocks and width 192 teaches one of eight positions in four stages; images of 32 x 32 in
patches of 8, batches of 32. The peer runs the teacher in each step. The limit is the student's own step, on labels. The
time to store the logits, once, is told as the steps after which it is earned back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import Timing, alternate, finish, parser, print_table, ratio
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from weightsmith.core.training import fit
from weightsmith.grow import decaying_adamw, distil, share_stages, teacher_logits

SAMPLES, BATCH = 320, 32
STEPS = SAMPLES // BATCH


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    teacher, student = _vit(12), _vit(8)
    share_stages(student, (2, 2, 2, 2))
    images, labels = torch.rand(SAMPLES, 3, 32, 32), torch.randint(100, (SAMPLES,))
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    settings: dict[str, Any] = {"batch_size": BATCH, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        logits = teacher_logits(teacher, data, Path(folder) / "logits.safetensors")

        def on_labels() -> None:
            fit(student, data, optimizer=decaying_adamw(student, 5e-4, 0.05), **settings)

        timings = alternate(
            {
                "stored logits": lambda: distil(student, logits, data, **settings),
                "live teacher": lambda: distil(student, teacher, data, **settings),
                "student on labels": on_labels,
                "storing": lambda: teacher_logits(teacher, data, batch_size=BATCH),
            },
            rounds=options.rounds,
        )
    steps = {name: Timing(tuple(second / STEPS for second in timing.seconds)) for name, timing in timings.items()}
    print_table(("arm", "ms a step"), [(name, 1e3 * timing.median) for name, timing in steps.items()])
    saved = steps["live teacher"].median - steps["stored logits"].median
    finish(
        "distil_cache",
        ratio=ratio(steps["live teacher"], steps["stored logits"]),
        goal=None,
        limit=ratio(steps["live teacher"], steps["student on labels"]),
        ours=1e3 * steps["stored logits"].median,
        peer=1e3 * steps["live teacher"].median,
        unit="ms/step",
        store=options.store,
        epochs_to_earn_back=timings["storing"].median / (saved * STEPS),
        bytes_a_sample=logits.nbytes / SAMPLES,
    )


def _vit(depth: int) -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    return ViTForImageClassification(ViTConfig(num_hidden_layers=depth, num_labels=100, **sizes)).eval()


if __name__ == "__main__":
    main()
