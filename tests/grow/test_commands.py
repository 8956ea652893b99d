"""The commands from the shell, and grown models in other people's training loops."""

import json

import pytest
import torch
import transformers
from typer.testing import CliRunner

from models import tiny, write_tiny_llama
from processes import apart, two_processes
from weightsmith.cli.adaptor import make_command
from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.io import load_model, offloaded
from weightsmith.core.models import find_stack
from weightsmith.grow import (
    Learngene,
    LinearExpansion,
    MixtureGrowth,
    expand,
    learngene,
    mixture_growth,
    parameter_groups,
    share_stages,
)
from weightsmith.signature import read


def invoke(function, *arguments):
    done = CliRunner().invoke(make_command(function.__name__, read(function)), [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_expand_from_the_shell(tmp_path):
    folder = write_tiny_llama(tmp_path, rows=20, tokens=12)
    output = invoke(expand, folder / "tiny", folder / "out", "--depth", 5, "--assignment", 0, *["--assignment", 1] * 4)
    assert "5" in output
    model = load_model(folder / "out")
    assert len(find_stack(model)) == 5
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_on_disk_is_refused(tmp_path):
    folder = write_tiny_llama(tmp_path, rows=2, tokens=12)
    with (
        pytest.raises(UnsupportedModelError, match="without --stream"),
        offloaded(folder / "tiny", folder / "out") as model,
    ):
        expand(model, depth=5)
    assert not (folder / "out").exists()


def test_learngene_and_then_expand_from_the_shell(tmp_path):
    folder = write_tiny_llama(tmp_path, rows=20, tokens=12)
    data = ["--training", folder / "inputs.safetensors", "--training-samples", 20]
    gene = [folder / "tiny", folder / "gene", "--teacher", folder / "tiny", "--stages", 1, *data]
    assert "agreement" in invoke(learngene, *gene)
    assert len(find_stack(load_model(folder / "gene"))) == 1
    invoke(expand, folder / "gene", folder / "out", "--depth", 4)
    blocks = find_stack(load_model(folder / "out")).blocks
    assert torch.equal(blocks[0].mlp.up_proj.weight, blocks[3].mlp.up_proj.weight)


def test_mixture_growth_from_the_shell(tmp_path):
    folder = write_tiny_llama(tmp_path, rows=8, tokens=12)
    data = ["--training", folder / "inputs.safetensors", "--training-samples", 8]
    invoke(mixture_growth, folder / "tiny", folder / "out", *data, "--init", "zero")
    assert load_model(folder / "out").config.intermediate_size == 64


@pytest.mark.parametrize("kind", ["shared", "line", "mixed"])
def test_it_trains_in_the_trainer_with_accumulation(kind, tmp_path):
    model, batch = tiny("llama", layers=4)
    optimizers = (None, None)
    if kind == "shared":
        plan = share_stages(model, (2, 2))
    elif kind == "line":
        line = LinearExpansion(model)
    else:

        def make(width):
            return type(model)(transformers.LlamaConfig(**(model.config.to_dict() | {"intermediate_size": width})))

        growth = MixtureGrowth.from_plain(make, model, width=64)
        model = growth.grow()
        optimizers = (torch.optim.AdamW(parameter_groups(model), lr=1e-3), None)
    rows = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, learning_rate=1e-2, bf16=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=optimizers)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    if kind == "shared":
        blocks = find_stack(model).blocks
        assert blocks[0].mlp.up_proj.weight is blocks[1].mlp.up_proj.weight
        assert len(find_stack(Learngene(model, plan).expand(3))) == 3
    elif kind == "line":
        assert len(find_stack(line.expand(3))) == 3
    else:
        assert not any("parametrizations" in name for name in MixtureGrowth.export(model).state_dict())


WORKER = """
    import json, os, torch
    from torch import nn
    from torch.utils.data import TensorDataset
    from weightsmith.grow._distil import distil
    from weightsmith.grow._learngene import share_stages

    torch.manual_seed(0)
    teacher, model = nn.Linear(5, 5), nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)])
    share_stages(model, (2, 2), stack="")
    data = TensorDataset(torch.randn(64, 5), torch.zeros(64).long())
    batch = 16 // int(os.environ.get("WORLD_SIZE", 1))
    losses = distil(model, teacher, data, epochs=2, learning_rate=0.01, batch_size=batch, seed=1).losses
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps([losses, model[0].weight is model[1].weight]))
"""


@pytest.mark.slow
def test_shared_stages_train_in_two_processes_as_in_one(tmp_path):
    together, shared = json.loads(two_processes(WORKER, tmp_path).splitlines()[-1])
    losses, _ = json.loads(apart(WORKER, tmp_path).splitlines()[-1])
    assert shared
    assert together == pytest.approx(losses, rel=1e-4)
