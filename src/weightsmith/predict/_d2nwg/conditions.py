r"""What the generator is told of a task: a vector of a few labelled examples of each class.

A classifier's outputs have an order, so what tells the generator about the task must keep it:
:class:`OrderedEncoder` does. :class:`SetEncoder` pools over classes and cannot: it suits whole networks whose outputs
are trained anyway, and may be trained first to agree with the weights' latents (:func:`alignment_loss`).

Legend: ``B`` tasks, ``C`` classes, ``S`` examples of a class, ``F`` features, ``E`` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.core.errors import CalibrationError, HyperparameterError, ShapeError
from weightsmith.core.models import text_features

__all__ = ["OrderedEncoder", "SetEncoder", "alignment_loss", "describe", "draw_shots"]


class OrderedEncoder(nn.Module):
    """Embed the examples, average over those of a class, and put the classes side by side in their order.

    Parameters
    ----------
    features : int
        Of an example.
    classes : int
        Of a task.
    width : int, default: 64
        Embedding of a class.

    Examples
    --------
    >>> OrderedEncoder(features=3, classes=2)(torch.zeros(4, 2, 5, 3)).shape
    torch.Size([4, 128])
    """

    def __init__(self, features: int, classes: int, *, width: int = 64) -> None:
        super().__init__()
        if min(features, classes, width) < 1:
            raise HyperparameterError("features, classes, width", found=(features, classes, width), expected=">= 1")
        self.features, self.classes, self.out_features = features, classes, classes * width
        self.embed = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, support_BCSF: Float[Tensor, "B C S F"]) -> Float[Tensor, "B E"]:
        """Return the condition.

        Raises
        ------
        ShapeError
            If there are other classes or features than the encoder was made for.
        """
        _check(support_BCSF, self.features, self.classes)
        return self.embed(support_BCSF).mean(2).flatten(1)


class SetEncoder(nn.Module):
    """Two set transformers: examples to a class, classes to a task. Neither order matters.

    Parameters
    ----------
    features : int
        Of an example.
    out_features : int, default: 1024
        Embedding of the task.
    width : int, default: 128
        Inside.
    heads : int, default: 2
        Of attention.
    inducing : int, default: 32
        Inducing points.
    class_features : int, default: 512
        Embedding of a class.

    Examples
    --------
    >>> encoder = SetEncoder(features=3, out_features=8)
    >>> support = torch.randn(1, 2, 5, 3)
    >>> torch.allclose(encoder(support), encoder(support.flip(1)), atol=1e-5)
    True
    """

    def __init__(
        self,
        features: int,
        *,
        out_features: int = 1024,
        width: int = 128,
        heads: int = 2,
        inducing: int = 32,
        class_features: int = 512,
    ) -> None:
        super().__init__()
        self.features, self.out_features = features, out_features
        self.within = _SetTransformer(features, class_features, width, heads, inducing)
        self.between = _SetTransformer(class_features, out_features, width, heads, inducing)

    def forward(self, support_BCSF: Float[Tensor, "B C S F"]) -> Float[Tensor, "B E"]:
        """Return the condition.

        Raises
        ------
        ShapeError
            If the examples have other features than the encoder was made for.
        """
        _check(support_BCSF, self.features, None)
        per_class_BCE = self.within(support_BCSF.flatten(0, 1)).unflatten(0, support_BCSF.shape[:2])
        return self.between(per_class_BCE)


def alignment_loss(
    weights_BE: Float[Tensor, "B E"], data_BE: Float[Tensor, "B E"], temperature: float | Tensor = 0.07
) -> Float[Tensor, ""]:
    """Contrast the latents of weights with the conditions of their tasks: each is to find its own among the batch.

    Targets are soft: members whose latents or tasks are alike count as right in part.

    Parameters
    ----------
    weights_BE, data_BE : Tensor of shape (tasks, embedding)
        Latents and conditions of the same members.
    temperature : float or Tensor, default: 0.07
        Of the similarities, > 0.

    Examples
    --------
    >>> round(alignment_loss(torch.eye(4), torch.eye(4), 0.01).item(), 4)
    0.0
    """
    # the authors' embeddings are not normalised: inner products of 1024 numbers saturate the softmax
    weights_BE, data_BE = functional.normalize(weights_BE), functional.normalize(data_BE)
    logits_BB = weights_BE @ data_BE.T / temperature
    targets_BB = ((data_BE @ data_BE.T + weights_BE @ weights_BE.T) / (2 * temperature)).softmax(-1).detach()
    both = functional.cross_entropy(logits_BB, targets_BB) + functional.cross_entropy(logits_BB.T, targets_BB.T)
    return both / 2


def draw_shots(support_BCSF: Float[Tensor, "B C S F"], shots: int) -> Float[Tensor, "B C shots F"]:
    """Draw a few of the examples, others for every task and class.

    Examples
    --------
    >>> draw_shots(torch.zeros(4, 2, 20, 3), 5).shape
    torch.Size([4, 2, 5, 3])
    """
    order = torch.rand(support_BCSF.shape[:3]).argsort(dim=2)[:, :, :shots]
    return support_BCSF.gather(2, order[..., None].expand(-1, -1, -1, support_BCSF.shape[3]))


def describe(
    texts: Sequence[str], model: nn.Module, tokenizer: Any, *, batch_size: int = 32
) -> Float[Tensor, "N 1 1 F"]:
    """Turn descriptions of tasks into what a zoo stores of them: one class with one example each.

    The features are a language model's last hidden states, averaged over a text's tokens. They are computed once, for
    the zoo; an ``OrderedEncoder(features, classes=1)`` with ``shots=1`` then is the condition.

    Parameters
    ----------
    texts : sequence of str
        One description a member, or a new task's.
    model : nn.Module
        A Hugging Face model that returns hidden states; stays as it is.
    tokenizer : object
        Its tokenizer.
    batch_size : int, default: 32
        Texts at once.

    Raises
    ------
    CalibrationError
        If there is no text, or one of them is empty.

    Examples
    --------
    >>> from weightsmith.embedded import load
    >>> describe(["tell apples from pears", "translate to French"], *load("minilm")).shape
    torch.Size([2, 1, 1, 384])
    """
    if not texts or not all(text.strip() for text in texts):
        raise CalibrationError("descriptions of tasks", found=list(texts)[:3], expected="texts, none of them empty")
    return text_features(texts, model, tokenizer, batch_size=batch_size)[:, None, None]


class _Attention(nn.Module):
    """Multihead attention block of the set transformer: queries attend to keys, then a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        # the authors scale by the full width, torch by a head's: a constant that the projections absorb
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.forward_layer = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        hidden = self.first(query + self.attend(query, key, key, need_weights=False)[0])
        return self.second(hidden + functional.relu(self.forward_layer(hidden)))


