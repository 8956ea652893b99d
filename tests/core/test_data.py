"""Users' data: every form as samples and batches of the model that reads it, masked and labeled where it counts."""

from __future__ import annotations

import csv
import json
import random
from inspect import unwrap
from typing import NamedTuple

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaForMaskedLM,
)

from models import tiny
from weightsmith.core.data import (
    Reader,
    as_batches,
    batched,
    call,
    collate,
    context_length,
    sample_digest,
    samples_digest,
    split_labels,
    take,
    to_model,
    without_labels,
)
from weightsmith.core.data._images import picture
from weightsmith.core.errors import CalibrationError
from weightsmith.core.models import recalibrate_batchnorm
from weightsmith.core.training import default_loss, fit, labeled
from weightsmith.embedded import load_tokenizer, open_model
from weightsmith.merge import diagonal_fisher
from weightsmith.sparsify import wanda

MESSAGES = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Seven, I think."},
]


@pytest.fixture(scope="module")
def chat():
    """A tiny language model with SmolLM2's tokenizer, which has a chat template."""
    from weightsmith.embedded import folder

    tokenizer = load_tokenizer(folder("smollm2"))
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(tokenizer), n_positions=64)
    return Reader(GPT2LMHeadModel(config), tokenizer)


def rows_of(tmp_path, rows, suffix=".jsonl"):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).to_csv(path, sep="\t" if suffix == ".tsv" else ",")
    return path


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def answer(reader, sample):
    return reader.tokenizer.decode(sample["labels"][sample["labels"] != -100])


def test_only_the_answers_of_a_chat_have_labels(chat, tmp_path):
    path = rows_of(tmp_path, [{"messages": MESSAGES}, {"messages": MESSAGES[:2]}])
    long, short = chat.samples(path, count=9, length=999)
    assert answer(chat, long) == "Four.<|im_end|>\nSeven, I think.<|im_end|>\n"
    assert answer(chat, short) == "Four.<|im_end|>\n"
    assert long["input_ids"].shape == short["input_ids"].shape
    assert short["attention_mask"].sum() < long["attention_mask"].sum() == len(long["input_ids"])
    assert (short["labels"][short["attention_mask"] == 0] == -100).all()


def test_a_completion_has_labels_and_its_prompt_none(chat, tmp_path):
    path = rows_of(tmp_path, [{"prompt": "The sky is", "completion": " blue."}])
    (sample,) = chat.samples(path, count=1, length=99)
    assert answer(chat, sample) == " blue.<|im_end|>"
    assert chat.tokenizer.decode(sample["input_ids"]) == "The sky is blue.<|im_end|>"
    spaced = rows_of(tmp_path, [{"prompt": "The sky is ", "completion": "blue."}])
    assert answer(chat, chat.samples(spaced, count=1, length=99)[0]) == " blue.<|im_end|>", "one token of both"
    turns = rows_of(tmp_path, [{"prompt": MESSAGES[:1], "completion": MESSAGES[1:2]}])
    assert answer(chat, chat.samples(turns, count=1, length=99)[0]) == "Four.<|im_end|>\n"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_table_is_read(chat, tmp_path, suffix):
    path = rows_of(tmp_path, [{"text": f"line {n}, with a comma"} for n in range(20)], suffix)
    samples = chat.samples(path, count=5, length=99, generator=torch.Generator().manual_seed(0))
    texts = [chat.tokenizer.decode(sample["input_ids"][sample["attention_mask"] != 0]) for sample in samples]
    assert len(set(texts)) == 5
    assert all(text.endswith(", with a comma") for text in texts)
    assert texts != [f"line {n}, with a comma" for n in range(5)], "drawn, not the first ones"
    batches = chat.batches(path, count=20, length=99)
    assert [len(batch["input_ids"]) for batch in batches] == [8, 8, 4]
    assert "labels" not in batches[0]


def test_samples_are_never_longer_than_the_models_context(chat, tmp_path):
    assert context_length(chat.model) == 64
    (tmp_path / "long.txt").write_text("word " * 500)
    assert chat.samples(tmp_path / "long.txt", count=2, length=999)[0]["input_ids"].shape == (64,)
    path = rows_of(tmp_path, [{"text": "word " * 500}])
    assert chat.samples(path, count=1, length=999)[0]["input_ids"].shape == (64,)
    with pytest.raises(CalibrationError, match="no position has a label: found answers beyond the length, or texts of"):
        chat.samples(rows_of(tmp_path, [{"prompt": "word " * 500, "completion": "x"}]), count=1, length=999)


def test_labels_are_the_models_classes(tmp_path):
    from weightsmith.embedded import folder

    tokenizer = load_tokenizer(folder("minilm"))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(**small, vocab_size=len(tokenizer), id2label={0: "spam", 1: "ham"})
    reader = Reader(BertForSequenceClassification(config), tokenizer)
    path = rows_of(tmp_path, [{"text": "hello there", "label": "ham"}, {"text": "win", "label": "spam"}], ".csv")
    samples = reader.samples(path, count=9, length=99)
    assert [int(sample["labels"]) for sample in samples] == [1, 0]
    assert samples[1]["attention_mask"].tolist() == [1, 1, 1, 0]
    with pytest.raises(CalibrationError, match=r"labels of .*: found \[10, 19\], expected 0 to 1"):
        reader.samples(rows_of(tmp_path, [{"text": "a", "label": n} for n in (19, 10)]), count=9, length=9)
    for odd in (0.5, [1]):
        with pytest.raises(CalibrationError, match=r"labels of .* expected class indices 0, 1, 2, ... or class names"):
            reader.samples(rows_of(tmp_path, [{"text": "a", "label": odd}]), count=9, length=9)
    with pytest.raises(CalibrationError, match=r"found \['spam '\], expected class indices .* \['ham', 'spam'\]"):
        reader.samples(rows_of(tmp_path, [{"text": "a", "label": n} for n in ("ham", "spam ")]), count=9, length=9)
    unlabeled = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["ham", "spam"]))
    datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=unlabeled).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CalibrationError, match=r"labels of .*: found \[-1\]"):
        reader.samples(tmp_path / "x.parquet", count=9, length=9)
    with pytest.raises(CalibrationError, match=r"found \['eggs'\], expected class indices .* \['ham', 'spam'\]"):
        reader.samples(rows_of(tmp_path, [{"text": "a", "label": "eggs"}]), count=9, length=9)
    tokenizer.pad_token = None
    with pytest.raises(CalibrationError, match="tokenizer has no padding token"):
        reader.samples(path, count=9, length=9)


