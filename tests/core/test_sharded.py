"""A model under FSDP2 in two processes trains as the whole one in one process, or is refused by name."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import nn

from processes import two_processes
from weightsmith.adapt import BoneConfig, LIFTAdamW, lift, lift_groups
from weightsmith.continual import CLASSP, EWC, L2SP
from weightsmith.core.errors import UnsupportedModelError
from weightsmith.core.models import find_layers
from weightsmith.core.sharding import read_places, refuse_without_fsdp, whole, write_places
from weightsmith.core.training import fit
from weightsmith.forget import attribute_weights, masked_updates
from weightsmith.quantize import ConfidenceGuidedAnnealing, Oscillations, initialize_activations, prepare_qat
from weightsmith.quantize._ofq.annealing import fake_quantized
from weightsmith.sparsify import StaticSparsity, magnitude, wanda
from weightsmith.testing import samples, tiny
from weightsmith.train import LossReweighter, MetaRescaler, PLDLoss, compand, distillation, reweighted


def bone(model):
    return {"optimizer": torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)}


def lift_optimizer(model):
    return {"optimizer": LIFTAdamW(lift_groups(model, 0.1, 4), lr=1e-3, update_interval=2)}


def classp_optimizer(model):
    return {"optimizer": CLASSP(model.parameters(), lr=1e-2, threshold="q0.5")}


def with_sgd(model, **options):
    return {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **options}


def weighted(model):
    return with_sgd(model, loss=reweighted(LossReweighter("linear")))


def distilled(model):
    teacher = tiny("llama")[0]
    with torch.no_grad():
        teacher.lm_head.weight.mul_(3)
    return with_sgd(model, loss=distillation(teacher, PLDLoss(2.0)))


def penalized(kind, model):
    penalty = kind(5.0)
    penalty.consolidate(model, [tiny("llama")[1]]) if kind is EWC else penalty.consolidate(model)
    return lambda model: with_sgd(model, loss=penalty.added_to())


def sparse(model):
    held = StaticSparsity(model, 0.5, generator=torch.Generator().manual_seed(0))

    def door(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        held.attach(optimizer)
        return {"optimizer": optimizer, "held": held}

    return door


def quantized(model):
    prepare_qat(model, weight_bits=4, activation_bits=4)
    initialize_activations(model, [tiny("llama")[1]])
    return with_sgd


def wagle(model):
    rows = samples("llama", 16)
    if torch.distributed.is_initialized():
        rows = rows[torch.distributed.get_rank() :: 2]
    mask = attribute_weights(model, rows[: len(rows) // 2], rows[len(rows) // 2 :], batch_size=2).top(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return {"optimizer": optimizer, "mask": mask}


BEFORE = {
    "L2SP": partial(penalized, L2SP),
    "EWC": partial(penalized, EWC),
    "spdf": sparse,
    "ofq": quantized,
}
"""What is done to the whole model; it returns what is done to the sharded one."""

METHODS = {
    **BEFORE,
    "bone": bone,
    "lift": lift_optimizer,
    "classp": classp_optimizer,
    "loss_reweighting": weighted,
    "pld": distilled,
    "wagle": wagle,
    "weight_compander": with_sgd,
}


def trained(name, processes, state=None):
    """The weights, and the optimizer's state, after two epochs of batches of eight samples in all."""
    model, _ = tiny("llama")
    if name == "bone":
        torch.manual_seed(0)
        model = get_peft_model(model, BoneConfig(r=8))
    if name == "weight_compander":
        compand(model)
    door = BEFORE[name](model) if name in BEFORE else METHODS[name]
    if processes > 1:
        from torch.distributed.fsdp import fully_shard

        base = model.model if name != "bone" else model.base_model.model.model
        for layer in base.layers:
            fully_shard(layer)
        fully_shard(model)
    given = door(model)
    mask, held = given.pop("mask", None), given.pop("held", None)
    options = {"batch_size": 8 // processes, "epochs": 2, "seed": 1, "clip_norm": 0.5, **given}
    if mask is None:
        run = fit(model, samples("llama", 16), **options)
    else:
        with masked_updates(model, options["optimizer"], mask):
            run = fit(model, samples("llama", 16), **options)
    if held is not None:
        held.densify()
        assert all(
            0.49 < float((whole(layer.weight) == 0).float().mean()) < 0.51 for layer in find_layers(model, "*proj")
        )
    return model, options["optimizer"], {"training loss": torch.tensor(run.losses), **gathered(model)}


def gathered(model):
    return {key: whole(value).detach() for key, value in model.state_dict().items()}


def round_trip(name, model, optimizer):
    """State dicts of model and optimizer by torch's own tools, whole and back, into training that goes on the same."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    full = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(model, options=full)
    for key, value in gathered(model).items():
        if torch.distributed.get_rank() == 0:
            assert torch.equal(state[key], value), (name, key)
    held = copy.deepcopy(optimizer.state_dict())
    before = gathered(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    set_model_state_dict(model, {k: v.clone() for k, v in before.items()}, options=full)
    optimizer.load_state_dict(held)
    for key, value in gathered(model).items():
        assert torch.equal(value, before[key]), (name, key)


def refusals(mesh):
    from torch.distributed.fsdp import fully_shard

    def sharded(architecture="llama"):
        model, _ = tiny(architecture)
        return fully_shard(model, mesh=mesh)

    llama, batch = sharded(), [tiny("llama")[1]]
    with pytest.raises(UnsupportedModelError, match="split between processes: found DTensor, expected whole weights"):
        magnitude(llama)
    llama(**batch[0])  # leaves the root's weights gathered
    with pytest.raises(UnsupportedModelError, match="split between processes"):
        wanda(llama, batch)
    with pytest.raises(UnsupportedModelError, match="Train it by fit"):
        lift(llama, samples("llama"))
    with pytest.raises(UnsupportedModelError, match=r"Add adapters before fully_shard\(model\)"):
        get_peft_model(llama, BoneConfig(r=8))
    with pytest.raises(UnsupportedModelError, match="DistributedDataParallel"):
        MetaRescaler(samples("bert"), 2)(sharded("bert"), {"input_ids": torch.ones(2, 3).long()})
    with pytest.raises(UnsupportedModelError, match="the penalty works on sharded models"):
        EWC(1.0).consolidate(llama, batch)
    penalty = L2SP(1.0)
    penalty.consolidate(llama)  # each process holds its own part
    assert float(penalty(llama)) == 0.0
    with torch.no_grad():
        next(llama.parameters()).add_(0.5)
    assert float(penalty(llama)) == pytest.approx(0.25 * next(llama.parameters()).numel())
    assert float(penalty(tiny("llama")[0])) == pytest.approx(0.0)
    half = fully_shard(nn.Linear(2, 2), mesh=mesh)
    with pytest.raises(UnsupportedModelError, match="'1.weight' are not sharded while others are"):
        fit(nn.Sequential(half, nn.Linear(2, 2)), [(torch.ones(2), 0)])


def places(mesh):
    """Reading and writing of single places, for every way to split a matrix."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    values, index = torch.arange(35.0).view(5, 7), torch.tensor([0, 3, 8, 20, 34])
    for placement in (Shard(0), Shard(1), Replicate()):
        split = distribute_tensor(values, mesh, [placement])
        assert torch.equal(read_places(split, index), values.view(-1)[index]), placement
        write_places(split, index, -torch.arange(1.0, 6.0))
        expected = values.clone()
        expected.view(-1)[index] = -torch.arange(1.0, 6.0)
        assert torch.equal(split.full_tensor(), expected), placement
    model = nn.Linear(7, 5)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(UnsupportedModelError, match="Tensor parallelism alone is not supported"):
        refuse_without_fsdp(model)


def counts(mesh):
    """What annealing and oscillations count is of the whole weights."""
    from torch.distributed.fsdp import fully_shard

    found = []
    for split in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
        prepare_qat(model, weight_bits=2, activation_bits=8, exclude=())
        initialize_activations(model, [torch.randn(4, 16)])
        if split:
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        share = ConfidenceGuidedAnnealing(model, optimizer, 0.1).share()
        counter = Oscillations(model)
        for sign in (1, -1, 1):
            with torch.no_grad():
                for _, latent, _ in fake_quantized(model):
                    latent.copy_(latent.abs() * sign)
            counter.update()
        found.append((share, counter.events, counter.mean()))
    assert found[0] == found[1]
    assert 0 < found[0][0] < 1
    assert min(found[0][1].values()) > 0


def in_a_group(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for name in METHODS:
        model, optimizer, found = trained(name, 2)
        torch.save(found, f"{folder}/{name}-{rank}.pt")
        round_trip(name, model, optimizer)
    places(mesh)
    counts(mesh)
    refusals(mesh)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("processes")
    two_processes("import sys, core.test_sharded as tests; tests.in_a_group(sys.argv[1])", made, made)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_a_sharded_model_trains_as_a_whole_one(name, folder):
    _, _, one = trained(name, 1)
    found = [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]
    start = tiny("llama")[0].state_dict()
    moved = max([float((one[key] - value).abs().max()) for key, value in start.items() if key in one], default=1e-3)
    assert found[0].keys() == one.keys()
    for key, value in one.items():
        assert torch.equal(found[0][key], found[1][key]), key
        # Adam magnifies the rounding of the smallest gradients
        far = ~torch.isclose(found[0][key], value, rtol=1e-3, atol=1e-2 * moved)
        assert far.float().mean() <= 0.005, (key, far.float().mean(), moved)
