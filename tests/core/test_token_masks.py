"""A mask belongs to its stream."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from weightsmith.core.models import find_layers, observe, stream
from weightsmith.core.statistics import InputStatistics
from weightsmith.testing import tiny

SHORT = {"encoder": 12, "decoder": 9}
"""Real tokens of the last of eight sequences, of twenty."""


def bart():
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = BartConfig(**sizes, **widths, vocab_size=64, max_position_embeddings=64, pad_token_id=0)
    return BartForConditionalGeneration(config).eval()


MODELS = {"t5": lambda: tiny("t5")[0], "bart": bart}


def translations(fill, mask_decoder):
    """Eight pairs of twenty tokens each, the last pair padded to twenty with arbitrary tokens."""
    ids = torch.randint(3, 64, (2, 8, 20), generator=torch.Generator().manual_seed(1))
    masks = {part: torch.ones(8, 20, dtype=torch.long) for part in SHORT}
    for row, (part, real) in enumerate(SHORT.items()):
        masks[part][-1, real:] = 0
        ids[row, -1, real:] = fill if part == "encoder" or mask_decoder else 0
    batch = {"input_ids": ids[0], "attention_mask": masks["encoder"], "decoder_input_ids": ids[1]}
    return batch | ({"decoder_attention_mask": masks["decoder"]} if mask_decoder else {})


@pytest.mark.parametrize("mask_decoder", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_streams_of_an_encoder_decoder_of_one_length(name, mask_decoder):
    model, batch = MODELS[name](), translations(5, mask_decoder)
    for block in stream(model, [batch]):
        for layer, statistics in block.observe(block.layers, InputStatistics).items():
            cross = "EncDecAttention" in layer or "encoder_attn" in layer
            reads_encoder = block.name.startswith(("encoder", "model.encoder")) or (
                cross and layer.endswith((".k", ".v", "k_proj", "v_proj"))
            )
            assert statistics.rows == 7 * 20 + SHORT["encoder" if reads_encoder else "decoder"], layer


@pytest.mark.parametrize("name", MODELS)
def test_what_pads_changes_no_statistic(name):
    model, found = MODELS[name](), []
    for fill in (5, 50):
        sums = {}
        for block in stream(model, [translations(fill, mask_decoder=True)]):
            for layer, statistics in block.observe(block.layers, InputStatistics).items():
                sums[layer] = statistics.sums_3I
        found.append(sums)
    for layer, sums in found[0].items():
        assert torch.allclose(sums, found[1][layer], atol=1e-4), layer


@pytest.mark.parametrize("stable", [True, False])
def test_frames_of_padded_sound_do_not_count(stable):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**sizes, **convolutions, **positions, vocab_size=9, do_stable_layer_norm=stable)
    model = Wav2Vec2ForCTC(config).eval()
    mask = (torch.arange(400) < torch.tensor([400, 400, 150])[:, None]).long()
    batch = {"input_values": torch.randn(3, 400) * mask, "attention_mask": mask}
    frames = [((samples - 10) // 5 + 1 - 4) // 2 + 1 for samples in (400, 400, 150)]
    for block in stream(model, [batch], include="*encoder*"):
        found = block.observe(block.layers, InputStatistics)
        assert {statistics.rows for statistics in found.values()} == {sum(frames)}
    whole = observe(model, [batch], find_layers(model, "*encoder.layers*"), InputStatistics)
    assert {statistics.rows for statistics in whole.values()} == {sum(frames)}


@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_of_text_is_not_for_images(whole):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 64, "max_position_embeddings": 32, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 4})
    model = CLIPModel(config).eval()
    ids, mask = torch.randint(3, 64, (4, 17)), torch.ones(4, 17, dtype=torch.long)  # as many as patches
    mask[-1, 5:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.rand(4, 3, 16, 16)}
    statistics = {}
    for block in stream(model, [batch]):
        if whole:
            statistics |= observe(model, [batch], block.layers, InputStatistics)
        else:
            statistics |= block.observe(block.layers, InputStatistics)
    for layer, one in statistics.items():
        assert one.rows == (4 * 17 if layer.startswith("vision") else 3 * 17 + 5), layer


class Keywords(nn.Module):
    """Calls its layers with keyword arguments."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(input=self.first(input=x))


def test_layers_called_with_keywords():
    for block in stream(Keywords(), [torch.randn(5, 4)]):
        assert [s.rows for s in block.observe(block.layers, InputStatistics).values()] == [5, 5]