def regression_reader(**head):
    from weightsmith.embedded import folder

    tokenizer = load_tokenizer(folder("minilm"))
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return Reader(BertForSequenceClassification(BertConfig(**small, **head, vocab_size=len(tokenizer))), tokenizer)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_labels_of_a_regression_are_numbers(tmp_path, suffix):
    reader = regression_reader(num_labels=1)
    rows = [{"text": "a", "label": 2.5}, {"text": "b", "label": -1.0}, {"text": "c", "label": 11.0}]
    samples = reader.samples(rows_of(tmp_path, rows, suffix), count=9, length=9)
    labels = torch.stack([sample["labels"] for sample in samples])
    assert labels.dtype == torch.float32
    assert labels.tolist() == [2.5, -1.0, 11.0]
    whole = rows_of(tmp_path, [{"text": "a", "label": 7}])
    assert reader.samples(whole, count=9, length=9)[0]["labels"].item() == 7.0


def test_labels_of_several_outputs_are_lists(tmp_path):
    reader = regression_reader(num_labels=2, problem_type="regression")
    path = rows_of(tmp_path, [{"text": "a", "label": [1.5, 2.0]}])
    assert reader.samples(path, count=9, length=9)[0]["labels"].tolist() == [1.5, 2.0]
    for odd in (1.5, [1.0, 2.0, 3.0]):
        with pytest.raises(CalibrationError, match="expected 2 finite numbers in every row, for a regression"):
            reader.samples(rows_of(tmp_path, [{"text": "a", "label": odd}]), count=9, length=9)


@pytest.mark.parametrize("odd", ["ham", "nan", [1.0, 2.0]])
def test_what_is_no_number_is_refused_for_a_regression(tmp_path, odd):
    reader = regression_reader(num_labels=1)
    with pytest.raises(CalibrationError, match=r"labels of .*expected a finite number in every row, for a regression"):
        reader.samples(rows_of(tmp_path, [{"text": "a", "label": odd}]), count=9, length=9)


def test_numbers_beside_tensors_are_kept(tmp_path):
    save_file({"input_ids": torch.ones(3, 4).long(), "labels": torch.rand(3, 1)}, tmp_path / "x.safetensors")
    assert len(regression_reader(num_labels=1).samples(tmp_path / "x.safetensors", count=9, length=9)) == 3
    save_file({"x": torch.ones(3, 4), "labels": torch.rand(3, 1)}, tmp_path / "x.safetensors")
    (inputs, label), *_ = Reader(nn.Linear(4, 1)).samples(tmp_path / "x.safetensors", count=9, length=9)
    assert inputs.shape == (4,)
    assert label.shape == (1,)


def test_folders_with_numbers_for_names_are_labels_of_a_regression(tmp_path):
    for name in ("3", "20.5"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "x.png")
    model = tiny("vit_regression")[0]
    reader = Reader(model, processor=lambda images, **_: {"pixel_values": torch.zeros(len(images), 3, 32, 32)})
    found = reader.samples(tmp_path / "images", count=9, length=9)
    assert sorted(sample["labels"].item() for sample in found) == [3.0, 20.5]


