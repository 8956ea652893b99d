"""Active forgetting: the schedule, what a reset changes and what not, optimizers' state, resumed runs, the task."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerState

from weightsmith.adapt import LIFTAdamW
from weightsmith.claims.active_forgetting import AMBIGUOUS, WORDS, POSTask, small_bert
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.forget import EmbeddingForgetting, EmbeddingForgettingCallback, random_rows
from weightsmith.testing import samples, tiny

pytestmark = pytest.mark.filterwarnings("ignore:the output head and the embedding are one tensor")


def plain(rows=200, width=16):
    model = nn.Sequential(nn.Embedding(rows, width, padding_idx=0), nn.Linear(width, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)


def train_step(model, optimizer, seed=0):
    ids = torch.randint(1, 200, (8, 5), generator=torch.Generator().manual_seed(seed))
    model(ids).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("every", "until", "steps", "resets"),
    [(3, None, 10, [3, 6, 9]), (3, 7, 10, [3, 6]), (3, 6, 10, [3]), (100, 1500, 1600, [100 * n for n in range(1, 15)])],
)
def test_check_1_schedule(every, until, steps, resets):
    model, optimizer = plain()
    forgetting = EmbeddingForgetting(model, optimizer, every=every, until=until, std=0.1, embedding=model[0])
    assert [step for step in range(1, steps + 1) if forgetting.step()] == resets
    assert forgetting.resets == len(resets)


def test_check_1_no_reset_changes_nothing():
    with_object, without = plain()[0], None
    without = copy.deepcopy(with_object)
    for model in (with_object, without):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        forgetting = EmbeddingForgetting(model, optimizer, every=99, std=0.1, embedding=model[0])
        for step in range(5):
            train_step(model, optimizer, step)
            if model is with_object:
                forgetting.step()
    assert all(torch.equal(v, without.state_dict()[k]) for k, v in with_object.state_dict().items())


def test_check_2_only_the_embedding_changes_and_has_the_right_law():
    model = small_bert(0)
    optimizer = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model.state_dict())
    EmbeddingForgetting(model, optimizer, every=1, std=0.3).step()
    weight = model.get_input_embeddings().weight
    assert abs(float(weight.mean())) < 4 * 0.3 / math.sqrt(weight.numel())
    assert float(weight.std()) == pytest.approx(0.3, rel=0.02)
    tied = {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == tied
    assert model.get_output_embeddings().weight is weight  # check 4


def test_check_2_the_padding_row_is_zero():
    model, optimizer = plain()
    EmbeddingForgetting(model, optimizer, every=1, std=1.0, embedding=model[0]).step()
    assert not model[0].weight[0].any()
    assert model[0].weight[1:].all(1).all()


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}])
def test_check_3_adam_starts_anew_for_the_embedding_alone(options):
    model = plain()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-12, **options)
    forgetting = EmbeddingForgetting(model, optimizer, every=3, std=0.1, embedding=model[0])
    for step in range(3):
        train_step(model, optimizer, step)
        body = copy.deepcopy(optimizer.state[model[1].weight])
        forgetting.step()
    after = optimizer.state[model[1].weight]
    assert all(torch.equal(torch.as_tensor(after[key]), torch.as_tensor(body[key])) for key in body)
    before = model[0].weight.detach().clone()
    model(torch.tensor([[5]])).square().mean().backward()
    optimizer.step()
    step = (model[0].weight - before)[5].abs()
    torch.testing.assert_close(step, torch.full_like(step, 1e-2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.RMSprop(p)])
def test_other_optimizers_keep_no_memory_of_the_rows(make):
    model = plain()[0]
    optimizer = make(list(model.parameters()))
    forgetting = EmbeddingForgetting(model, optimizer, every=1, std=0.1, embedding=model[0])
    train_step(model, optimizer)
    forgetting.step()
    assert model[0].weight not in optimizer.state
    train_step(model, optimizer)


def test_special_tokens_stay_with_their_state():
    model, optimizer = plain()
    options = {"rows": "non_special", "special": [3, 7], "embedding": model[0], "std": 0.1}
    forgetting = EmbeddingForgetting(model, optimizer, every=1, **options)
    train_step(model, optimizer)
    before, moment = model[0].weight.detach().clone(), optimizer.state[model[0].weight]["exp_avg"].clone()
    forgetting.step()
    same = (model[0].weight == before).all(1)
    assert same.nonzero().flatten().tolist() == [0, 3, 7]
    after = optimizer.state[model[0].weight]["exp_avg"]
    assert torch.equal(after[[3, 7]], moment[[3, 7]])
    assert not after[[n for n in range(200) if n not in (3, 7)]].any()


@pytest.mark.parametrize("steps", [1, 40])
def test_the_first_update_of_a_reset_row_with_special_tokens_is_what_the_docstring_says(steps):
    model = plain()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-12)
    options = {"rows": "non_special", "special": [3, 7], "embedding": model[0], "std": 0.1}
    forgetting = EmbeddingForgetting(model, optimizer, every=steps, **options)
    for step in range(steps):
        train_step(model, optimizer, step)
        forgetting.step()
    before = model[0].weight.detach().clone()
    model(torch.tensor([[5]])).square().mean().backward()
    optimizer.step()
    update = (model[0].weight - before)[5].abs() / 1e-2
    expected = 0.1 / (1 - 0.9 ** (steps + 1)) / math.sqrt(0.001 / (1 - 0.999 ** (steps + 1)))
    torch.testing.assert_close(update, torch.full_like(update, expected), rtol=1e-3, atol=0)
    assert expected < 3.2


def test_a_tied_head_is_said():
    model = small_bert(0)
    with pytest.warns(UserWarning, match="one tensor"):
        EmbeddingForgetting(model, torch.optim.SGD(model.parameters()), every=1, std=0.1)


def test_the_output_bias_is_reset_on_request():
    model = small_bert(0)
    with torch.no_grad():
        model.cls.predictions.bias.fill_(1.0)
    EmbeddingForgetting(model, torch.optim.SGD(model.parameters()), every=1, reset_output_bias=True).step()
    assert not model.cls.predictions.bias.any()


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_check_5_random_rows(p):
    model, _ = tiny("llama")
    batch = {"input_ids": samples("llama")[0]["input_ids"][None]}
    before = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    with random_rows(model, batch["input_ids"], p=p, std=0.5, generator=generator) as replaced:
        held = copy.deepcopy(model)
        model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.get_input_embeddings().weight.grad is None
    held(**batch, labels=batch["input_ids"]).loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), held.parameters(), strict=True):
        if "embed_tokens" not in name:
            assert torch.equal(ours.grad, theirs.grad)
    present = set(batch["input_ids"].unique().tolist()) - {model.get_input_embeddings().padding_idx}
    assert set(replaced.tolist()) <= present
    assert {0.0: len(replaced) == 0, 1.0: set(replaced.tolist()) == present}.get(p, True)


def test_random_rows_of_a_tied_model_warn_and_leave_padding_and_ignored_positions_alone():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50, n_positions=8, pad_token_id=2)
    model = GPT2LMHeadModel(config)
    with pytest.warns(UserWarning, match="one tensor: the head's rows are replaced"):
        with random_rows(model, torch.tensor([[5, 6, 2, -100]]), p=1.0) as replaced:
            assert replaced.tolist() == [5, 6]
    with pytest.raises(HyperparameterError, match=r"input_ids: found \[50\]"):
        random_rows(model, torch.tensor([[5, 50]]), p=1.0).__enter__()


def test_random_rows_keep_the_gradient_of_earlier_batches():
    model, _ = tiny("llama")
    ids = samples("llama")[0]["input_ids"][None]
    model(input_ids=ids, labels=ids).loss.backward()
    before = model.get_input_embeddings().weight.grad.clone()
    with random_rows(model, ids, p=1.0):
        model(input_ids=ids, labels=ids).loss.backward()
    assert torch.equal(model.get_input_embeddings().weight.grad, before)


def test_random_rows_come_back_after_an_error():
    model, _ = tiny("llama")
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), random_rows(model, torch.arange(20), p=1.0):
        raise KeyboardInterrupt
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_check_6_zipf_and_targets():
    task = POSTask(0)
    drawn = task._zipf(1_000_000).bincount(minlength=WORDS) / 1_000_000
    assert float(task.law[0]) == pytest.approx(0.414444, abs=1e-6)
    assert float(task.law[1]) == pytest.approx(0.146528, abs=1e-6)
    assert float(task.law[-10:].sum()) == pytest.approx(0.004448, abs=1e-6)
    assert float((drawn - task.law).abs().max()) < 4 * math.sqrt(0.25 / 1_000_000)
    ids, targets = task._samples(torch.full((50,), 5), torch.full((50,), 105))
    nouns = ids[:, 3] == 5
    assert targets[nouns, 4:].unique(dim=0).tolist() == [[105, 5, 5]]
    assert targets[~nouns, 4:].unique(dim=0).tolist() == [[105, 105, 105]]
    assert sorted(ids[:, :3].unique(dim=0).tolist()) == [[5, task.copula, 105], [task.copula, 105, 5]]


class Solver(nn.Module):
    """Answers by the place of the words, or by their kind."""

    def __init__(self, task, by):
        super().__init__()
        self.task, self.by = task, by
        self.embedding = nn.Embedding(task.mask + 1, 2)
        self.cls = nn.Module()
        self.cls.predictions = nn.Module()
        self.cls.predictions.bias = nn.Parameter(torch.zeros(task.mask + 1))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        first = input_ids[:, 0] == self.task.copula
        noun, adjective = (
            torch.where(first, input_ids[:, 2], input_ids[:, 0]),
            torch.where(first, input_ids[:, 1], input_ids[:, 2]),
        )
        if self.by == "kind":
            swap = (noun >= WORDS) & (noun < 2 * WORDS)
            noun, adjective = torch.where(swap, adjective, noun), torch.where(swap, noun, adjective)
        query = input_ids[:, 3]
        told = torch.stack([adjective, *[torch.where(query == adjective, adjective, noun)] * 2], 1)
        logits = nn.functional.one_hot(torch.cat([input_ids[:, :4], told], 1), self.task.mask + 1).float()
        return type("Output", (), {"logits": logits})()


def test_check_7_solvers():
    task = POSTask(0)
    place, kind = Solver(task, "place"), Solver(task, "kind")
    assert all(task.accuracy(place, what) == 1.0 for what in ("val", "tail", "head", "unseen"))
    assert task.accuracy(kind, "tail") < 0.05
    assert task.accuracy(kind, "val") > 1 - 3 * AMBIGUOUS


def test_check_8_evaluation_leaves_the_model_and_unseen_words_stay_unseen():
    task, model = POSTask(0), small_bert(0)
    before = copy.deepcopy(model.state_dict())
    task.accuracy(model, "unseen", count=20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ids, targets = task.draw(5000)
    words = ids[(ids != task.copula) & (ids != task.mask)]
    assert int(words.max()) < 2 * WORDS
    assert int(targets.max()) < 2 * WORDS


def test_check_9_resumed_in_the_middle_of_a_cycle():
    def run(model, optimizer, forgetting, steps):
        for step in steps:
            train_step(model, optimizer, step)
            forgetting.step()

    def make():
        torch.manual_seed(0)
        model, optimizer = plain()
        return model, optimizer, EmbeddingForgetting(model, optimizer, every=4, std=0.1, embedding=model[0])

    whole, first, second = make(), make(), make()
    run(*whole, range(10))
    run(*first, range(6))
    for new, old in zip(second, first, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    run(*second, range(6, 10))
    assert all(torch.equal(value, whole[0].state_dict()[name]) for name, value in second[0].state_dict().items())
    assert second[2].resets == whole[2].resets == 2


def test_in_the_trainer_also_resumed(tmp_path):
    from transformers import Trainer, TrainingArguments

    def train(folder, steps, resume=None):
        model, _ = tiny("llama")
        arguments = TrainingArguments(
            str(folder), max_steps=steps, save_steps=3, report_to=[], use_cpu=True, lr_scheduler_type="constant", seed=0
        )
        callback = EmbeddingForgettingCallback(every=2, std=0.1)
        Trainer(model, arguments, train_dataset=samples("llama"), callbacks=[callback]).train(
            resume_from_checkpoint=resume
        )
        return model.state_dict(), callback.forgetting

    whole, forgetting = train(tmp_path / "whole", 6)
    assert forgetting.resets == 3
    train(tmp_path / "half", 3)
    resumed, counts = train(tmp_path / "half", 6, str(tmp_path / "half" / "checkpoint-3"))
    assert (counts.steps, counts.resets, counts.steps_since_reset) == (6, 3, 0)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("step", "until", "resets", "since"),
    [(0, None, 0, None), (99, None, 0, None), (1550, None, 15, 50), (1550, 1500, 14, 150)],
)
def test_a_resumed_run_knows_its_last_reset(step, until, resets, since):
    model, optimizer = plain()
    callback = EmbeddingForgettingCallback(every=100, until=until, std=0.1, embedding=model[0])
    callback.on_train_begin(None, TrainerState(global_step=step), None, model=model, optimizer=optimizer)
    assert (callback.forgetting.resets, callback.forgetting.steps_since_reset) == (resets, since)


def quantized():
    model = nn.Sequential(nn.Embedding(4, 2))
    model[0].weight = nn.Parameter(torch.zeros(4, 2, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, HyperparameterError, "every"),
        ({"every": math.nan}, HyperparameterError, "every"),
        ({"every": math.inf}, HyperparameterError, "every"),
        ({"every": 5, "until": 5}, HyperparameterError, "there is no reset"),
        ({"std": 0.0}, HyperparameterError, "std"),
        ({"std": None}, HyperparameterError, "std"),
        ({"rows": "some"}, HyperparameterError, "rows"),
        ({"rows": "non_special"}, HyperparameterError, "special"),
        ({"rows": "non_special", "special": [500]}, HyperparameterError, "special"),
        ({"rows": "non_special", "special": [-1, 5]}, HyperparameterError, r"special: found \[-1\]"),
        ({"embedding": None}, LayerNotFoundError, "no token embedding"),
        ({"embedding": nn.Embedding(3, 2)}, LayerNotFoundError, "does not train"),
        ({"embedding": quantized()[0]}, UnsupportedModelError, "quantized"),
    ],
)
def test_bad_input(options, error, message):
    from inspect import unwrap

    model, optimizer = plain()
    call = unwrap(EmbeddingForgetting.__init__)
    with pytest.raises(error, match=message):
        call(
            object.__new__(EmbeddingForgetting),
            model,
            optimizer,
            **{"every": 2, "std": 0.1, "embedding": model[0], **options},
        )


def test_bad_probability():
    with pytest.raises(HyperparameterError, match="p: found 2"), random_rows(tiny("llama")[0], torch.arange(3), p=2.0):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_flat_state_of_lift_is_cleared_and_a_reset_stays(dtype):
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 4).to(dtype)
    optimizer = LIFTAdamW([{"params": list(embedding.parameters()), "density": None}], lr=1e-3)
    forgetting = EmbeddingForgetting(
        embedding, optimizer, every=1, std=0.02, embedding=embedding, rows="non_special", special=[0]
    )

    def step():
        embedding(torch.arange(10)).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    forgetting.step()
    assert not optimizer.state[embedding.weight]["exp_avg"].view(10, 4)[1:].any()
    reset = embedding.weight.detach()[1:].float().norm()
    step()
    assert float(embedding.weight.detach()[1:].float().norm()) == pytest.approx(float(reset), rel=0.1)