class _Induced(nn.Module):
    """Self-attention through a few learnt points: linear in the size of the set."""

    def __init__(self, width: int, heads: int, inducing: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(1, inducing, width))
        nn.init.xavier_uniform_(self.points)
        self.gather, self.spread = _Attention(width, heads), _Attention(width, heads)

    def forward(self, items: Tensor) -> Tensor:
        return self.spread(items, self.gather(self.points.expand(len(items), -1, -1), items))


class _SetTransformer(nn.Module):
    """Two induced blocks, pooling by one seed, two self-attention blocks, a linear layer."""

    def __init__(self, features: int, out_features: int, width: int, heads: int, inducing: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.encode = nn.Sequential(_Induced(width, heads, inducing), _Induced(width, heads, inducing))
        self.seed = nn.Parameter(torch.empty(1, 1, width))
        nn.init.xavier_uniform_(self.seed)
        self.pool = _Attention(width, heads)
        self.decode = nn.ModuleList([_Attention(width, heads), _Attention(width, heads)])
        self.project = nn.Linear(width, out_features)

    def forward(self, items: Tensor) -> Tensor:
        items = self.encode(self.embed(items))
        pooled = self.pool(self.seed.expand(len(items), -1, -1), items)
        for block in self.decode:
            pooled = block(pooled, pooled)
        return self.project(pooled[:, 0])


def _check(support_BCSF: Tensor, features: int, classes: int | None) -> None:
    _, found_classes, examples, found_features = support_BCSF.shape if support_BCSF.ndim == 4 else (0, 0, 0, 0)
    if found_features != features or examples == 0 or (classes is not None and found_classes != classes):
        raise ShapeError(
            "support",
            found=tuple(support_BCSF.shape),
            expected=f"(tasks, {classes or 'classes'}, 1 or more examples, {features})",
            do="Give every class its examples, in the order of the network's outputs.",
        )
