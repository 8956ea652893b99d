import copy

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from weightsmith.core.data import read_text, token_windows
from weightsmith.core.errors import CalibrationError
from weightsmith.core.models import text_features
from weightsmith.embedded import load


def test_windows_are_spread_or_drawn():
    ids = torch.arange(100)
    spread = token_windows(ids, length=10, count=4, batch_size=3)
    assert [len(batch["input_ids"]) for batch in spread] == [3, 1]
    assert [row[0].item() for batch in spread for row in batch["input_ids"]] == [0, 30, 60, 90]
    drawn = [token_windows(ids, length=10, count=4, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*drawn, strict=True))
    assert all(bool((batch["input_ids"].diff() == 1).all()) for batch in drawn[0])


def test_bad_input(tmp_path):
    with pytest.raises(CalibrationError, match="the text has 5 tokens, one window needs 6"):
        token_windows(torch.arange(5), length=6, count=1)
    with pytest.raises(CalibrationError, match="found 0 of 4 tokens"):
        token_windows(torch.arange(5), length=4, count=0)
    with pytest.raises(CalibrationError, match="cannot read text file"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="is empty"):
        read_text(tmp_path / "empty.txt")
    with pytest.raises(CalibrationError, match="cannot read"):
        read_text(tmp_path / "binary.txt")


def test_vectors_of_texts_depend_on_no_padding_and_end_with_the_context():
    tokenizer = copy.deepcopy(load("minilm")[1])
    tokenizer.padding_side, tokenizer.model_max_length = "left", 10**30
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    texts = ["the cat", "a longer text about the dog that ran", "the end " * 30]
    alone = torch.cat([text_features([text], model, tokenizer) for text in texts])
    torch.testing.assert_close(text_features(texts, model, tokenizer), alone)
