"""Every method that trains, inside ``transformers.Trainer`` with accumulated batches, by its own door.

What a method does there beyond this (resuming, equality with ``fit``, in several processes) is tested with the method.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from weightsmith.adapt import BoneConfig, LIFTAdamW, lift_groups
from weightsmith.analyze import condition_report
from weightsmith.continual import (
    CLASSP,
    EWC,
    L2SP,
    BottleneckClassifier,
    class_incremental_loss,
    clip_weights_hook,
    grow_head,
)
from weightsmith.core.errors import CheckpointError
from weightsmith.forget import EmbeddingForgettingCallback, masked_updates
from weightsmith.quantize import AnnealingCallback, finish_qat, initialize_activations, prepare_qat
from weightsmith.sparsify import StaticSparsity
from weightsmith.testing import samples, tiny
from weightsmith.train import (
    DistillationLoss,
    LossCheckpoint,
    LossReweighter,
    MetaRescaler,
    MetaRescalingLoss,
    PLDLoss,
    compand,
    compander_parameter_groups,
    fold_companders,
)


def with_index(rows):
    return [row | {"index": torch.tensor(n)} for n, row in enumerate(rows)]


def optimizer(make):
    def door(model, rows):
        return {"optimizers": (make(model), None)}, lambda: None

    return door


def bone(model, rows):
    return {"model": get_peft_model(model, BoneConfig(r=8))}, lambda: None


def kappatune(model, rows):
    targets = condition_report(model, score="kappa").targets(top_p=0.2)
    before = copy.deepcopy(model.state_dict())
    adapted = get_peft_model(model, LoraConfig(r=4, **targets))

    def check():
        plain = adapted.merge_and_unload()
        moved = {name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {f"{name}.weight" for name in targets["target_modules"]}

    return {"model": adapted}, check


def sparse(model, rows):
    held = StaticSparsity(model, 0.75, generator=torch.Generator().manual_seed(0))
    held.attach(adam := torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))

    def check():
        assert all(float((layer.weight == 0).float().mean()) >= 0.74 for layer in held.layers)

    return {"optimizers": (adam, None)}, check


def masked(model, rows):
    mask = {
        n: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for n, p in model.named_parameters()
    }
    before = copy.deepcopy(model.state_dict())
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    manager = masked_updates(model, adam, mask)
    manager.__enter__()

    def check():
        manager.__exit__(None, None, None)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter[~mask[name]], before[name][~mask[name]])
            assert not torch.equal(parameter, before[name])

    return {"optimizers": (adam, None)}, check


def companded(model, rows):
    compand(model, learn=True)
    sgd = torch.optim.SGD(compander_parameter_groups(model, lr=0.05), momentum=0.9)

    def check():
        fold_companders(model)
        assert not any("parametrizations" in name for name in model.state_dict())

    return {"optimizers": (sgd, None)}, check


def quantized(weights, model, rows):
    prepare_qat(model, weights=weights)
    initialize_activations(model, [{name: torch.stack([row[name] for row in rows]) for name in rows[0]}])
    callbacks = [AnnealingCallback(from_step=2)] if weights == "statsq" else []
    return {"callbacks": callbacks}, lambda: finish_qat(model)


def distilled(criterion, model, rows):
    teacher, _ = tiny("bert")
    nn.init.normal_(teacher.classifier.weight)
    return {"compute_loss_func": DistillationLoss(model, criterion, teacher)}, lambda: None


def class_incremental(model, rows):
    old = copy.deepcopy(model)
    grow_head(model.classifier, 4)
    model.config.num_labels = model.num_labels = 4
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    clip_weights_hook(adam, model.classifier)
    loss = DistillationLoss(model, class_incremental_loss, old)

    def check():
        assert model.classifier.weight.min() >= 0

    return {"compute_loss_func": loss, "optimizers": (adam, None)}, check


def rescaled(model, rows):
    rescaler = MetaRescaler(with_index(rows), 2, passes=1)
    loss = MetaRescalingLoss(model, rescaler)

    def check():
        assert rescaler.scores.isfinite().all()
        loss.remove()
        assert not model._forward_pre_hooks

    return {"compute_loss_func": loss, "train_dataset": with_index(rows)}, check


def reweighted(model, rows):
    reweighter = LossReweighter()

    def check():
        assert int(reweighter.step) == 8

    return {"compute_loss_func": reweighter.compute_loss_func}, check


def penalized(penalty, model, rows):
    batches = [{name: torch.stack([row[name] for row in rows]) for name in rows[0]}]
    penalty.consolidate(model, batches) if isinstance(penalty, EWC) else penalty.consolidate(model)
    return {"compute_loss_func": penalty.compute_loss_func(model)}, lambda: None


def bottleneck(model, rows):
    """It is a module: the loss is the user's own, as for any that returns logits."""
    classifier = BottleneckClassifier(model.bert, 2, codebooks=8, pairs=8, key_dim=2)
    classifier.init_keys([{name: torch.stack([row[name] for row in rows]) for name in rows[0]}])

    def loss(logits, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    sgd = torch.optim.SGD(classifier.parameters(), lr=1.0)
    return {"model": classifier, "compute_loss_func": loss, "optimizers": (sgd, None)}, lambda: None


DOORS = {
    "bone": ("llama", bone),
    "kappatune": ("llama", kappatune),
    "lift": ("llama", optimizer(lambda model: LIFTAdamW(lift_groups(model, 0.1, 4), lr=1e-2, update_interval=2))),
    "classp": ("llama", optimizer(lambda model: CLASSP(model.parameters(), lr=1e-2))),
    "spdf": ("llama", sparse),
    "wagle": ("llama", masked),
    "weight_compander": ("bert", companded),
    "ofq": ("bert", partial(quantized, "statsq")),
    "lsq": ("bert", partial(quantized, "lsq")),
    "pld": ("bert", partial(distilled, PLDLoss(2.0))),
    "weight_aligning": ("bert", class_incremental),
    "meta_rescaling": ("bert", rescaled),
    "loss_reweighting": ("llama", reweighted),
    "EWC": ("llama", partial(penalized, EWC(1.0))),
    "L2SP": ("bert", partial(penalized, L2SP(1.0))),
    "dkvb": ("bert", bottleneck),
    "active_forgetting": (
        "llama",
        lambda model, rows: ({"callbacks": [EmbeddingForgettingCallback(every=3, std=0.1)]}, lambda: None),
    ),
}


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize("name", ["loss_reweighting", "meta_rescaling"])
def test_a_resumed_run_goes_on_with_what_the_loss_has_learned(name, tmp_path):
    def trained(folder, *callbacks, kept=True, **resume):
        architecture = DOORS[name][0]
        model, rows = tiny(architecture)[0], samples(architecture, 16)
        if name == "loss_reweighting":
            loss = LossReweighter(window=4, warmup_steps=2)
            door = loss.compute_loss_func
        else:
            loss = MetaRescaler(rows, 2, passes=1)
            door = MetaRescalingLoss(model, loss)
        arguments = TrainingArguments(
            folder, max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=2, save_total_limit=1,
            report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
        )  # fmt: skip
        own = [LossCheckpoint(loss)] if kept else []
        trainer = Trainer(model, arguments, train_dataset=rows, compute_loss_func=door, callbacks=[*own, *callbacks])
        trainer.train(**resume)
        return model.state_dict(), loss.state_dict()

    whole, learned = trained(tmp_path / "whole")
    trained(tmp_path / "parts", Stop())
    resumed, also_learned = trained(tmp_path / "parts", resume_from_checkpoint=True)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert str(learned) == str(also_learned)
    trained(tmp_path / "none", Stop(), kept=False)
    with pytest.raises(CheckpointError, match="the state of the loss in .*checkpoint-2"):
        trained(tmp_path / "none", resume_from_checkpoint=True)


@pytest.mark.parametrize("name", DOORS)
def test_a_method_trains_in_the_trainer(name, tmp_path):
    architecture, door = DOORS[name]
    model, rows = tiny(architecture)[0], samples(architecture, 16)
    given, check = door(model, rows)
    given = {"model": model, "train_dataset": rows, **given}
    before = {key: value.clone() for key, value in given["model"].state_dict().items()}
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, seed=0,
        disable_tqdm=True, remove_unused_columns=name not in ("meta_rescaling", "dkvb"),
    )  # fmt: skip
    trainer = Trainer(args=arguments, **given)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)
    after = given["model"].state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items() if key in before)
    check()
