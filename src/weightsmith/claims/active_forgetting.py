"""Temporary forgetting: unknown tokens are solved by context, frequent ones by what they are.

The part-of-speech task of the paper. A prefix of three tokens says which of two words is the adjective: after a copula
come adjective and noun, around it noun and adjective. A query repeats one of the words; the answer is three times the
adjective for the adjective, adjective and twice the noun for the noun. Words follow Zipf's law, one in ten is
ambiguous. A small BERT learns it without resets, with its embedding reset every 100 steps up to step 1500, or for
ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed
from weightsmith.forget import EmbeddingForgetting

__all__ = ["COMMON", "UNSEEN", "POSTask", "run"]

WORDS, UNSEEN_WORDS, ZIPF, AMBIGUOUS = 100, 50, 1.5, 0.1
STEPS, BATCH, EVERY, UNTIL, STD = 3000, 64, 100, 1500, 0.1
ARMS: Mapping[str, Mapping[str, Any] | None] = {
    "not reset": None,
    "temporary": {"every": EVERY, "until": UNTIL},
    "active": {"every": EVERY},
}

UNSEEN = Claim(
    slug="active-forgetting",
    experiment="unseen",
    title="Words that never occurred in training",
    statement="Resets make the model solve unknown words by their context; without resets it does not.",
    metric="accuracy on unseen words, all three answers right",
    higher_is_better=True,
    expected=(Ordering("temporary", "not reset", 0.5), Ordering("active", "not reset", 0.5)),
    paper="Active and temporary forgetting induce structural in-context learning; vanilla training loses it.",
    claimed=(Ordering("temporary", "not reset"), Ordering("active", "not reset")),
)

COMMON = Claim(
    slug="active-forgetting",
    experiment="common",
    title="Words from training",
    statement="Temporary forgetting costs nothing on the words of training.",
    metric="accuracy on the words of training",
    higher_is_better=True,
    expected=(Ordering("temporary", "not reset", -0.02),),
    paper="With temporary forgetting in-weights and in-context strategies coexist.",
    claimed=(Ordering("temporary", "not reset", -0.02),),
)


def run(scale: str = "cpu", seeds: Sequence[int] = (10, 11, 12, 13)) -> list[ClaimResult]:
    """Run both experiments; a seed draws the network, the task and the resets."""
    start = time.perf_counter()
    values = each_seed(experiment, seeds, "part-of-speech task")
    seconds = time.perf_counter() - start
    roles = {"not reset": "baseline", "temporary": "method", "active": "method"}

    def arms(what: str) -> list[Arm]:
        return [Arm(name, roles[name], values[f"{what} {name}"]) for name in ARMS]  # type: ignore[arg-type]

    mean = {name: sum(each) / len(each) for name, each in values.items()}
    notes = [
        "Rare words in each other's places (only context helps), frequent ones likewise: "
        + "; ".join(f"{name} {mean[f'tail {name}']:.2f}, {mean[f'head {name}']:.2f}" for name in ARMS)
        + "."
    ]
    return [
        ClaimResult.judge(UNSEEN, arms("unseen"), scale=scale, seeds=seeds, seconds=seconds, notes=notes),
        ClaimResult.judge(COMMON, arms("val"), scale=scale, seeds=seeds, seconds=seconds),
    ]


def experiment(seed: int) -> dict[str, float]:
    """Train one network per arm, measured just before a reset would be due."""
    found = {}
    for name, options in ARMS.items():
        for what, value in train(seed, options).items():
            found[f"{what} {name}"] = value
    return found


def train(seed: int, options: Mapping[str, Any] | None, steps: int = STEPS) -> dict[str, float]:
    """Train a small BERT on the task and return its accuracy on every set."""
    task, model = POSTask(seed), small_bert(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    forgetting = None
    if options is not None:
        draws = torch.Generator().manual_seed(seed)
        forgetting = EmbeddingForgetting(model, optimizer, std=STD, generator=draws, **options)
    model.train()
    for _ in range(steps - 3):  # three steps before a reset
        ids, targets = task.draw(BATCH)
        model(input_ids=ids, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if forgetting is not None:
            forgetting.step()
    return {what: task.accuracy(model, what) for what in ("val", "tail", "head", "unseen")}


def small_bert(seed: int) -> Any:
    """A BERT of two layers whose matrices start large enough to learn quickly."""
    import warnings

    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=2 * WORDS + 2 * UNSEEN_WORDS + 2,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.12,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
        for embedding in (model.bert.embeddings.word_embeddings, model.bert.embeddings.position_embeddings):
            nn.init.normal_(embedding.weight, std=STD)
    return model


class POSTask:
    """The task; ids are nouns, adjectives, unseen nouns, unseen adjectives, the copula and the mask.

    Examples
    --------
    >>> ids, targets = POSTask(0).draw(2)
    >>> ids.shape, targets[:, :4].unique().tolist()
    (torch.Size([2, 7]), [-100])
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.copula, self.mask = 2 * WORDS + 2 * UNSEEN_WORDS, 2 * WORDS + 2 * UNSEEN_WORDS + 1
        weights = torch.arange(1, WORDS + 1, dtype=torch.float64) ** -ZIPF
        self.law = weights / weights.sum()
        # one word in ten of each fifth of the frequencies is ambiguous
        fifth, count = WORDS // 5, round(AMBIGUOUS * WORDS / 5)
        self.ambiguous = torch.stack(
            [
                torch.cat([n * fifth + torch.randperm(fifth, generator=self.generator)[:count] for n in range(5)])
                for _ in range(2)
            ]
        )

    def draw(self, count: int) -> tuple[Int[Tensor, "samples 7"], Int[Tensor, "samples 7"]]:
        """Draw training samples: ids, and labels on the three answers."""
        words = torch.stack([self._zipf(count), self._zipf(count)])
        kinds = torch.tensor([[0], [1]]).expand(2, count).clone()
        for slot in (0, 1):
            doubtful = torch.isin(words[slot], self.ambiguous[slot])
            swapped = doubtful & (torch.rand(count, generator=self.generator) < 0.5)
            law = self.law[self.ambiguous[1 - slot]].float()
            other = self.ambiguous[1 - slot][torch.multinomial(law, count, replacement=True, generator=self.generator)]
            words[slot] = torch.where(swapped, other, words[slot])
            kinds[slot] = torch.where(swapped, 1 - kinds[slot], kinds[slot])
        noun, adjective = (words[slot] + kinds[slot] * WORDS for slot in (0, 1))
        return self._samples(noun, adjective)

    @torch.no_grad()
    def accuracy(self, model: Any, what: str, count: int = 2000) -> float:
        """Share of samples with all three answers right.

        ``val`` as in training; ``tail`` and ``head``: rare or frequent words in each other's places; ``unseen``: words
        that never occurred, with fresh embeddings and no bias.
        """
        model.eval()
        weight, bias = model.get_input_embeddings().weight, model.cls.predictions.bias
        held = weight.detach().clone(), bias.detach().clone()
        if what == "val":
            ids, targets = self.draw(count)
        elif what == "unseen":
            noun, adjective = (2 * WORDS + self._distinct(count, 2 * UNSEEN_WORDS)).unbind(1)
            fresh = torch.arange(2 * WORDS, 2 * WORDS + 2 * UNSEEN_WORDS)
            weight[fresh] = STD * torch.randn(len(fresh), weight.shape[1], generator=self.generator)
            bias[fresh] = 0
            ids, targets = self._samples(noun, adjective)
        else:
            low, high = (WORDS - WORDS // 10, WORDS) if what == "tail" else (0, max(2, WORDS // 50))
            words = torch.randint(low, high, (2, count), generator=self.generator)
            ids, targets = self._samples(words[0] + WORDS, words[1])  # an adjective where the noun belongs
        told = model(input_ids=ids).logits.argmax(-1)
        weight.copy_(held[0])
        bias.copy_(held[1])
        return float((told[:, 4:] == targets[:, 4:]).all(1).float().mean())

    def _samples(self, noun: Tensor, adjective: Tensor) -> tuple[Tensor, Tensor]:
        count = len(noun)
        copula_first, asks_adjective = (torch.rand(count, generator=self.generator) < 0.5 for _ in range(2))
        copula = torch.full((count,), self.copula)
        first, second = torch.where(copula_first, copula, noun), torch.where(copula_first, adjective, copula)
        third = torch.where(copula_first, noun, adjective)
        query, rest = torch.where(asks_adjective, adjective, noun), torch.full((count, 3), self.mask)
        ids = torch.cat([torch.stack([first, second, third, query], 1), rest], 1)
        later = torch.where(asks_adjective, adjective, noun)
        answers = torch.stack([adjective, later, later], 1)
        return ids, torch.cat([torch.full((count, 4), -100), answers], 1)

    def _zipf(self, count: int) -> Int[Tensor, "samples"]:
        places: Float[Tensor, "samples"] = torch.rand(count, dtype=torch.float64, generator=self.generator)
        return torch.searchsorted(self.law.cumsum(0), places).clamp(max=WORDS - 1)

    def _distinct(self, count: int, size: int) -> Int[Tensor, "samples 2"]:
        first = torch.randint(size, (count,), generator=self.generator)
        return torch.stack([first, (first + torch.randint(1, size, (count,), generator=self.generator)) % size], 1)
