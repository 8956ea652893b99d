import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith.core.errors import HyperparameterError
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.crf import LinearChainCRF

EMISSIONS = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
TRANSITIONS = [[0.2, -0.1], [0.3, 0.0]]
SCORES = {"000": 1.9, "001": 1.6, "010": 2.7, "011": 2.4, "100": 1.0, "101": 0.7, "110": 1.8, "111": 1.5}


@pytest.fixture
def crf():
    layer = LinearChainCRF(2).double()
    with torch.no_grad():
        layer.transitions.copy_(torch.tensor(TRANSITIONS))
    return layer


def random_layer(labels, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = LinearChainCRF(labels).double()
    with torch.no_grad():
        layer.transitions.copy_(torch.randn(labels, labels, generator=generator, dtype=torch.float64))
    return layer, generator


def brute_force(layer, emissions):
    steps, labels = emissions.shape
    scores = {}
    for path in itertools.product(range(labels), repeat=steps):
        local = sum(emissions[t, y].item() for t, y in enumerate(path))
        moves = sum(layer.transitions[a, b].item() for a, b in itertools.pairwise(path))
        scores[path] = local + moves
    return scores


def test_worked_example(crf):
    emissions = torch.tensor([EMISSIONS], dtype=torch.float64)
    found = brute_force(crf, emissions[0])
    for path, score in SCORES.items():
        assert found[tuple(map(int, path))] == pytest.approx(score, abs=1e-6)
    assert crf.log_partition(emissions).item() == pytest.approx(3.9666098, abs=1e-6)
    assert crf.decode(emissions) == [[0, 1, 0]]
    loss = crf(emissions, torch.tensor([[0, 1, 0]])).item()
    assert math.exp(-loss) == pytest.approx(0.2818, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 5), labels=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_brute_force(steps, labels, seed):
    layer, generator = random_layer(labels, seed)
    emissions = torch.randn(1, steps, labels, generator=generator, dtype=torch.float64)
    scores = brute_force(layer, emissions[0])
    total = math.log(sum(map(math.exp, scores.values())))
    assert layer.log_partition(emissions).item() == pytest.approx(total, abs=1e-9)
    assert tuple(layer.decode(emissions)[0]) == max(scores, key=scores.get)
    marginals = layer.marginals(emissions)[0]
    for t, label in itertools.product(range(steps), range(labels)):
        share = sum(math.exp(s - total) for path, s in scores.items() if path[t] == label)
        assert marginals[t, label].item() == pytest.approx(share, abs=1e-9)


def test_without_transitions_tokens_are_independent():
    emissions = torch.randn(3, 6, 4, dtype=torch.float64)
    layer = LinearChainCRF(4).double()
    torch.testing.assert_close(layer.log_partition(emissions), torch.logsumexp(emissions, 2).sum(1))
    torch.testing.assert_close(layer.marginals(emissions), emissions.softmax(2))


def test_constant_on_one_token_changes_log_partition_only(crf):
    emissions = torch.randn(1, 5, 2, dtype=torch.float64)
    tags = torch.tensor([[0, 1, 1, 0, 1]])
    moved = emissions.clone()
    moved[0, 2] += 7.5
    assert (crf.log_partition(moved) - crf.log_partition(emissions)).item() == pytest.approx(7.5)
    torch.testing.assert_close(crf(moved, tags), crf(emissions, tags))


def test_padding_changes_nothing():
    layer, generator = random_layer(3, 5)
    short = torch.randn(1, 3, 3, generator=generator, dtype=torch.float64)
    padded = torch.cat([short, torch.randn(1, 4, 3, generator=generator, dtype=torch.float64)], 1)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    tags = torch.tensor([[2, 0, 1, -100, -100, -100, -100]])
    assert layer.log_partition(padded, mask).item() == layer.log_partition(short).item()
    torch.testing.assert_close(layer(padded, tags, mask), layer(short, tags[:, :3]))
    assert layer.decode(padded, mask) == layer.decode(short)
    assert layer.marginals(padded, mask)[0, 3:].abs().max() == 0


def test_masked_tokens_are_left_out_of_the_chain():
    """Pieces of words: only the first piece of each counts, as with Hugging Face labels of -100."""
    layer, generator = random_layer(3, 6)
    emissions = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[False, True, False, True, True], [True, False, True, False, False]])
    tags = torch.tensor([[-100, 1, -100, 2, 0], [0, -100, 2, -100, -100]])
    loss = layer(emissions, tags, mask, reduction="none")
    torch.testing.assert_close(loss[0], layer(emissions[:1, [1, 3, 4]], torch.tensor([[1, 2, 0]])))
    torch.testing.assert_close(loss[1], layer(emissions[1:, [0, 2]], torch.tensor([[0, 2]])))
    assert [len(path) for path in layer.decode(emissions, mask)] == [3, 2]


def test_phrase_without_tokens():
    layer, generator = random_layer(3, 7)
    emissions = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[False, False], [True, True]])
    loss = layer(emissions, torch.zeros(2, 2, dtype=torch.long), mask, reduction="none")
    assert loss[0].item() == 0
    assert layer.decode(emissions, mask)[0] == []


def test_large_transition_decides():
    layer = LinearChainCRF(3)
    with torch.no_grad():
        layer.transitions[0, 0] = 1e4
    assert layer.decode(torch.randn(1, 8, 3)) == [[0] * 8]


def test_gradient():
    layer, generator = random_layer(3, 8)
    emissions = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(lambda e: layer(e, tags, mask), emissions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "emissions: found"),
        ((torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.long)), "tags: found"),
        ((torch.zeros(1, 2, 2), torch.tensor([[0, -100]])), "-100 to 0"),
        ((torch.zeros(1, 2, 2), torch.tensor([[0, 1]]), torch.ones(2, 2)), "mask: found"),
    ],
)
def test_bad_input(crf, arguments, message):
    with pytest.raises(RecipeError, match=message):
        crf(*arguments)


def test_one_label_is_too_few():
    with pytest.raises(RecipeError, match="labels of the CRF: found 1, expected at least 2"):
        LinearChainCRF(1)


def test_trains_on_token_scores():
    """A layer on top of any model: a lookup table learns that label 1 follows label 0."""
    torch.manual_seed(0)
    layer, table = LinearChainCRF(2), torch.nn.Embedding(1, 2)
    words, tags = torch.zeros(8, 6, dtype=torch.long), torch.tensor([0, 1] * 3).repeat(8, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *table.parameters()], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = layer(table(words), tags)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert layer.decode(table(words))[0] == [0, 1] * 3


def test_on_a_hugging_face_token_classifier():
    """Its logits, and the labels' -100 as mask: one step of training lowers the loss."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    model = transformers.BertForTokenClassification(config)
    layer = LinearChainCRF(3)
    inputs = torch.randint(0, 30, (4, 7))
    labels = torch.randint(0, 3, (4, 7))
    labels[:, 0] = labels[:, 3] = labels[2:, 5:] = -100
    optimizer = torch.optim.Adam([*model.parameters(), *layer.parameters()], lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = layer(model(input_ids=inputs).logits, labels, labels != -100)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    decoded = layer.decode(model(input_ids=inputs).logits, labels != -100)
    assert [len(path) for path in decoded] == (labels != -100).sum(1).tolist()


def test_an_unknown_reduction_is_refused():
    with pytest.raises(HyperparameterError, match="reduction: found 'total', expected 'none', 'mean' or 'sum'"):
        inspect.unwrap(LinearChainCRF.forward)(
            LinearChainCRF(2), torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), reduction="total"
        )
