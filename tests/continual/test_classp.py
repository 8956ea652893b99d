"""CLASSP: the numbered checks of its specification, bad input, and the places it is used in."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from models import tiny
from processes import two_processes
from weightsmith.continual import CLASSP, classp
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.training import fit

SEQUENCE = [[1.0, 0.3], [-2.0, 0.6], [0.5, -0.1]]
SHAPES = ((300, 257), (513,), (3, 5, 7, 2), ())


def steps(gradients, dtype=torch.float64, **options):
    """Weight and accumulator after steps from zero with given gradients."""
    weight = nn.Parameter(torch.zeros(torch.as_tensor(gradients[0]).shape, dtype=dtype))
    optimizer = CLASSP([weight], **options)
    for gradient in gradients:
        weight.grad = torch.as_tensor(gradient, dtype=dtype)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]["sum"]


def random_gradients(count, size=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=dtype) for _ in range(count)]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def backward(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize(
    ("power", "threshold", "weight", "total"),
    [
        (1, 0, (-0.0476190476, -0.1566666667), (3.5, 1.0)),
        (1, 0.2, (-0.0476190476, -0.1), (3.5, 0.6)),
        (1, 1.5, (0.1, 0), (2, 0)),
        (2, 0, (-0.0323790699, -0.1746985235), (5.25, 0.46)),
        (2, 0.2, (-0.0323790699, -0.1), (5.25, 0.36)),
    ],
)
def test_check_1_hand_sequence(power, threshold, weight, total):
    w, a = steps(SEQUENCE, lr=0.1, eps=1e-12, power=power, threshold=threshold)
    assert w.tolist() == pytest.approx(weight, abs=1e-9)
    assert a.tolist() == pytest.approx(total, abs=1e-12)


def test_check_2_power_2_is_adagrad():
    gradients = random_gradients(30)
    weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    adagrad = torch.optim.Adagrad([weight], lr=0.1, eps=0)
    for gradient in gradients:
        weight.grad = gradient
        adagrad.step()
    ours, total = steps(gradients, lr=0.1, power=2, eps=0)
    assert (ours - weight).abs().max() < 1e-12
    assert torch.allclose(total, adagrad.state[weight]["sum"], rtol=1e-14)


@pytest.mark.parametrize(("power", "length"), [(1, 2.9289682540), (2, 5.0209978993)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 250.0])
def test_check_3_constant_gradient(power, length, size):
    w, _ = steps([[size, -size]] * 10, lr=0.2, power=power, eps=0)
    assert w.tolist() == pytest.approx([-0.2 * length, 0.2 * length], rel=1e-9)


@pytest.mark.parametrize("power", [1, 1.5, 2, 3])
def test_check_3_trajectory_does_not_depend_on_the_scale_of_the_loss(power):
    gradients = random_gradients(20)
    w, _ = steps(gradients, power=power, eps=0)
    scaled, _ = steps([1024 * gradient for gradient in gradients], power=power, eps=0)
    assert torch.allclose(w, scaled, rtol=1e-12)


@pytest.mark.parametrize("power", [0.5, 1, 1.7, 2, 4])
def test_check_4_first_step_is_the_sign(power):
    (gradient,) = random_gradients(1)
    w, _ = steps([gradient], lr=0.1, power=power, eps=0)
    assert torch.allclose(w, -0.1 * gradient.sign(), rtol=1e-14)


def test_check_5_path_length():
    gradients = random_gradients(200)
    path, last = torch.zeros(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    weight = nn.Parameter(last.clone())
    optimizer = CLASSP([weight], lr=0.1)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
        path += (weight.detach() - last).abs()
        last = weight.detach().clone()
    total = torch.stack(gradients).abs().sum(0)
    assert (path <= 0.1 * (1 + (total / gradients[0].abs()).log())).all()


def test_check_6_nothing_moves_at_or_below_the_threshold():
    gradients = random_gradients(5, dtype=torch.float32)
    w, a = steps(gradients, torch.float32, threshold=math.inf)
    assert torch.equal(w, torch.zeros(50))
    assert torch.equal(a, torch.zeros(50))
    w, a = steps([[0.0, 1.0, 0.5]] * 3, threshold=0.25)
    assert (w != 0).tolist() == (a != 0).tolist() == [False, True, False]
    for eps in (1e-5, 0.0, 1e-60):
        for power in (1, 2, 1.5):
            w, a = steps([[0.0, 1.0]] * 3, torch.float32, eps=eps, power=power)
            assert w[0] == a[0] == 0
            assert w.isfinite().all()


def test_check_7_without_scale_it_is_sgd():
    gradients = random_gradients(10)
    weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=0.1)
    for gradient in gradients:
        weight.grad = gradient
        sgd.step()
    w, a = steps(gradients, lr=0.1, scale=False, power=3)
    assert torch.equal(w, weight.detach())
    assert torch.allclose(a, torch.stack(gradients).abs().pow(3).sum(0))


def test_check_8_groups_have_their_own_options():
    first, second, third = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3))
    groups = [{"params": [first], "lr": 1.0}, {"params": [second], "lr": 1e-3}, {"params": [third], "threshold": 2.0}]
    optimizer = CLASSP(groups, eps=0)
    for parameter in (first, second, third):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [parameter.item() for parameter in (first, second, third)] == [-1.0, -1e-3, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"power": 2}, {"power": 1.5}, {"threshold": "q0.5", "weight_decay": 0.1}, {"scale": False}], ids=str
)
def test_check_9_foreach_and_loop_are_bit_equal_and_so_is_a_resumed_run(dtype, options):
    results = []
    for foreach in (False, True, None):
        parameters = network(dtype)
        optimizer = CLASSP(parameters, foreach=foreach, **options)
        for step in range(6):
            if step == 3 and foreach is None:
                state = copy.deepcopy(optimizer.state_dict())
                parameters = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
                optimizer = CLASSP(parameters, foreach=foreach, **options)
                optimizer.load_state_dict(state)
            backward(parameters, step)
            optimizer.step()
        results.append([*parameters, *(optimizer.state[parameter]["sum"] for parameter in parameters)])
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def reference(gradients, *, power, threshold):
    """The paper's released optimizer, faults included, on one tensor with lr .1 and eps 1e-12."""
    weight, total = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for gradient in torch.tensor(gradients, dtype=torch.float64):
        mask = float(bool((gradient**2).any())) > threshold  # a whole tensor's any() against the threshold
        total += mask * gradient.abs()  # the power goes to a temporary
        weight -= mask * 0.1 * gradient / (total + 1e-12) ** (1 / power)
    return weight


