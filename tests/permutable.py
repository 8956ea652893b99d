"""Small networks of every kind of connection that permutations must be carried through."""

from __future__ import annotations

import torch
import transformers as t
from torch import nn
from torch.nn import functional as F

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
IDS = {"input_ids": torch.randint(1, 60, (3, 10), generator=torch.Generator().manual_seed(0))}


class Residual(nn.Module):
    """A stem, a block with an identity shortcut and one with a convolution in its shortcut."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.c1, self.n1 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.c2, self.n2 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.d1, self.m1 = nn.Conv2d(8, 12, 3, stride=2, padding=1), norm(12)
        self.d2, self.m2 = nn.Conv2d(12, 12, 3, padding=1), norm(12)
        self.short, self.head = nn.Conv2d(8, 12, 1, stride=2), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.n0(self.stem(x)))
        x = F.relu(x + self.n2(self.c2(F.relu(self.n1(self.c1(x))))), inplace=True)
        x = F.relu(self.short(x) + self.m2(self.d2(F.relu(self.m1(self.d1(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dense(nn.Module):
    """Concatenations, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.norm, self.c = nn.BatchNorm2d(9), nn.Conv2d(9, 6, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(15, 7, 2, stride=2), nn.Linear(7, 3)

    def forward(self, x):
        a = self.a(x).relu()
        ab = torch.cat([a, self.b(a).relu()], 1)
        return self.head(self.up(torch.cat([ab, self.c(self.norm(ab))], 1)).mean((2, 3)))


class Gated(nn.Module):
    """One layer makes gate and value; a parametric activation; a weight used twice."""

    def __init__(self):
        super().__init__()
        self.both, self.act, self.down = nn.Linear(6, 24), nn.PReLU(12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        gate, value = self.both(x).chunk(2, -1)
        x = self.down(self.act((F.silu(gate) * value).transpose(1, 2)).transpose(1, 2))
        return torch.einsum("btd,de->bte", x, self.head.weight.T @ self.head.weight)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(6, 10, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def _vgg():
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 4))


def _depthwise():
    mobile = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU6(), nn.Conv2d(16, 6, 1)]
    return nn.Sequential(*mobile, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def _grouped():
    shuffle = [nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.ChannelShuffle(2), nn.Conv2d(12, 6, 3, groups=2)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *shuffle, nn.Flatten(), nn.Linear(96, 4))


def _encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3))


def _phi3():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return t.Phi3ForCausalLM(t.Phi3Config(**small, num_key_value_heads=2, vocab_size=64, pad_token_id=0))


def _tied_llama():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = t.LlamaConfig(**small, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True)
    return t.LlamaForCausalLM(config).bfloat16()


def _convnext():
    return t.ConvNextForImageClassification(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


def _swin():
    return t.SwinForImageClassification(
        t.SwinConfig(image_size=32, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    )


PIXELS = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}

NETS = {
    "vgg": (_vgg, IMAGES, 3),
    "resnet, batch norm": (lambda: Residual(nn.BatchNorm2d), IMAGES, 4),
    "resnet, group norm": (lambda: Residual(lambda c: nn.GroupNorm(4, c)), IMAGES, 8),
    "resnet, layer norm": (lambda: Residual(ChannelsLast), IMAGES, 4),
    "resnet, instance norm": (lambda: Residual(lambda c: nn.InstanceNorm2d(c, affine=True)), IMAGES, 4),
    "depthwise": (_depthwise, IMAGES, 3),
    "grouped": (_grouped, IMAGES, 5),
    "dense": (Dense, IMAGES, 4),
    "gated": (Gated, SEQUENCES, 2),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES, 1),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCES, 1),
    "torch encoder": (_encoder, SEQUENCES, 4),
    "phi3": (_phi3, IDS, 5),
    "tied bf16 llama": (_tied_llama, IDS, 9),
    "convnext": (_convnext, PIXELS, 4),
    "swin": (_swin, PIXELS, 18),
}
"""Name to (how to make it, a batch, the number of its permutations)."""


def mixtral():
    """A mixture of experts, whose kernel knows no float64."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = t.MixtralConfig(**small, num_key_value_heads=2, vocab_size=64, num_local_experts=4)
    torch.manual_seed(0)
    return t.MixtralForCausalLM(config).eval()


def make(name):
    torch.manual_seed(0)
    build, batch, count = NETS[name]
    return build().eval(), batch, count


def roughen(model, seed=0):
    """Random values for whatever initialisation leaves alike: biases, scales, running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.add_(0.3 * noise if "running" in name or tensor.ndim == 1 else 0.3 * (noise - 0.5))
    return model
