r"""Active forgetting: reset token embeddings during training, so that a model learns to use context for unknown tokens.

Anand, Lepori, Merullo, Pavlick, "Dual Process Learning: Controlling Use of In-Context vs. In-Weights Strategies with
Weight Forgetting", arXiv 2406.00053 (2024), on the idea of Chen et al., arXiv 2307.01163. Every ``every`` steps the
rows of the embedding matrix are drawn anew, and the optimizer's state of them is cleared:

.. math:: E \leftarrow \mathcal N(0, \sigma^2) \quad \text{at the steps } K, 2K, \dots < N .

For ever (active forgetting), the model cannot rely on what a token is and solves tasks by its context. Up to step
``until`` (temporary forgetting), it learns both: unknown tokens by context, frequent ones by their embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import TrainerCallback

from weightsmith.core.choices import check_choice, check_whole
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.training import IGNORED

__all__ = ["EmbeddingForgetting", "EmbeddingForgettingCallback", "random_rows"]

Rows = Literal["all", "non_special"]


class EmbeddingForgetting:
    """Re-initialize the token embedding of a model every few steps. Call :meth:`step` after each optimizer step.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face model, or any other with ``embedding=``.
    optimizer : torch.optim.Optimizer
        It trains the embedding; its state of the rows that are reset is cleared.
    every : int
        Optimizer steps from one reset to the next, >= 1.
    until : int, optional
        No reset at or after this step, > ``every``; None resets for ever.
    std : float, optional
        Standard deviation of new rows, > 0; by default the model's ``initializer_range``. For small models that are
        trained from scratch take 0.1: with 0.02 they learn slowly.
    rows : {"all", "non_special"}, default: "all"
        Whether special tokens are reset, too. ``"non_special"`` needs ``special``. Adam then keeps its step count,
        which all rows share, and the first update of a reset row is up to 3.2 learning rates, not one.
    special : sequence of int, optional
        Ids of special tokens.
    embedding : nn.Embedding, optional
        The module to reset, by default the model's input embedding.
    reset_output_bias : bool, default: False
        Also set the bias of the output head to zero, where there is one.
    generator : torch.Generator, optional
        Draws the rows, apart from all other random numbers of the run; seed 0 by default.

    Raises
    ------
    HyperparameterError
        If a number is out of range.
    LayerNotFoundError
        If there is no embedding, or the optimizer does not train it.
    UnsupportedModelError
        If the embedding is quantized or sharded.

    Warns
    -----
    UserWarning
        If the output head is the same tensor: it is reset with the embedding.

    References
    ----------
    Anand, Lepori, Merullo, Pavlick, arXiv 2406.00053; Chen, Marchisio, Raileanu, et al., arXiv 2307.01163.

    Examples
    --------
    >>> embedding = nn.Embedding(10, 4)
    >>> optimizer = torch.optim.Adam(embedding.parameters())
    >>> forgetting = EmbeddingForgetting(embedding, optimizer, every=3, until=7, std=0.1, embedding=embedding)
    >>> [forgetting.step() for _ in range(10)]
    [False, False, True, False, False, True, False, False, False, False]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int,
        until: int | None = None,
        std: float | None = None,
        rows: Rows = "all",
        special: tuple[int, ...] | list[int] = (),
        embedding: nn.Embedding | None = None,
        reset_output_bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        every = check_whole("every", every)
        if until is not None and not until > every:
            raise HyperparameterError("until", found=until, expected=f"> every = {every}, or there is no reset")
        check_choice("rows", rows, Rows)
        if rows == "non_special" and not special:
            raise HyperparameterError("special", found="no ids", expected="the special tokens that are not reset")
        self.embedding = _embedding(model, embedding)
        self.optimizer, self.every, self.until = optimizer, every, until
        self.std = _std(model, std)
        weight = self.embedding.weight
        if not any(weight is parameter for group in optimizer.param_groups for parameter in group["params"]):
            raise LayerNotFoundError("the optimizer does not train the embedding", do="Give it model.parameters().")
        if wrong := [token for token in special if not 0 <= token < len(weight)]:
            raise HyperparameterError("special", found=wrong, expected=f"ids from 0 to {len(weight) - 1}")
        kept = torch.zeros(len(weight), dtype=torch.bool)
        kept[list(special) if rows == "non_special" else []] = True
        self.reset_rows: Bool[Tensor, "rows"] = ~kept
        head = _of(model, "get_output_embeddings")
        _warn_if_tied(head, weight, "the head is reset, too", stacklevel=3)
        self.output_bias = getattr(head, "bias", None) if reset_output_bias else None
        self.generator = generator or torch.Generator().manual_seed(0)
        self.steps = self.resets = 0
        self.steps_since_reset: int | None = None

    def step(self) -> bool:
        """Count an optimizer step, and reset the embedding where it is due; returns whether it was."""
        self.steps += 1
        due = self.steps % self.every == 0 and (self.until is None or self.steps < self.until)
        if due:
            self.reset()
        elif self.steps_since_reset is not None:
            self.steps_since_reset += 1
        return due

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the rows anew and clear the optimizer's state of them."""
        weight = self.embedding.weight
        mask = self.reset_rows.to(weight.device)
        drawn = torch.randn(weight.shape, generator=self.generator).mul_(self.std)
        if self.embedding.padding_idx is not None:
            drawn[self.embedding.padding_idx] = 0
        weight.copy_(torch.where(mask[:, None], drawn.to(weight), weight))
        if bool(self.reset_rows.all()):
            self.optimizer.state.pop(weight, None)  # any optimizer starts a parameter without state from zero
        else:
            for value in self.optimizer.state.get(weight, {}).values():
                # Adam's step count stays, as rows that are not reset need it: the first update of a reset row is up to
                # (1 - beta1) / sqrt(1 - beta2) learning rates, and no state gives one for every gradient
                if isinstance(value, Tensor) and value.numel() == weight.numel():  # LIFT's is flat
                    value.view_as(weight)[mask] = 0
                elif isinstance(value, Tensor) and value.ndim and len(value) == len(weight):
                    value[mask] = 0
        if self.output_bias is not None:
            self.output_bias.zero_()
        self.resets += 1
        self.steps_since_reset = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: steps, resets and the state of the random numbers."""
        return {
            "steps": self.steps,
            "resets": self.resets,
            "steps_since_reset": self.steps_since_reset,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.steps, self.resets = state["steps"], state["resets"]
        self.steps_since_reset = state["steps_since_reset"]
        self.generator.set_state(state["generator"])


class EmbeddingForgettingCallback(TrainerCallback):
    """:class:`EmbeddingForgetting` in Hugging Face's ``Trainer``; resumed runs count on from the checkpoint's step.

    Parameters
    ----------
    every, until, **options
        As for :class:`EmbeddingForgetting`.

    Examples
    --------
    >>> EmbeddingForgettingCallback(every=1000, until=10_000).options["until"]
    10000
    """

    def __init__(self, *, every: int, until: int | None = None, **options: Any) -> None:
        self.options = {"every": every, "until": until, **options}
        self.forgetting: EmbeddingForgetting | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the embedding and its optimizer; draw as many rows as the steps before a resumed run did."""
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        self.forgetting = EmbeddingForgetting(kwargs["model"], optimizer, **self.options)
        last = state.global_step if self.forgetting.until is None else min(state.global_step, self.forgetting.until - 1)
        resets = last // self.forgetting.every
        for _ in range(resets):
            torch.randn(self.forgetting.embedding.weight.shape, generator=self.forgetting.generator)
        self.forgetting.steps, self.forgetting.resets = state.global_step, resets
        self.forgetting.steps_since_reset = state.global_step - resets * self.forgetting.every if resets else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step."""
        assert self.forgetting is not None
        self.forgetting.step()


@contextmanager
def random_rows(
    model: nn.Module,
    input_ids: Int[Tensor, "..."],
    *,
    p: float = 0.1,
    std: float | None = None,
    embedding: nn.Embedding | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, "replaced"]]:
    """Replace the embedding rows of some tokens of a batch, for one forward and backward pass: for fine-tuning.

    A full reset would destroy a trained model. Here every distinct token of the batch but padding gets a random row
    with a probability; afterwards the old rows are back, and the embedding has gained no gradient. Padding is what the
    embedding, or the model's configuration, names so.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face model, or any other with ``embedding=``.
    input_ids : Tensor
        The tokens of the batch; -100 is none.
    p : float, default: 0.1
        Probability of each distinct token, in [0, 1].
    std : float, optional
        As for :class:`EmbeddingForgetting`.
    embedding : nn.Embedding, optional
        By default the model's input embedding.
    generator : torch.Generator, optional
        Draws tokens and rows.

    Yields
    ------
    Tensor of shape (replaced,)
        The ids whose rows are replaced.

    Raises
    ------
    HyperparameterError
        If ``p``, ``std`` or a token is out of range.

    Warns
    -----
    UserWarning
        If the output head is the same tensor: its rows are replaced with the embedding's, and it gains no gradient.

    Examples
    --------
    >>> embedding = nn.Embedding(10, 4)
    >>> before = embedding.weight.detach().clone()
    >>> with random_rows(embedding, torch.tensor([[1, 2, 2]]), p=1.0, std=1.0, embedding=embedding) as replaced:
    ...     (embedding.weight != before).any(1).nonzero().flatten().tolist(), replaced.tolist()
    ([1, 2], [1, 2])
    >>> torch.equal(embedding.weight, before)
    True
    """
    if not 0 <= p <= 1:
        raise HyperparameterError("p", found=p, expected="0 <= p <= 1")
    module = _embedding(model, embedding)
    deviation, weight = _std(model, std), module.weight
    padding = (IGNORED, module.padding_idx, getattr(getattr(model, "config", None), "pad_token_id", None))
    ids = torch.tensor([token for token in input_ids.unique().tolist() if token not in padding], dtype=torch.long)
    if wrong := [token for token in ids.tolist() if not 0 <= token < len(weight)]:
        raise HyperparameterError("input_ids", found=wrong[:5], expected=f"ids from 0 to {len(weight) - 1}")
    head = _of(model, "get_output_embeddings")
    _warn_if_tied(head, weight, "the head's rows are replaced, too, and it gains no gradient", stacklevel=4)
    chosen = ids[torch.rand(len(ids), generator=generator) < p].to(weight.device)
    held, gradient, weight.grad = weight.detach()[chosen].clone(), weight.grad, None
    drawn = torch.randn(len(chosen), weight.shape[1], generator=generator).mul_(deviation)
    try:
        weight.data[chosen] = drawn.to(weight)
        yield chosen
    finally:
        weight.data[chosen] = held
        weight.grad = gradient


def _embedding(model: nn.Module, embedding: nn.Embedding | None) -> nn.Embedding:
    found = _of(model, "get_input_embeddings") if embedding is None else embedding
    if not isinstance(found, nn.Embedding):
        raise LayerNotFoundError(
            f"{type(model).__name__} has no token embedding", found=type(found).__name__, do="Give it as `embedding`."
        )
    if not found.weight.is_floating_point() or found.weight.element_size() < 2 or hasattr(found.weight, "placements"):
        raise UnsupportedModelError("the embedding is quantized or sharded", found=found.weight.dtype)
    return found


def _of(model: Any, name: str) -> Any:
    """What a method of a Hugging Face model returns; None for other models."""
    return getattr(model, name)() if hasattr(model, name) else None


def _warn_if_tied(head: Any, weight: Tensor, what: str, stacklevel: int) -> None:
    if head is not None and head.weight is weight:
        warnings.warn(f"the output head and the embedding are one tensor: {what}", stacklevel=stacklevel)


def _std(model: nn.Module, std: float | None) -> float:
    deviation = getattr(getattr(model, "config", None), "initializer_range", None) if std is None else std
    if not isinstance(deviation, (int, float)) or not 0 < deviation < float("inf"):
        raise HyperparameterError("std", found=deviation, expected="a number > 0; the model's configuration has none")
    return float(deviation)