def test_check_10_where_the_released_code_differs():
    for threshold in (0, 0.5, 0.99):
        found = reference(SEQUENCE, power=1, threshold=threshold)
        assert found.tolist() == pytest.approx([-0.0476190476, -0.1566666667], abs=1e-9)
    for threshold in (1.0, 1.5):
        assert reference(SEQUENCE, power=1, threshold=threshold).tolist() == [0, 0]
    found = reference(SEQUENCE, power=2, threshold=0)
    assert found.tolist() == pytest.approx([-0.0112560650, -0.1080178100], abs=1e-8)  # written with another eps
    ours, _ = steps(SEQUENCE, lr=0.1, eps=1e-12)
    assert torch.allclose(ours, reference(SEQUENCE, power=1, threshold=0.5), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -0.1},
        {"lr": math.nan},
        {"eps": -1e-9},
        {"power": 0},
        {"power": -1.0},
        {"power": math.inf},
        {"power": math.nan},
        {"threshold": -0.1},
        {"threshold": math.nan},
        {"threshold": "q1.5"},
        {"threshold": "half"},
        {"threshold": "qx"},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(HyperparameterError, match=name):
        CLASSP([nn.Parameter(torch.zeros(2))], **options)
    optimizer = CLASSP([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], **options})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match=r"'0.0': found torch.complex64"):
        CLASSP([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_high_powers_warn():
    with pytest.warns(UserWarning, match="underflow"):
        CLASSP([nn.Parameter(torch.zeros(2))], power=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLASSP([nn.Parameter(torch.zeros(2))], power=4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("foreach", [False, True])
def test_nonfinite_gradients_are_refused_before_anything_changes(bad, foreach):
    parameters = [("fine", nn.Parameter(torch.ones(3))), ("broken", nn.Parameter(torch.ones(3)))]
    optimizer = CLASSP(parameters, foreach=foreach)
    parameters[0][1].grad, parameters[1][1].grad = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    with pytest.raises(NonFiniteError, match="'broken'"):
        optimizer.step()
    assert all(torch.equal(parameter, torch.ones(3)) for _, parameter in parameters)
    assert not optimizer.state


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradients_can_be_left_out(bad):
    w, a = steps([[1.0, bad], [1.0, 1.0]], eps=0, error_if_nonfinite=False)
    assert a.tolist() == [2, 1]
    assert w.tolist() == pytest.approx([-0.15, -0.1])


def test_huge_finite_gradients_are_no_error():
    w, _ = steps([[3e38, 3e38]], torch.float32)
    assert w.tolist() == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize("options", [{}, {"power": 2}, {"threshold": 0.01}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients_update_their_rows_as_dense_ones_do(options, dtype):
    torch.manual_seed(0)
    sparse, dense = nn.Embedding(20, 3, sparse=True).to(dtype), nn.Embedding(20, 3).to(dtype)
    dense.load_state_dict(sparse.state_dict())
    before = sparse.weight.detach().clone()
    optimizers = [CLASSP(layer.parameters(), **options) for layer in (sparse, dense)]
    for ids in ([1, 5, 5], [5, 7, 19]):
        for layer, optimizer in zip((sparse, dense), optimizers, strict=True):
            optimizer.zero_grad()
            layer(torch.tensor(ids)).square().mean().backward()
            optimizer.step()
    assert torch.equal(sparse.weight, dense.weight)
    assert torch.equal(optimizers[0].state[sparse.weight]["sum"], optimizers[1].state[dense.weight]["sum"])
    changed = (sparse.weight != before).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {1, 5, 7, 19}
    assert changed


def test_bfloat16_accumulates_in_float32_and_keeps_it_in_its_state():
    gradient = torch.full((4,), 1e-3)
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = CLASSP([weight])
    for _ in range(1000):
        weight.grad = gradient.bfloat16()
        optimizer.step()
    total = optimizer.state[weight]["sum"]
    assert total.dtype == torch.float32
    assert total[0].item() == pytest.approx(1.0, rel=5e-3)  # a sum in bfloat16 stops at 0.25
    again = CLASSP([nn.Parameter(weight.detach().clone())])
    again.load_state_dict(optimizer.state_dict())
    (state,) = again.state.values()
    assert state["sum"].dtype == torch.float32
    assert torch.equal(state["sum"], total)


def test_parameters_without_gradient_have_no_state_and_thawed_ones_start_with_a_step_of_lr():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = CLASSP([first, second], lr=0.1, eps=0)
    for _ in range(3):
        first.grad = torch.ones(1)
        optimizer.step()
    assert second not in optimizer.state
    second.requires_grad_(True).grad = torch.tensor([0.01])
    optimizer.step()
    assert second.item() == pytest.approx(-0.1)


def test_tied_weights_are_updated_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    optimizer = CLASSP(model.parameters(), eps=0)
    assert len(optimizer.param_groups[0]["params"]) == 1
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.allclose(model[1].weight, before - 0.1)


def test_quantile_threshold_updates_the_share_above_it():
    gradients = random_gradients(1, size=1000)
    for share in (0.25, 0.5, 0.9):
        _, a = steps(gradients, threshold=f"q{share}")
        assert (a == 0).float().mean() == pytest.approx(share)
        assert gradients[0].abs()[a > 0].min() > gradients[0].abs()[a == 0].max()


def test_weight_decay_is_decoupled():
    weight = nn.Parameter(torch.ones(2))
    optimizer = CLASSP([weight], lr=0.1, eps=0, weight_decay=0.5)
    weight.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.95, 0.85])


def test_layouts_do_not_matter():
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=layout))
        optimizer = CLASSP([weight])
        for _ in range(2):
            weight.grad = gradient
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_damaged_states_are_refused_and_change_nothing():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = CLASSP([weight])
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    for error, state in (
        (CheckpointError, {"state": {0: {"exp_avg": torch.zeros(2, 2)}}, "param_groups": kept["param_groups"]}),
        (ShapeError, {"state": {0: {"sum": torch.zeros(4)}}, "param_groups": kept["param_groups"]}),
        (ValueError, {"state": {}, "param_groups": []}),
    ):
        with pytest.raises(error):
            optimizer.load_state_dict(state)
        assert torch.equal(optimizer.state[weight]["sum"], kept["state"][0]["sum"])


def test_saturation_names_and_counts():
    model = nn.Linear(2, 2)
    optimizer = CLASSP(model.named_parameters())
    model.weight.grad = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    optimizer.step()
    found = optimizer.saturation()
    assert found["weight"] == {"mean": 1.75, "median": 1.0, "q90": 4.0, "unused": 0.25}
    assert found["bias"]["unused"] == 1.0
    assert list(CLASSP(model.parameters()).saturation()) == ["0.0", "0.1"]


def test_schedulers_and_gradient_scaler():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = CLASSP([weight], lr=0.1, eps=0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    moved = []
    for _ in range(3):
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
        moved.append(before - weight.item())
    assert moved == pytest.approx([0.1, 0.05 / 2, 0.025 / 3], rel=1e-5)


def test_sharded_parameters_step_as_whole_ones(tmp_path):
    script = """
    import torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
    from weightsmith.continual import CLASSP
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 5), [torch.randn(6, 5) for _ in range(3)]
    whole = nn.Parameter(start.clone())
    sharded = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    for parameter, options in ((whole, {}), (sharded, {"foreach": True})):
        optimizer = CLASSP([parameter], threshold=0.1, **options)
        for gradient in gradients:
            is_sharded = isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(gradient, mesh, [Shard(1)]) if is_sharded else gradient
            optimizer.step()
    total = optimizer.state[sharded]["sum"]
    assert isinstance(total, DTensor) and total.placements == (Shard(0),)
    assert torch.equal(sharded.full_tensor(), whole.detach())
    again = CLASSP([sharded])
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[sharded]["sum"].full_tensor(), total.full_tensor())
    assert optimizer.saturation()["0.0"]["mean"] > 0
    print("equal")
    """
    assert two_processes(script, tmp_path).count("equal") == 2


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, row):
        ids = (torch.arange(12) + row) % 50 + 1
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_stopped_and_resumed_is_one_run(bf16, tmp_path):
    """Also with the user's own schedule: same losses, same rates, and the resumed step changes the weights."""

    def trainer(folder, stop=None):
        model, _ = tiny("llama")
        optimizer = CLASSP(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_steps=2,
            bf16=bf16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        made = transformers.Trainer(model, arguments, train_dataset=Rows(), optimizers=(optimizer, schedule))
        if stop:
            made.add_callback(StopAt(stop))
        return made

    class StopAt(transformers.TrainerCallback):
        def __init__(self, step):
            self.step = step

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= self.step

    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "halves", stop=2).train()
    second = trainer(tmp_path / "halves")
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    logs = [[(e["loss"], e["learning_rate"]) for e in t.state.log_history if "loss" in e] for t in (whole, second)]
    assert logs[0] == logs[1]
    assert [rate for _, rate in logs[0]] == pytest.approx([1e-2, 1e-2 / 2, 1e-2 / 3, 1e-2 / 4])
    start = tiny("llama")[0]
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), second.model.parameters(), strict=True))


