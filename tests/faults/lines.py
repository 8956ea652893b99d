"""The command line of every command of the catalog that writes, on tiny inputs; a new command gets one by itself."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from models import write_tiny_llama
from weightsmith import catalog
from weightsmith.cli.main import main
from weightsmith.core.io import load_model
from weightsmith.signature import read

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
WRITING = [name for name, signature in SIGNATURES.items() if not signature.measures and name not in ("sweep",)]
"""All commands but the measures; a sweep writes nothing but its report."""

SMALL = {
    "bone": ["--r", "4"],
    "classwise": ["--class-name", "1", "--fraction", "0.1"],
    "d2nwg": ["--include", "weight", "--count", "2", "--latent", "2", "--vae-steps", "20", "--steps", "2"],
    "d2nwg-layers": [
        "--include",
        "*q_proj",
        "--chunk",
        "16",
        "--latent",
        "4",
        "--vae-steps",
        "20",
        "--steps",
        "2",
        "--candidates",
        "1",
    ],
    "expand": ["--depth", "3"],
    "know": ["--predictor", "paper", "--steps", "1"],
    "learngene": ["--stages", "1"],
    "synapse": ["--learning-rate", "0.001", "--epochs", "1"],
    "topk-sae": ["--site", "1.resid@end", "--features", "8", "--k", "2", "--epochs", "1"],
    "weight-aligning": ["--num-old", "1"],
}
"""Hyper-parameters that the tiny inputs need in place of defaults."""

INPUTS = {
    "d2nwg": ["zoo"],
    "fisher": ["classifier"] * 2,
    "know": ["tiny"] * 5,
    "scale-adapter": ["adapter"],
    "topk-sae": ["tiny"],
}
"""Files that commands on files read; two models are the default."""


MODELS = dict.fromkeys(("classwise", "meta-rescaling", "weight-aligning"), "classifier")
"""Commands on classifiers, with labeled data."""

ON_REGRESSIONS = ("blindspot", "gaussian")
"""Commands on regressions, with other data for each of their sets."""


def write_inputs(folder: Path) -> Path:
    """Write a model, another one tuned from it, its adapter, a zoo, and data."""
    write_tiny_llama(folder, 16, 12)
    model = load_model(folder / "tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(folder / "tuned")
    get_peft_model(load_model(folder / "tiny"), LoraConfig(r=2)).save_pretrained(folder / "adapter")
    (folder / "zoo").mkdir()
    for number in range(8):
        save_file(torch.nn.Linear(3, 2).state_dict(), folder / "zoo" / f"{number}.safetensors")
    generator = torch.Generator().manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**small, vocab_size=16)).save_pretrained(folder / "classifier")
    ids = torch.randint(16, (16, 4), generator=generator)
    save_file({"input_ids": ids, "labels": torch.arange(16) % 2}, folder / "labeled.safetensors")
    BertForSequenceClassification(BertConfig(**small, vocab_size=16, num_labels=1)).save_pretrained(
        folder / "regression"
    )
    for number in range(3):
        labels = torch.rand(8, generator=generator)
        save_file({"input_ids": ids[:8], "labels": labels}, folder / f"numbers-{number}.safetensors")
    return folder


def line(name: str, folder: Path, out: Path) -> list[str]:
    """The arguments of a command."""
    signature = SIGNATURES[name]
    words = [catalog.find(name).commands[name].verb, name]
    if signature.model is None:
        words += [str(folder / each) for each in INPUTS.get(name, ["tiny", "tuned"])]
    else:
        words.append(str(folder / ("regression" if name in ON_REGRESSIONS else MODELS.get(name, "tiny"))))
    words.append(str(out))
    for place, role in enumerate(signature.data):
        file = "labeled.safetensors" if name in (*MODELS, "fisher") else "inputs.safetensors"
        file = f"numbers-{place}.safetensors" if name in ON_REGRESSIONS else file
        words += [f"--{role.name.replace('_', '-')}", str(folder / file)]
    for role in signature.networks:
        words += [
            f"--{role.name.replace('_', '-')}",
            str(folder / ("regression" if name in ON_REGRESSIONS else "tuned")),
        ]
    return words + [word.format(folder=folder) for word in SMALL.get(name, [])]


def run(words: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, printed.getvalue()


def write_recipe(folder: Path, out: Path, path: Path, *, arms: int) -> Path:
    """Write a recipe of two steps, and of up to two alternatives after them."""
    recipe = {"model": str(folder / "tiny"), "out": str(out)}
    recipe["steps"] = [{"magnitude": {"sparsity": 0.25}}, {"magnitude": {"sparsity": 0.5}}]
    recipe["compare"] = {name: [{"magnitude": {"sparsity": 0.6}}] for name in "ab"[:arms]}
    path.write_text(json.dumps(recipe))
    return path
