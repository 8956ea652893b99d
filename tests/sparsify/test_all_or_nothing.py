"""Activation sparsity, static sparsity and companders leave a model as it was, wherever they are stopped."""

import pytest
import torch

from weightsmith.sparsify import StaticSparsity, apply_plan, calibrate_wina, plan_report, remove_plan, teal, wina
from weightsmith.testing import InterruptAt, Snapshot, count_operations, differences, evenly, outputs, tiny
from weightsmith.train import compand, fold_companders

STARTS = {
    "apply_plan": lambda model, batch: calibrate_wina(model, [batch]),
    "fold_companders": lambda model, batch: compand(model),
}
CALLS = {
    "calibrate_wina": lambda model, batch, _: calibrate_wina(model, [batch]),
    "wina": lambda model, batch, _: wina(model, [batch]),
    "teal": lambda model, batch, _: teal(model, [batch], allocation="greedy", step=0.5),
    "apply_plan": lambda model, batch, plan: apply_plan(model, plan),
    "StaticSparsity": lambda model, batch, _: StaticSparsity(model, generator=torch.Generator().manual_seed(0)),
    "compand": lambda model, batch, _: compand(model),
    "fold_companders": lambda model, batch, _: fold_companders(model),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("name", CALLS)
def test_stopped_anywhere_the_model_is_as_it_was(name, architecture):
    def fresh():
        model, batch = tiny(architecture)
        model.train()
        return model, batch, STARTS.get(name, lambda *_: None)(model, batch)

    finished = fresh()
    _, total = count_operations(lambda: CALLS[name](*finished))
    for operation in evenly(total, 5):
        model, batch, given = fresh()
        before, hooks = Snapshot(model), [len(p._backward_hooks or ()) for p in model.parameters()]
        with pytest.raises(KeyboardInterrupt), InterruptAt(operation):
            CALLS[name](model, batch, given)
        assert not before.changes(model), f"at {operation} of {total}"
        assert [len(p._backward_hooks or ()) for p in model.parameters()] == hooks
        CALLS[name](model, batch, given)
        assert not differences(model, finished[0])


def test_activation_sparsity_names_the_experts_that_stay_dense():
    model, batch = tiny("mixtral")
    dense = outputs(model, batch)
    result = wina(model, [batch], backend="mask")
    assert {"gate_up_proj", "down_proj", "gate"} <= {
        word for note in result.notes for word in note.replace("'", " ").replace(".", " ").split()
    }
    assert not torch.equal(outputs(model, batch), dense)
    assert len(plan_report(model)["layers"]) == 2 * 4
    remove_plan(model)
    assert torch.equal(outputs(model, batch), dense)


def test_masks_of_stacked_experts_hold_through_training():
    model, batch = tiny("mixtral")
    sparse = StaticSparsity(model, 0.75, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sparse.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    experts = model.model.layers[0].mlp.experts
    assert experts.gate_up_proj_mask.shape == experts.gate_up_proj.shape
    for expert in range(4):
        kept = experts.gate_up_proj[expert].count_nonzero() / experts.gate_up_proj[expert].numel()
        assert kept == 0.25
    sparse.relax(0.5, torch.Generator().manual_seed(1))
    assert experts.down_proj_mask[2].float().mean() == 0.5
    sparse.densify()
    assert not any("mask" in name for name in model.state_dict())
