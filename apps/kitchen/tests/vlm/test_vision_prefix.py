"""The vision-language model on a tiny random Llama: grouping, counts, LoRA, labels, padding, loading."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from weightsmith_kitchen import ModelError
from weightsmith_kitchen.vlm.model import PLACEHOLDER, VisionPrefixLM
from weightsmith_kitchen.vlm.parts import group_tokens

PROMPT = f"[INST] <Img>{PLACEHOLDER}</Img> [vqa] what [/INST]"


class Letters:
    """One token per character."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[3 + ord(letter) % 120 for letter in text])

    def decode(self, row, skip_special_tokens):
        return " ".join(str(int(token)) for token in row if int(token) > 2)


class Patches(nn.Module):
    """Images to 16 tokens of width 12."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, 4)

    def forward(self, images):
        return self.conv(images).flatten(2).transpose(1, 2)


def make(seed=0, spread=0.02):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=spread,
    )
    return VisionPrefixLM(Patches(), LlamaForCausalLM(config).eval(), Letters(), nn.Linear(48, 32), group=4).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_grouping_joins_consecutive_tokens():
    tokens = torch.rand(1, 1024, 1408)
    joined = group_tokens(tokens, 4)
    assert joined.shape == (1, 256, 5632)
    for k, j in ((0, 0), (7, 3), (255, 2)):
        assert torch.equal(joined[0, k, 1408 * j : 1408 * (j + 1)], tokens[0, 4 * k + j])
    with pytest.raises(ModelError, match="N % group"):
        group_tokens(tokens[:, :1023], 4)


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        projector = nn.Linear(5632, 4096)
        lm = LlamaForCausalLM(LlamaConfig())  # 32 layers of width 4096
        vlm = VisionPrefixLM(nn.Identity(), lm, Letters(), projector).add_lora()
    assert sum(p.numel() for p in projector.parameters()) == 23_072_768
    trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    assert trained == 23_072_768 + 33_554_432 == 56_627_200


def test_new_lora_changes_nothing_and_merges(images):
    vlm = make()
    prompts, answers = [PROMPT] * 3, ["1 cup of rice", "a", "bb"]
    with torch.no_grad():
        base = vlm(images, prompts, answers).logits
        vlm.add_lora(r=4, alpha=1).eval()
        assert torch.equal(vlm(images, prompts, answers).logits, base)
        for name, value in vlm.lm.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        layer = vlm.lm.base_model.model.model.layers[0].self_attn.q_proj
        before = layer.base_layer.weight.clone()
        adapted = vlm(images, prompts, answers).logits
        assert (adapted - base).abs().max() > 1e-3
        vlm.lm.merge_adapter()
        wanted = before + 0.25 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(layer.base_layer.weight, wanted, atol=1e-6)
        assert torch.allclose(vlm(images, prompts, answers).logits, adapted, atol=1e-5)
        vlm.lm.unmerge_adapter()
        assert torch.allclose(layer.base_layer.weight, before, atol=1e-6)


def test_labels_are_the_answer_and_its_end(images):
    vlm = make()
    answers = ["abc", "a", "abcdef"]
    embeds, mask, labels = vlm.inputs(images, [PROMPT] * 3, answers)
    start = len(PROMPT) - len(PLACEHOLDER) + 4 + 1  # 4 visual tokens and BOS
    for row, answer in enumerate(answers):
        ids = [*Letters()(answer, False).input_ids, 2]
        assert labels[row, start : start + len(ids)].tolist() == ids
        assert (labels[row] != -100).sum() == len(ids)
        assert mask[row].sum() == start + len(ids)
    at = 1 + PROMPT.index(PLACEHOLDER)
    assert torch.equal(embeds[:, at : at + 4], vlm.visual_prefix(images))


def test_gradients_reach_projector_and_lora_only(images):
    vlm = make().add_lora(r=2).train()
    assert not vlm.vision.training
    vlm(images, [PROMPT] * 3, ["a", "b", "c"]).loss.backward()
    moved = {name for name, value in vlm.named_parameters() if value.grad is not None}
    assert all("lora" in name or "projector" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert "projector.weight" in moved


def test_batched_generation_is_that_of_one_by_one(images):
    vlm = make()
    prompts = [PROMPT, f"{PLACEHOLDER} a much longer question than the others [/INST]", f"{PLACEHOLDER}?"]
    together = vlm.generate(images, prompts, max_new_tokens=12)
    alone = [vlm.generate(images[k : k + 1], prompts[k : k + 1], max_new_tokens=12)[0] for k in range(3)]
    assert together == alone
    assert all(together)


def test_numbers_of_a_batch_are_those_of_one_by_one_with_learned_positions(images):
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=32, n_layer=1, n_head=2, initializer_range=0.2)).eval()
    vlm = VisionPrefixLM(Patches(), lm, Letters(), nn.Linear(48, 32), group=4).eval().add_number_head()
    prompts = [PROMPT, f"{PLACEHOLDER} a much longer question than the others [/INST]", f"{PLACEHOLDER}?"]
    together = vlm.numbers(images, prompts)
    alone = torch.cat([vlm.numbers(images[k : k + 1], prompts[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone)


def test_learns_and_loads_again(images, tmp_path):
    vlm = make(spread=0.2).add_lora(r=4, alpha=8, dropout=0.0).train()
    optimizer = torch.optim.Adam([p for p in vlm.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(25):
        loss = vlm(images, [PROMPT] * 3, ["1 cup", "2 cup", "3 cup"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    vlm.eval().save(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors", "projector.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }
    again = make(spread=0.2).add_lora(r=4, alpha=8).load(tmp_path).eval()
    with torch.no_grad():
        one, two = (model(images, [PROMPT] * 3, ["a"] * 3).logits for model in (vlm, again))
    assert torch.equal(one, two)
    with pytest.raises(ModelError, match=r"missing: .*k_proj"):
        make().add_lora(r=4, target_modules=["q_proj", "k_proj", "v_proj"]).load(tmp_path)
    with pytest.raises(ModelError, match=r"unexpected: .*v_proj"):
        make().add_lora(r=4, target_modules=["q_proj"]).load(tmp_path)
    with pytest.raises(ModelError, match="add_lora"):
        make().load(tmp_path)
    with pytest.raises(ModelError, match="other shapes: .*lora_A"):
        make().add_lora(r=2).load(tmp_path)


def test_bad_input(images):
    vlm = make()
    for prompt, count in (("no image", 0), (PLACEHOLDER * 2, 2)):
        with pytest.raises(ModelError, match=f"found {count} times|{count} times"):
            vlm.generate(images[:1], [prompt])
    with pytest.raises(ModelError, match="answer 0"):
        vlm(images[:1], [PROMPT], [""])
    with pytest.raises(ModelError, match="as many"):
        vlm(images, [PROMPT], ["a"])
    with pytest.raises(ModelError, match="<= 1024"):
        vlm(images[:1], [PROMPT], ["a" * 1100])
    with pytest.raises(ModelError, match="width 48"):
        VisionPrefixLM(Patches(), vlm.lm, Letters(), nn.Linear(48, 32), group=2)(images[:1], [PROMPT], ["a"])
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="c_attn"):
        VisionPrefixLM(Patches(), gpt, Letters(), nn.Linear(48, 32)).add_lora()