def test_fit_with_accumulation_and_precision():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    data = TensorDataset(x, x[:, :3].argmax(1))
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = CLASSP(model.parameters(), lr=0.1)
    run = fit(model, data, optimizer=optimizer, epochs=5, batch_size=8, accumulation_steps=2, precision="bf16")
    assert run.losses[-1] < 0.7 * run.losses[0]
    assert all("sum" in optimizer.state[parameter] for parameter in model.parameters())


def task(seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, generator=generator), n % classes) for n in range(24)]


def small(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))


def test_command_carries_the_accumulators_from_task_to_task(tmp_path):
    file = tmp_path / "state.safetensors"
    by_command, by_hand = small(), small()
    optimizer = CLASSP(by_hand.parameters(), lr=0.05)
    for number in range(2):
        result = classp(by_command, task(number), epochs=2, batch_size=8, learning_rate=0.05, state=file)
        assert ("There was no state.safetensors" in result.notes[0]) == (number == 0)
        fit(by_hand, task(number), optimizer=optimizer, epochs=2, batch_size=8)
    for ours, theirs in zip(by_command.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    stored = load_file(file)
    assert torch.equal(stored["0.weight"], optimizer.state[by_hand[0].weight]["sum"])
    assert result.notes == ["accumulators of 4 of 4 parameters were read from state.safetensors"]
    assert [row["layer"] for row in result.layers] == ["0", "2"]
    assert result.layers[0]["saturation"] == pytest.approx(stored["0.weight"].mean().item())
    assert result.totals["trained"] == 4 * 8 + 8 + 8 * 3 + 3


def test_a_grown_head_keeps_the_accumulators_of_its_old_rows(tmp_path):
    file = tmp_path / "state.safetensors"
    classp(small(3), task(0), state=file)
    old = load_file(file)["2.weight"]
    with pytest.raises(NonFiniteError):  # the file is written last: a run that fails leaves it unchanged
        classp(small(3), [(torch.full((4,), math.inf), 0)], state=file)
    assert torch.equal(load_file(file)["2.weight"], old)
    classp(small(5), task(1, classes=5), state=file, learning_rate=0.0)
    new = load_file(file)["2.weight"]
    assert new.shape == (5, 8)
    assert (new[:3] >= old).all()


def test_files_of_accumulators_that_do_not_fit_are_refused(tmp_path):
    file, other = tmp_path / "state.safetensors", tmp_path / "other.safetensors"
    classp(small(), task(0), state=file)
    model, kept = small(), small().state_dict()
    save_file({"0.weight": torch.zeros(8, 4)}, other)
    with pytest.raises(CheckpointError, match="holds no accumulators"):
        classp(model, task(1), state=other)
    with pytest.raises(CheckpointError, match="power 1.0, expected 2"):
        classp(model, task(1), state=file, power=2.0)
    with pytest.raises(ShapeError, match="2.weight"):
        classp(small(2), task(1, classes=2), state=file)
    with pytest.raises(CheckpointError, match="another model"):
        classp(nn.Linear(4, 3), task(1), state=file)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(UnsupportedModelError, match="all parameters are frozen"):
        classp(nn.Linear(2, 2).requires_grad_(False), [(torch.ones(2), 0)])
