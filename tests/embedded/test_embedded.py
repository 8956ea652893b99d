import json

import pytest
import torch
import transformers

from weightsmith import embedded
from weightsmith.core.data import token_ids
from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import CheckpointReader, save_model
from weightsmith.core.metrics import perplexity


def test_smollm2_speaks_english():
    model, tokenizer = embedded.load("smollm2")
    ids = token_ids(tokenizer, "The capital of France is")
    assert tokenizer.decode(model(ids[None]).logits[0, -1].argmax()).strip() == "Paris"
    assert perplexity(model, token_ids(tokenizer, embedded.text())[:512]) < 40
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert CheckpointReader(embedded.folder("smollm2")).nbytes == 4 * sum(p.numel() for p in model.parameters())


def test_minilm_knows_what_is_alike():
    model, tokenizer = embedded.load("minilm")
    batch = tokenizer(
        ["a cat sits on a mat", "a kitten rests on a rug", "stocks fell on Monday"], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    x = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert x[0] @ x[1] > 0.4 > x[0] @ x[2]


def test_efficientnet_is_trained():
    model, tokenizer = embedded.load("efficientnet-lite0")
    assert tokenizer is None
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_text_halves_share_no_topic_and_digits_are_fixed():
    calibration, evaluation = embedded.text("calibration"), embedded.text("evaluation")
    assert not set(calibration.split("\n\n")[0:1]) & set(evaluation.split("\n\n")[0:1])
    images, classes = embedded.digits()
    assert (images.min(), images.max()) == (0, 1)
    assert torch.equal(embedded.digits()[1], classes)


def test_open_model(tmp_path):
    assert embedded.open_model("embedded:efficientnet-lite0").folder is None
    model, tokenizer = embedded.load("minilm")
    save_model(model, tmp_path / "copy", tokenizer=tokenizer)
    opened = embedded.open_model(tmp_path / "copy", dtype=torch.bfloat16)
    assert opened.model.dtype == torch.bfloat16
    assert opened.folder == tmp_path / "copy"
    assert opened.tokenizer("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    with pytest.raises(CheckpointError, match="no embedded model folder 'gpt5'.*smollm2"):
        embedded.open_model("embedded:gpt5")
    with pytest.raises(CheckpointError, match="there is no folder 'nobody/nothing', and no hub model"):
        embedded.open_model("nobody/nothing")


def test_a_folder_of_a_model_of_sound_has_no_image_processor(tmp_path):
    sound = transformers.WhisperFeatureExtractor(feature_size=16)
    image = transformers.CLIPImageProcessor(size={"shortest_edge": 32})
    sound.save_pretrained(tmp_path / "sound")
    (tmp_path / "nested").mkdir()
    nested = {"processor_class": "WhisperProcessor", "feature_extractor": sound.to_dict()}
    (tmp_path / "nested" / "processor_config.json").write_text(json.dumps(nested))
    image.save_pretrained(tmp_path / "both")
    (tmp_path / "both" / "processor_config.json").write_text(json.dumps(nested))
    assert embedded.load_processor(tmp_path / "sound") is None
    assert embedded.load_processor(tmp_path / "nested") is None
    assert embedded.load_processor(tmp_path / "both").size == image.size
