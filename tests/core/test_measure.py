import math

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from weightsmith.core.errors import CalibrationError, NonFiniteError, ShapeError
from weightsmith.core.metrics import (
    accuracy,
    decode_speed,
    label_accuracy,
    mean_absolute_error,
    measure,
    perplexity,
    sample_text,
    size,
)


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


def classifier(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=11, **sizes, **options)).eval()


def test_whole_numbers_are_targets_of_a_regression_and_no_classes():
    model, ids, targets = classifier(num_labels=1), torch.arange(10).reshape(5, 2), torch.arange(5)
    error = (model(ids).logits[:, 0] - targets).abs().mean().item()
    for labels in (targets, targets.float()):
        found = measure(model, labelled=[({"input_ids": ids}, labels)])
        assert found["mean_absolute_error"] == pytest.approx(error, rel=1e-5)
        assert "accuracy" not in found
    with pytest.raises(ShapeError, match=r"logits of one class: found \(3, 1\).*real numbers"):
        measure(nn.Linear(2, 1), labelled=[(torch.ones(3, 2), torch.tensor([0, 1, 2]))])


@pytest.mark.parametrize("kind", ["multi_label_classification", None])
def test_a_multi_label_classifier_is_measured_by_the_share_of_its_labels(kind):
    model, ids = classifier(num_labels=3, problem_type=kind), torch.arange(10).reshape(5, 2)
    labels = (torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    found = measure(model, labelled=[({"input_ids": ids}, labels)])
    assert found["label_accuracy"] == pytest.approx(((model(ids).logits > 0) == labels.bool()).double().mean().item())
    assert not found.keys() & {"accuracy", "mean_absolute_error"}


def test_labels_of_a_multi_label_classifier_are_zeros_and_ones():
    with pytest.raises(CalibrationError, match=r"found \[2.0\], expected 0 or 1"):
        label_accuracy(nn.Identity(), [(torch.ones(1, 2), torch.tensor([[0.0, 2.0]]))])
    with pytest.raises(ShapeError, match=r"labels: found \(1,\), expected \(1, 2\)"):
        label_accuracy(nn.Identity(), [(torch.ones(1, 2), torch.tensor([1]))])


def test_the_accuracy_of_a_causal_language_model_is_that_of_the_next_token():
    model, ids = tiny().eval(), torch.arange(24).reshape(3, 8)
    right = model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    labels = torch.cat([ids[:, :1], model(ids).logits[:, :-1].argmax(-1)], 1)
    assert accuracy(model, [({"input_ids": ids}, ids)]) == pytest.approx(right.double().mean().item())
    assert accuracy(model, [({"input_ids": ids}, labels)]) == 1


def test_labels_that_are_not_one_for_each_row_are_told():
    ids = torch.arange(10).reshape(5, 2)
    with pytest.raises(ShapeError, match=r"labels: found \(5, 2\), expected \(5,\), one for each row"):
        accuracy(classifier(num_labels=3), [({"input_ids": ids}, ids)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_score(bad):
    outputs = torch.tensor([[bad, 1.0], [0.0, 1.0]])
    for score, labels in (
        (accuracy, torch.tensor([0, 1])),
        (label_accuracy, torch.ones(2, 2)),
        (mean_absolute_error, torch.ones(2, 2)),
    ):
        with pytest.raises(NonFiniteError, match="outputs hold NaN or infinity"):
            score(nn.Identity(), [(outputs, labels)])
    with pytest.raises(NonFiniteError, match="targets"):
        mean_absolute_error(nn.Identity(), [(torch.ones(2, 2), outputs)])
    assert accuracy(nn.Identity(), [(outputs, torch.tensor([-100, 1]))]) == 1, "what does not count may be anything"


def test_classes_that_take_no_part_have_logits_of_minus_infinity():
    logits = torch.tensor([[0.0, -torch.inf], [1.0, 0.0]])
    assert accuracy(nn.Identity(), [(logits, torch.tensor([0, 0]))]) == 1.0


def test_labels_of_minus_100_do_not_count_among_several():
    logits, labels = torch.tensor([[2.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, -100]])
    assert label_accuracy(nn.Identity(), [(logits, labels)]) == pytest.approx(2 / 3)


def test_batches_may_be_mappings_as_in_training():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=20, num_labels=3))
    ids, labels = torch.randint(20, (9, 5)), torch.arange(9) % 3
    expected = accuracy(model, [({"input_ids": ids}, labels)])
    named = [{"input_ids": ids, "labels": labels}]
    assert accuracy(model, named) == measure(model, labelled=named)["accuracy"] == expected


def test_a_tokenizer_may_give_more_than_a_model_reads():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", "token_type_ids", "attention_mask"]
    words = Tokenizer(models.WordLevel({"hello": 3, "?": 0}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?", model_input_names=names)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    assert isinstance(sample_text(model, tokenizer, "hello", new_tokens=2), str)
