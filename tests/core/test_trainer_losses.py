"""The losses that the Trainer is given are those of the models themselves, whichever way these place their labels."""

from __future__ import annotations

import pytest
import torch
import transformers

from weightsmith.core.errors import CalibrationError
from weightsmith.core.training import trainer_cross_entropy

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "LlamaForCausalLM": SIZES,
    "BertForMaskedLM": SIZES,
    "BertForTokenClassification": SIZES | {"num_labels": 64},
    "LongformerForMaskedLM": SIZES | {"attention_window": [8], "pad_token_id": 1},
    "LongformerForTokenClassification": SIZES | {"attention_window": [8], "pad_token_id": 1, "num_labels": 64},
    "XLNetForTokenClassification": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "num_labels": 64},
    "XLNetLMHeadModel": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
    "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "LEDForConditionalGeneration": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 8}
    | {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    | {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
    "SwitchTransformersForConditionalGeneration": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    | {"num_layers": 2, "num_decoder_layers": 2, "num_experts": 2, "num_sparse_decoder_layers": 1},
}


def built(name):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(vocab_size=64, decoder_start_token_id=0, **MODELS[name])
    return kind(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_models_own(name):
    model = built(name)
    labels = torch.randint(64, (2, 16))
    labels[0, 8:] = -100
    output = model(input_ids=torch.randint(5, 60, (2, 16)), labels=labels)
    routing = sum(getattr(output, f"{part}_aux_loss", None) or 0.0 for part in ("encoder", "decoder"))
    assert trainer_cross_entropy(output, labels).item() == pytest.approx(output.loss.item() - float(routing), rel=1e-5)


def test_a_tuple_does_not_say_what_model_it_is_from():
    ids = torch.randint(64, (2, 16))
    with pytest.raises(CalibrationError, match="found a tuple.*return_dict=True"):
        trainer_cross_entropy(built("BertForTokenClassification")(input_ids=ids, return_dict=False), ids)