def test_a_folder_of_images_with_the_models_own_processor(tmp_path):
    for name, level in (("dark", 0), ("light", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(3):
            pixels = np.full((40, 60, 3), level, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{n}.png")
    opened = open_model("embedded:efficientnet-lite0")
    reader = Reader(opened.model, processor=opened.processor)
    samples = reader.samples(tmp_path / "photos", count=9, length=1)
    assert sorted((round(x.mean().item(), 2), int(y)) for x, y in samples) == [(-0.99, 0)] * 3 + [(1.0, 1)] * 3
    (batch,) = reader.batches(tmp_path / "photos", count=9, length=1)
    assert batch.shape == (6, 3, 224, 224)
    with pytest.raises(CalibrationError, match="holds images and the model has no image processor"):
        Reader(nn.Linear(2, 2)).samples(tmp_path / "photos", count=9, length=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"words": "x"}', r"columns of .*: found \['words'\], expected messages; prompt and completion"),
        ("a.jsonl", '{"text": ', "cannot read .*a.jsonl"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}', r"rows of .*: found empty \['text'\]"),
        ("a.csv", "", "cannot read .*a.csv"),
        ("a.csv", "text,label\n", "holds no rows|cannot read"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "no turn of the assistant"),
        ("a.txt", " \n", "is empty"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"text": ""}', "found no tokens"),
        ("a.jsonl", '{"text": 1}', "column 'text' of .*: found 1, expected text"),
        ("a.jsonl", '{"text": ["x"]}', r"column 'text' of .*: found \['x'\]"),
        ("a.jsonl", '{"messages": "hello"}', "a chat of .*: found 'hello', expected a list of messages"),
        ("a.jsonl", '{"messages": []}', r"a chat of .*: found \[\]"),
        ("a.jsonl", '{"messages": [{"from": "human", "value": "x"}]}', "a message of .* expected 'role' and 'content'"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": null}]}', "expected 'role' and 'content'"),
        ("a.jsonl", '{"prompt": "x", "completion": 1}', "a prompt of type str, a completion of type int"),
    ],
)
def test_bad_data_is_named(chat, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CalibrationError, match=message):
        chat.samples(tmp_path / name, count=4, length=8)


def test_a_template_that_refuses_a_chat_is_told(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(CalibrationError, match="refuses a chat of .*: found roles must alternate"):
        chat.samples(rows_of(tmp_path, [{"messages": MESSAGES}]), count=1, length=9)


def test_rows_without_an_answer_within_the_length_are_left_out(chat, tmp_path):
    rows = [{"prompt": "word " * 500, "completion": "x"}, {"prompt": "a", "completion": " b"}]
    path = rows_of(tmp_path, rows)
    with pytest.warns(UserWarning, match="1 of 2 rows of .* are left out"):
        (sample,) = chat.samples(path, count=2, length=99)
    assert answer(chat, sample) == " b<|im_end|>"
    assert len(chat.batches(path, count=2, length=99)[0]["input_ids"]) == 2, "a model runs on prompts too"


def test_empty_rows_are_left_out_and_counted(chat, tmp_path):
    path = rows_of(tmp_path, [{"text": text} for text in ("a b c d e", "", "f", "f g h i")])
    with pytest.warns(UserWarning, match="2 of 4 rows of .* are left out: .* a text of at most one token"):
        samples = chat.samples(path, count=4, length=99)
    assert [answer(chat, sample) for sample in samples] == ["a b c d e", "f g h i"]
    assert len(chat.batches(path, count=4, length=99)[0]["input_ids"]) == 3, "a model runs on one token, not on none"


def test_an_encoder_decoder_is_not_trained_on_empty_prompts_or_completions(chat, tmp_path):
    reader = Reader(tiny("t5")[0], chat.tokenizer)  # it adds no end to what is empty
    rows = [{"prompt": "x", "completion": ""}, {"prompt": "", "completion": "y"}, {"prompt": "x", "completion": "y"}]
    path = rows_of(tmp_path, rows)
    with pytest.warns(UserWarning, match="2 of 3 rows of .* are left out: no answer"):
        (sample,) = reader.samples(path, count=3, length=99)
    assert answer(reader, sample) == "y"
    assert len(reader.batches(path, count=3, length=99)[0]["input_ids"]) == 1
    for read in (reader.samples, reader.batches):
        with pytest.raises(CalibrationError, match="rows of .*: found no tokens, expected text"):
            read(rows_of(tmp_path, rows[:2]), count=3, length=99)


@pytest.mark.parametrize("name", ["a.csv", "A.CSV"])
def test_words_and_numbers_of_a_csv_are_text(chat, tmp_path, name):
    (tmp_path / name).write_text("text\n007\nNone\nNA\n")
    (batch,) = chat.batches(tmp_path / name, count=9, length=9)
    rows = zip(batch["input_ids"], batch["attention_mask"] != 0, strict=True)
    assert [chat.tokenizer.decode(ids[real]) for ids, real in rows] == ["007", "None", "NA"]


def test_an_encoder_reads_the_prompt_and_its_decoder_the_completion(chat, tmp_path):
    reader = Reader(tiny("t5")[0], chat.tokenizer)
    path = rows_of(tmp_path, [{"prompt": "The sky is", "completion": " blue, or so."}])
    (sample,) = reader.samples(path, count=1, length=99)
    assert chat.tokenizer.decode(sample["input_ids"]) == "The sky is"
    assert answer(reader, sample) == " blue, or so."
    with pytest.raises(CalibrationError, match="holds chats and the model is an encoder-decoder"):
        reader.samples(rows_of(tmp_path, [{"messages": MESSAGES}]), count=1, length=9)


def test_the_tokenizers_own_limit_counts(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.tokenizer, "model_max_length", 62)  # as RoBERTa, whose positions start at two
    (sample,) = chat.samples(rows_of(tmp_path, [{"text": "word " * 500}]), count=1, length=99)
    assert len(sample["input_ids"]) == 62


def test_what_is_not_there_is_named(chat, tmp_path):
    with pytest.raises(CalibrationError, match="no file .*none.jsonl"):
        chat.samples(tmp_path / "none.jsonl", count=4, length=8)
    with pytest.raises(CalibrationError, match="found no images"):
        chat.samples(tmp_path, count=4, length=8)
    with pytest.raises(CalibrationError, match="no file or folder nobody/nothing, and no data set of that name"):
        chat.samples("nobody/nothing", count=4, length=8)


def test_tensors_of_tokens_label_themselves_but_not_their_padding(chat, tmp_path):
    ids = torch.arange(6).reshape(2, 3)
    save_file({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}, tmp_path / "x.safetensors")
    first, second = chat.samples(tmp_path / "x.safetensors", count=9, length=1)
    assert first["labels"].tolist() == [0, 1, 2]
    assert second["labels"].tolist() == [3, 4, -100]


def test_a_generator_of_samples_is_refused_by_name():
    for use in (unwrap(take), lambda made: unwrap(batched)(made, 2), lambda made: fit(nn.Linear(2, 2), made)):
        with pytest.raises(CalibrationError, match="found a generator, expected a list or data set. Make a list of it"):
            use((torch.ones(2), 0) for _ in range(3))


def test_pairs_and_loaders_work_where_batches_do():
    x, y = torch.rand(12, 3, 32, 32), torch.arange(12) % 4
    named = [Pair(*pair) for pair in zip(x, y, strict=True)]
    results = []
    loaders = DataLoader(TensorDataset(x, y), batch_size=12), DataLoader(named, batch_size=12)
    for batches in ([x], [(x, y)], [[x, y]], [Pair(x, y)], *loaders):
        model = tiny("cnn")[0]
        wanda(model, batches)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert all(torch.equal(result, results[0]) for result in results[1:])
    vit, batch = tiny("vit")
    pair = (batch["pixel_values"], torch.zeros(8, dtype=torch.long))
    assert torch.equal(call(vit, pair).logits, call(vit, batch).logits)


def test_two_inputs_are_both_given():
    both = nn.Bilinear(3, 3, 2)
    x = torch.ones(4, 3)
    assert torch.equal(call(both, (x, 2 * x)), both(x, 2 * x))


class Masked(nn.Module):
    """A model of the user's own that takes an attention mask."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(64, 4)

    def forward(self, ids, attention_mask=None):
        found = self.embedding(ids)
        return found if attention_mask is None else found * attention_mask[..., None]


@pytest.mark.parametrize("name", ["bert", "gpt2", "own"])
def test_what_may_be_labels_or_a_mask_is_refused(name):
    model, batch = (Masked(), tiny("bert")[1]) if name == "own" else tiny(name)
    ids = batch["input_ids"]
    for second in (torch.ones_like(ids), ids % 2):
        with pytest.raises(CalibrationError, match="may be labels or an attention mask: .* expected a mapping"):
            call(model, (ids, second))


def test_labels_beside_token_ids_are_no_mask():
    model, batch = tiny("bert")
    ids = batch["input_ids"]
    labels = torch.arange(len(ids)) % 2
    assert torch.equal(call(model, (ids, labels)).logits, call(model, ids).logits)
    assert torch.equal(call(model, ({"input_ids": ids}, labels)).logits, call(model, ids).logits)
    results = []
    for batches in ([(ids, labels)], [ids]):
        model = tiny("bert")[0]
        wanda(model, batches)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_are_cast_where_they_enter_a_model(dtype):
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    model = tiny("cnn")[0].to(dtype)
    assert call(model, images).dtype == call(model, (images, labels)).dtype == dtype
    recalibrate_batchnorm(model, [images])
    assert next(iter(diagonal_fisher(model, [(images, labels)]).values())).isfinite().all()
    fit(model, [*zip(images, labels, strict=True)], batch_size=4, epochs=1)
    assert {value.dtype for value in model.parameters()} == {dtype}


def test_targets_keep_their_precision():
    x, y = torch.rand(8, 12), torch.rand(8, 1)
    half = tiny("mlp_regression")[0].bfloat16()
    for batch in ((x, y), [x, y], Pair(x, y)):
        placed = to_model(batch, half)
        assert type(placed) is type(batch)
        assert placed[0].dtype == torch.bfloat16
        assert torch.equal(placed[1], y)
    bert, batch = tiny("bert_regression")
    placed = to_model({**batch, "labels": y[:, 0]}, bert.bfloat16())
    assert torch.equal(placed["labels"], y[:, 0])
    default_loss(bert, placed).backward()  # the model's own loss takes them


def test_labels_are_taken_off():
    inputs, labels = split_labels(batched([(torch.ones(2), 1), (torch.ones(2), 0)], 2)[0])
    assert inputs.shape == (2, 2)
    assert labels.tolist() == [1, 0]
    with pytest.raises(CalibrationError, match=r"a batch without labels: found \['x'\]"):
        split_labels({"x": torch.ones(1)})
    with pytest.raises(CalibrationError, match="no calibration batches"):
        as_batches([])
    for batch in ([torch.ones(2, 2), ("a", "b")], {"x": torch.ones(2, 2), "labels": ["a", "b"]}):
        with pytest.raises(CalibrationError, match=r"labels: found .'a', 'b'., expected numbers. Number the"):
            split_labels(batch)


def test_batches_without_rows_or_of_arrays_are_refused_by_name():
    x, ids = torch.ones(4, 2), torch.ones(2, 3, dtype=torch.long)
    for good, empty in ((x, x[:0]), ((x, x), (x[:0], x[:0])), ({"input_ids": ids}, {"input_ids": ids[:0]})):
        with pytest.raises(
            CalibrationError,
            match=r"calibration batch 1: found shape \(0, .\), expected at least one row. Leave it out",
        ):
            as_batches([good, empty])
    assert len(as_batches([{"x": x, "cache": x[:0]}])) == 1, "what comes beside the rows may be empty"
    for batch in (x.numpy(), [x.numpy()], {"input_ids": ids.numpy()}):
        with pytest.raises(
            CalibrationError, match="batch 0: found a NumPy array, expected tensors. Convert it with torch"
        ):
            unwrap(as_batches)([batch])


def test_sequences_of_tokens_are_padded_and_masked():
    ids = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    batch = collate([{"input_ids": x, "labels": x, "token_type_ids": x * 0} for x in ids], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0]] * 2
    mask = [torch.tensor([1, 1, 0]), torch.tensor([1])]
    batch = collate([{"input_ids": x, "attention_mask": m} for x, m in zip(ids, mask, strict=True)])
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]], "a mask of one's own stays"
    assert "attention_mask" not in collate([{"input_ids": ids[0]}] * 2), "none is needed"
    batch = collate([{"input_ids": x, "decoder_input_ids": x} for x in ids])
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert collate([{"input_ids": [1, 2]}, {"input_ids": [3]}])["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_samples_that_do_not_fit_together_are_refused_by_name():
    with pytest.raises(CalibrationError, match=r"pixel_values of a batch: found \[\(2,\), \(3,\)\].*Pad or crop"):
        collate([{"pixel_values": torch.zeros(2)}, {"pixel_values": torch.zeros(3)}])
    with pytest.raises(CalibrationError, match=r"sample 1 of a batch: found \['y'\], expected \['x'\]"):
        collate([{"x": torch.zeros(2)}, {"y": torch.zeros(2)}])
    with pytest.raises(CalibrationError, match="tuples of unequal length"):
        collate([(torch.zeros(2), 1), (torch.zeros(2),)])
    with pytest.raises(CalibrationError, match="the inputs of a batch: found .*object"):
        collate([(object(), 1)])


def test_an_encoder_decoder_keeps_the_labels_it_makes_decoder_inputs_of():
    model, batch = tiny("t5")
    ids = batch["input_ids"][:, :12]
    given = {"input_ids": ids, "labels": ids}
    assert without_labels(model, given) is given
    assert list(without_labels(model, given | {"decoder_input_ids": ids})) == ["input_ids", "decoder_input_ids"]
    assert list(without_labels(tiny("llama")[0], given)) == ["input_ids"]


def test_a_model_that_reads_no_text_is_given_none(chat, tmp_path):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"vocab_size": len(chat.tokenizer), "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    whisper = Reader(WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, pad_token_id=0)), chat.tokenizer)
    rows = rows_of(tmp_path, [{"prompt": "two and two", "completion": "four"}])
    for read in (
        lambda: whisper.samples(rows, count=9, length=9),
        lambda: whisper.text_batches("four", count=1, length=1),
    ):
        with pytest.raises(CalibrationError, match="reads input_features, not text. Give a .safetensors file"):
            read()


TEXT = {"bert": BertForMaskedLM, "roberta": RobertaForMaskedLM}  # RoBERTa counts its tokens itself


@pytest.mark.parametrize("name", ["gpt2", "llama", *TEXT])
@pytest.mark.parametrize("adapted", [False, True])
def test_padding_on_the_left_changes_no_output(name, adapted):
    torch.manual_seed(0)
    if name in TEXT:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model: nn.Module = TEXT[name](TEXT[name].config_class(**sizes, vocab_size=64, pad_token_id=1)).eval()
    else:
        model = tiny(name)[0].eval()
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).eval()
    ids, padding = torch.randint(5, 60, (2, 6)), torch.ones(2, 3, dtype=torch.long)
    padded = {"input_ids": torch.cat([padding, ids], 1), "attention_mask": torch.cat([0 * padding, ids > 0], 1)}
    with torch.no_grad():
        alone, behind = call(model, {"input_ids": ids}).logits, call(model, padded).logits
    torch.testing.assert_close(behind[:, 3:], alone, rtol=1e-4, atol=1e-5)


def test_what_comes_after_padding_has_no_label():
    """Nothing before it predicts it."""
    ids, mask = torch.arange(1, 6)[None], torch.tensor([[0, 0, 1, 1, 1]])
    assert labeled({"input_ids": ids, "attention_mask": mask})["labels"].tolist() == [[-100, -100, -100, 4, 5]]
    assert labeled({"input_ids": ids, "attention_mask": mask.flip(1)})["labels"].tolist() == [[1, 2, 3, -100, -100]]


def image_reader(names=("LABEL_0", "LABEL_1", "LABEL_2"), channels=3):
    """A model of images whose pixels are those of the files."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=8,
        patch_size=8,
        num_channels=channels,
        id2label=dict(enumerate(names)),
    )

    def processor(images, **_):
        pixels = [np.asarray(image).reshape(8, 8, -1) for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)}

    return Reader(ViTForImageClassification(config), processor=processor)


def pictures(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / file)
    return folder


def classes(reader, source, **options):
    return [
        int(sample["labels"]) if "labels" in sample else None
        for sample in reader.samples(source, **{"count": 99, "length": 9, **options})
    ]


def text_classifier(*names):
    return regression_reader(id2label=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("rows", "line"), [("a, b,1\nc, d,0\n", 2), ("a, b,1\nc,0\n", 2), ("a,1\nb, c,0\n", 3), ("a, b,\nc, d,\n", 2)]
)
def test_a_csv_with_more_fields_than_its_header_is_refused(tmp_path, rows, line):
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    with pytest.raises(CalibrationError, match=rf"line {line} of .*a\.csv: found 3 fields, more than the header"):
        text_classifier("x", "y").samples(tmp_path / "a.csv", count=9, length=9)


def test_text_before_an_empty_last_field_is_not_lost(chat, tmp_path):
    """Pandas dropped `two,three` from every row, without a warning."""
    (tmp_path / "a.csv").write_text("text\none,two,three,\nfour,five,six,\n")
    with pytest.raises(CalibrationError, match=r"line 2 of .*a\.csv: found 4 fields"):
        chat.samples(tmp_path / "a.csv", count=9, length=9)


def test_two_columns_of_text_are_refused(chat, tmp_path):
    (tmp_path / "a.csv").write_text("text,text\none two,three four\n")
    with pytest.raises(CalibrationError, match=r"columns of .*a\.csv: found two columns 'text'. Leave one"):
        chat.samples(tmp_path / "a.csv", count=9, length=9)


def test_fields_of_a_csv_may_be_long(chat, tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text\n" + "word " * 40_000 + "\n")
    assert chat.samples(tmp_path / "a.csv", count=1, length=9)[0]["input_ids"].shape == (9,)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_name_with_brackets_is_that_file_and_no_other(chat, tmp_path, suffix):
    """As a pattern, `rows[1]` stands for `rows1`: the other file was read, without a word."""
    for name, text in (("rows1", "the wrong file"), ("rows[1]", "the right file"), ("rows*", "the third file")):
        rows_of(tmp_path, [{"text": text}], suffix).rename(tmp_path / f"{name}{suffix}")
    for name, text in (("rows[1]", "the right file"), ("rows*", "the third file")):
        (sample,) = chat.samples(tmp_path / f"{name}{suffix}", count=9, length=9)
        assert chat.tokenizer.decode(sample["input_ids"]) == text


def test_a_folder_with_brackets_is_that_folder(tmp_path):
    for folder, label in (("one1", 1), ("one[1]", 2)):
        pictures(tmp_path, f"{folder}/a.png", f"{folder}/test.png")
        (tmp_path / folder / "metadata.csv").write_text(f"file_name,label\na.png,{label}\ntest.png,{label}\n")
    assert classes(image_reader(), tmp_path / "one[1]") == [2, 2]


def test_all_images_of_a_folder_are_read_whatever_their_names(tmp_path):
    flat = pictures(tmp_path / "flat", "beach.png", "train_station.png", "test photo.png", "eval-1.png", ".hidden.png")
    assert classes(image_reader(), flat) == [None] * 4
    deep = pictures(tmp_path / "deep", "bus/1.png", "car/train_2.png", "test/test-3.png", "test/4.png")
    assert classes(image_reader(), deep) == [0, 1, 2, 2]
    assert classes(image_reader(), pictures(tmp_path / "one", "a/1.png", "a/2.png")) == [0, 0]


def test_of_splits_the_folder_train_is_read(tmp_path):
    files = ("train/a/1.png", "train/b/2.png", "test/a/3.png", "validation/a/4.png")
    assert classes(image_reader(), pictures(tmp_path / "x", *files)) == [0, 1]
    assert classes(image_reader(), pictures(tmp_path / "y", "train/1.png", "test/2.png")) == [None]
    with pytest.raises(
        CalibrationError, match=r"found \['dev', 'test'\], expected train. Give the folder of one split"
    ):
        classes(image_reader(), pictures(tmp_path / "z", "dev/a/1.png", "test/a/1.png"))


@pytest.mark.parametrize(
    "files", [("a/1.png", "b/2.png", "3.png"), ("a/1.png", "b/x/2.png"), ("x/a/1.png", "x/b/1.png")]
)
def test_images_at_other_depths_are_refused(tmp_path, files):
    with pytest.raises(CalibrationError, match="images of .*: found .*, expected all in the folder itself, or each"):
        classes(image_reader(), pictures(tmp_path, *files))


def test_a_table_of_metadata_beside_images_has_their_labels(tmp_path):
    pictures(tmp_path, "a.png", "test.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,2\ntest.png,1\n")
    assert sorted(classes(image_reader(), tmp_path)) == [1, 2]


@pytest.mark.parametrize("label", [str, int, float])
def test_class_names_that_are_numbers_are_names(tmp_path, label):
    stars = text_classifier("1", "2", "3", "4", "5")
    path = rows_of(tmp_path, [{"text": "a", "label": label(n)} for n in (1, 2, 4)])
    assert classes(stars, path) == [0, 1, 3]
    path = rows_of(tmp_path, [{"text": "a", "label": label(n)} for n in (0, 1, 4)])
    assert classes(stars, path) == [0, 1, 4], "not all of them are names"


def test_true_and_false_are_names_where_the_model_has_such(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,True\nb,False\n")
    assert classes(text_classifier("True", "False"), tmp_path / "a.csv") == [0, 1]
    assert classes(text_classifier("no", "yes"), tmp_path / "a.csv") == [1, 0]


def test_class_names_are_compared_without_case_where_that_is_clear(tmp_path):
    path = rows_of(tmp_path, [{"text": "a", "label": "Spam"}, {"text": "b", "label": "HAM"}])
    assert classes(text_classifier("spam", "ham"), path) == [0, 1]
    with pytest.raises(CalibrationError, match=r"found \['HAM', 'Spam'\], expected .* class names"):
        classes(text_classifier("spam", "ham", "Ham"), path)


def test_folders_are_matched_with_the_models_class_names(tmp_path):
    folder = pictures(tmp_path, "cat/1.png", "dog/1.png")
    assert classes(image_reader(["Dog", "Cat"]), folder) == [1, 0]
    assert classes(image_reader(["LABEL_0", "LABEL_1"]), folder) == [0, 1], "numbered in alphabetical order"
    others = image_reader(["tench", "goldfish"])
    with pytest.raises(CalibrationError, match=r"found \['cat', 'dog'\], expected .* \['goldfish', 'tench'\]"):
        classes(others, folder)
    assert len(others.batches(folder, count=9, length=9)[0]["pixel_values"]) == 2, "a model runs on them"


def test_only_the_images_that_are_drawn_are_decoded(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "images", *(f"{name}/{n}.png" for n in range(20) for name in "ab"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    columns = {"image": [str(folder / "a" / "0.png")] * 40, "label": [0, 1] * 20}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, *args, **kw: decoded.append(1) or decode(self, *args, **kw)
    )
    for source in (folder, tmp_path / "x.parquet"):
        decoded.clear()
        generator = torch.Generator().manual_seed(0)
        assert set(classes(image_reader(), source, count=8, generator=generator)) == {0, 1}
        assert len(decoded) == 8


def test_rows_of_tensors_are_drawn_as_those_of_tables(tmp_path):
    save_file({"x": torch.arange(100.0)[:, None], "labels": torch.arange(100)}, tmp_path / "x.safetensors")
    options = {"count": 9, "length": 9}
    first, again = (
        [int(label) for _, label in Reader(nn.Linear(1, 1)).samples(tmp_path / "x.safetensors", **options, generator=g)]
        for g in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert first == again == torch.randperm(100, generator=torch.Generator().manual_seed(3))[:9].sort().values.tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_16_bits_are_scaled_to_8(tmp_path, channels):
    wide = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "x.png")
    Image.fromarray(wide.astype(np.int32)).save(tmp_path / "y.tif")
    for sample in image_reader(channels=channels).samples(tmp_path, count=9, length=9):
        assert sample["pixel_values"].shape == (channels, 8, 8)
        assert torch.equal(sample["pixel_values"][0], torch.from_numpy((wide // 256).astype(np.uint8)))


def test_images_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "x.png").write_text("none")
    with pytest.raises(CalibrationError, match=r"cannot read image .*x.png"):
        classes(image_reader(), tmp_path)
    with pytest.raises(CalibrationError, match="column 'image' of .*: found 'x.png', expected images"):
        classes(image_reader(), rows_of(tmp_path, [{"image": "x.png"}]))


def test_a_decoder_that_classifies_needs_the_padding_token(tmp_path):
    from transformers import GPT2ForSequenceClassification

    tokenizer = regression_reader(num_labels=2).tokenizer
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(tokenizer), n_positions=64, num_labels=2)
    reader = Reader(GPT2ForSequenceClassification(config), tokenizer)
    path = rows_of(tmp_path, [{"text": "a", "label": 0}, {"text": "a b c", "label": 1}])
    ids = torch.ones(2, 3, dtype=torch.long)
    save_file({"input_ids": ids, "labels": torch.tensor([0, 1])}, tmp_path / "x.safetensors")
    for source in (path, tmp_path / "x.safetensors"):
        for read in (reader.samples, reader.batches):
            with pytest.raises(CalibrationError, match="no pad_token_id in its configuration.*Set pad_token_id in"):
                read(source, count=9, length=9)
    assert classes(reader, path, count=1) in ([0], [1]), "one row needs no padding"
    reader.model.config.pad_token_id = tokenizer.pad_token_id
    assert classes(reader, path) == [0, 1]


def unlabeled_models():
    from transformers import BertForTokenClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = regression_reader(num_labels=2).tokenizer
    config = BertConfig(**sizes, vocab_size=len(tokenizer))
    kinds = (BertForMaskedLM, BertForTokenClassification, BertForSequenceClassification)
    return [*(Reader(kind(config), tokenizer) for kind in kinds), Reader(tiny("t5")[0], tokenizer)]


def test_text_is_its_own_label_for_causal_language_models_only(tmp_path):
    (tmp_path / "a.txt").write_text("some words and more")
    save_file({"input_ids": torch.ones(2, 3).long()}, tmp_path / "x.safetensors")
    table = rows_of(tmp_path, [{"text": "some words", "labels": 1}])
    dos = ["Give a .safetensors file with"] * 2 + [
        "Give rows with text and label",
        "Give rows with prompt and completion",
    ]
    for reader, do in zip(unlabeled_models(), dos, strict=True):
        for source in (tmp_path / "a.txt", tmp_path / "x.safetensors", table):
            with pytest.raises(CalibrationError, match=rf"has no labels for \w+.*{do}"):
                reader.samples(source, count=2, length=3)
            assert len(reader.batches(source, count=2, length=3)[0]["input_ids"]) >= 1, "a model runs on it"
        with pytest.raises(CalibrationError, match="has no labels for"):
            reader.text_samples("some words and more", count=2, length=3)
        assert reader.text_batches("some words and more", count=2, length=3)


def test_classes_are_refused_for_a_model_that_writes_text(chat, tmp_path):
    table = rows_of(tmp_path, [{"text": "hello there", "label": 1}, {"text": "foo bar", "label": 0}], ".csv")
    adapted = get_peft_model(GPT2LMHeadModel(chat.model.config), LoraConfig(target_modules=["c_attn"]))
    for model in (chat.model, adapted, tiny("t5")[0]):
        reader = Reader(model, chat.tokenizer)
        with pytest.raises(
            CalibrationError,
            match=r"columns of .*rows.csv: found \['label', 'text'\], expected no label, which is for a classifier and "
            r"not for (GPT2LMHeadModel|T5ForConditionalGeneration)\. Leave the column label out, give rows with prompt",
        ):
            reader.samples(table, count=2, length=9)
        assert len(reader.batches(table, count=2, length=9)[0]["input_ids"]) == 2, "a model runs on the texts"


def test_tensors_of_tokens_are_checked_when_they_are_read(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=32, n_positions=16))
    reader, path = Reader(model, None), tmp_path / "x.safetensors"
    ids = torch.arange(24, dtype=torch.int32).view(2, 12)
    save_file({"input_ids": ids, "labels": ids.clone()}, path)
    sample = reader.samples(path, count=2, length=99)[0]
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.long
    save_file({"input_ids": torch.ones(2, 17).long()}, path)
    with pytest.raises(CalibrationError, match="found 17 tokens per sample, expected at most 16, the model's context"):
        reader.samples(path, count=2, length=99)
    save_file({"input_ids": ids.long(), "attention_mask": torch.ones(2, 11).long()}, path)
    with pytest.raises(
        CalibrationError, match=r"attention_mask in .*: found shape \(2, 11\), expected shape \(2, 12\)"
    ):
        reader.samples(path, count=2, length=99)


def test_classes_are_refused_for_a_model_that_labels_tokens(tmp_path):
    table = rows_of(tmp_path, [{"text": "hello there", "label": 1}, {"text": "foo bar", "label": 0}], ".csv")
    for reader in unlabeled_models()[:2]:
        with pytest.raises(
            CalibrationError, match=r"not for BertFor(MaskedLM|TokenCl\w+)\. Give a .safetensors file with"
        ):
            reader.samples(table, count=2, length=9)
        assert len(reader.batches(table, count=2, length=9)[0]["input_ids"]) == 2, "a model runs on the texts"
    assert classes(unlabeled_models()[2], table) == [1, 0]


def test_labels_in_a_column_are_refused_for_a_classifier(tmp_path):
    save_file({"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2, 1).long()}, tmp_path / "x.safetensors")
    with pytest.raises(CalibrationError, match=r"labels in .*: found shape \(2, 1\), expected shape \(2,\)"):
        text_classifier("x", "y").samples(tmp_path / "x.safetensors", count=2, length=3)


def test_texts_and_prompts_begin_as_the_tokenizer_begins_them(tmp_path):
    from tokenizers.processors import TemplateProcessing

    from weightsmith.embedded import folder

    tokenizer = load_tokenizer(folder("smollm2"))
    start = tokenizer.bos_token_id
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(tokenizer), n_positions=64)
    reader = Reader(GPT2LMHeadModel(config), tokenizer)
    text = rows_of(tmp_path, [{"text": "the sky"}]).rename(tmp_path / "text.jsonl")
    pair = rows_of(tmp_path, [{"prompt": "the", "completion": " sky"}]).rename(tmp_path / "pair.jsonl")
    (tmp_path / "a.txt").write_text("the sky is blue")
    plain = [reader.samples(path, count=1, length=4)[0] for path in (text, pair, tmp_path / "a.txt")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, start)]
    )
    assert tokenizer("the sky")["input_ids"][0] == start
    begun = [reader.samples(path, count=1, length=4)[0] for path in (text, pair, tmp_path / "a.txt")]
    assert begun[0]["input_ids"].tolist() == tokenizer("the sky")["input_ids"]
    assert begun[1]["input_ids"].tolist() == [start, *plain[1]["input_ids"].tolist()]
    assert begun[1]["labels"].tolist() == [-100, *plain[1]["labels"].tolist()]
    assert begun[2]["input_ids"].tolist() == plain[2]["input_ids"].tolist(), "a window begins anywhere"
    own = rows_of(tmp_path, [{"text": f"{tokenizer.bos_token}the sky"}])
    assert torch.equal(reader.samples(own, count=1, length=9)[0]["input_ids"], begun[0]["input_ids"]), "not twice"
    with pytest.raises(CalibrationError, match="found no tokens"):
        reader.samples(rows_of(tmp_path, [{"text": ""}]), count=1, length=9)


def test_files_of_other_kinds_are_refused_for_what_they_are(chat, tmp_path):
    pictures(tmp_path, "x.png")
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    for read in (chat.samples, chat.batches):
        with pytest.raises(CalibrationError, match="x.png is one image: expected a folder of images"):
            read(tmp_path / "x.png", count=4, length=8)
        with pytest.raises(CalibrationError, match=r"cannot read .*x.npz: found a .npz file. Save tensors as"):
            read(tmp_path / "x.npz", count=4, length=8)
    path = rows_of(tmp_path, [{"text": "some words"}]).rename(tmp_path / "x.ndjson")
    assert chat.tokenizer.decode(chat.samples(path, count=1, length=8)[0]["input_ids"]) == "some words"


@pytest.mark.parametrize("name", ["some/x.png", "data.npz", "data.ndjson", "./photos", "/a/b", "a/b/c"])
def test_what_is_missing_and_no_hub_id_is_not_asked_for_there(chat, name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CalibrationError, match=f"no file or folder {name}.*id of a Hugging Face data set"):
        chat.samples(name, count=4, length=8)


def test_all_rows_say_whether_labels_are_names(tmp_path):
    """Of indices 0, 1 and 2, four that are drawn may all be names of a model with the classes 1, 2 and 3."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "a", "label": n % 3}) + "\n" for n in range(30)))
    reader = text_classifier("1", "2", "3")
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        samples = reader.samples(tmp_path / "rows.jsonl", count=3, length=8, generator=draw)
        rows = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:3].sort().values
        assert [int(sample["labels"]) for sample in samples] == (rows % 3).tolist()


def test_metadata_beside_splits_is_that_of_the_training_data(tmp_path):
    pictures(tmp_path, "train/a.png", "test/a.png")
    for split, label in (("train", 1), ("test", 2)):
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\na.png,{label}\n")
    assert classes(image_reader(), tmp_path) == [1]


def test_images_of_32_bits_that_hold_8_are_not_scaled(tmp_path):
    pixels = np.arange(0, 256, 4, dtype=np.int32).reshape(8, 8)
    for name, factor in (("eight.tif", 1), ("sixteen.tif", 257)):
        Image.fromarray(pixels * factor).save(tmp_path / name)
        assert np.asarray(picture(Image.open(tmp_path / name), "L", name)).tolist() == pixels.tolist()


def test_the_digest_of_samples_that_are_random_stays_and_changes_no_generator():
    class Noisy:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002

    first = samples_digest(Noisy())
    torch.rand(1)
    drawn = torch.random.get_rng_state()
    assert samples_digest(Noisy()) == first
    assert torch.equal(torch.random.get_rng_state(), drawn)
    real, imaginary = torch.ones(2000, dtype=torch.complex64), torch.full((2000,), 1j)
    assert sample_digest(real) != sample_digest(imaginary)
    assert sample_digest([1, 2]) == sample_digest(torch.tensor([1.0, 2.0]))


def test_a_pair_stays_two_arguments_of_a_users_model_with_a_configuration():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.layer = {"hidden": 2}, nn.Linear(2, 2)

        def forward(self, x, times=None):
            return self.layer(x) if times is None else self.layer(x) * times

    model, x = Timed(), torch.randn(3, 2)
    times = torch.randn(3, 1)
    assert torch.equal(call(model, (x, times)), model(x, times))
