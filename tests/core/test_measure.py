import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError
from weightsmith.core.metrics import accuracy, decode_speed, measure, perplexity, sample_text, size


def tiny():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31, n_positions=64, initializer_range=0.5)
    )


def test_perplexity_scores_every_token_with_its_context():
    model, ids = tiny().eval(), torch.randint(31, (40,), generator=torch.Generator().manual_seed(0))
    losses = {}  # token -> loss, by the definition: window 16, a new window every 4 tokens
    for start in range(0, 39, 4):
        chunk = ids[start : start + 16]
        logits = model(chunk[None]).logits[0].log_softmax(-1)
        for i in range(1, len(chunk)):
            losses.setdefault(start + i, -logits[i - 1, chunk[i]].item())
    assert sorted(losses) == list(range(1, 40))
    expected = math.exp(sum(losses.values()) / 39)
    assert perplexity(model, ids, window=16, stride=4) == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_disjoint_windows_and_of_one_window():
    model, ids = tiny().eval(), torch.arange(30)
    whole = math.exp(model(ids[None], labels=ids[None]).loss.item())
    assert perplexity(model, ids, window=64) == pytest.approx(whole, rel=1e-4)
    halves = [model(part[None], labels=part[None]).loss.item() * (len(part) - 1) for part in ids.split(15)]
    assert perplexity(model, ids, window=15) == pytest.approx(math.exp(sum(halves) / 28), rel=1e-4)


def test_perplexity_refuses_bad_input():
    with pytest.raises(CalibrationError, match="1 tokens"):
        perplexity(tiny(), torch.arange(1))
    with pytest.raises(CalibrationError, match="stride 9"):
        perplexity(tiny(), torch.arange(20), window=8, stride=9)
    model = tiny()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        perplexity(model, torch.arange(20))


def test_numbers_are_measured_by_their_error():
    batches = [(torch.tensor([[1.0], [2.0]]), torch.tensor([1.5, 2.0])), (torch.tensor([[4.0]]), torch.tensor([1.0]))]
    found = measure(nn.Identity(), labelled=iter(batches))
    assert found["mean_absolute_error"] == pytest.approx(3.5 / 3)
    assert "accuracy" not in found
    with pytest.raises(ShapeError, match="targets"):
        measure(nn.Identity(), labelled=[(torch.ones(2, 3), torch.ones(2))])


def test_accuracy_and_size():
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].weight.data.copy_(torch.eye(3))
    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3), torch.tensor([0, 1, 2]))]
    assert accuracy(model, batches) == 5 / 6
    assert size(model) == {"parameters": 9, "nonzero": 3, "bytes": 36}
    with pytest.raises(CalibrationError, match="no labelled batches"):
        accuracy(model, [])


def test_measure_gives_what_the_data_allow():
    model = tiny()
    got = measure(model, ids=torch.arange(30), speed=True)
    assert list(got) == [
        "perplexity",
        "tokens_per_second",
        "tokens_per_second_spread",
        "parameters",
        "nonzero",
        "bytes",
    ]
    assert got["tokens_per_second"] > 0
    assert got["parameters"] == sum(p.numel() for p in model.parameters())
    assert decode_speed(model, torch.arange(4), new_tokens=4, repeats=1) > 0


def test_labels_that_are_ignored_count_neither_as_right_nor_as_wrong():
    assert accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, -100, 2, 0]))]) == 2 / 3


def test_a_prompt_written_by_a_chat_template_gets_no_second_start_token(monkeypatch):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 1, "hello": 3, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="?")
    model = tiny()
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs))
    sample_text(model, tokenizer, "hello", new_tokens=1)
    tokenizer.chat_template = "<s> {{ messages[0]['content'] }}"
    sample_text(model, tokenizer, "hello", new_tokens=1)
    assert [ids.tolist() for ids in seen] == [[[1, 3]], [[1, 3]]]
