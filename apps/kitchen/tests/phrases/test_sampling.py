import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from weightsmith.core.errors import MissingDependencyError
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.sampling import PENN_TAGS, cluster_sample, penn_tags, pos_vectors, spherical_k_means


def test_there_are_36_tags_and_whole_tags_are_counted():
    assert len(set(PENN_TAGS)) == 36
    vectors = pos_vectors([["NNS", "NNP", ","], ["NN", "NN", "-LRB-"]])
    column = PENN_TAGS.index("NN")
    assert vectors[:, column].tolist() == [0, 1]
    assert pos_vectors([]).shape == (0, 36)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 40), st.integers(1, 5))
def test_inertia_never_increases_and_lengths_do_not_matter(seed, count, clusters):
    rng = np.random.default_rng(seed)
    rows = rng.random((count, 4))
    found = spherical_k_means(rows, clusters, random_state=seed)
    assert all(later <= before + 1e-9 for before, later in zip(found.inertia, found.inertia[1:], strict=False))
    np.testing.assert_allclose(np.linalg.norm(found.centers, axis=1), 1)
    scaled = spherical_k_means(rows * rng.uniform(0.1, 10, (count, 1)), clusters, random_state=seed)
    assert scaled.labels.tolist() == found.labels.tolist()


def test_three_directions_are_found():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    rows = np.eye(3)[truth] + 0.05 * rng.random((90, 3))
    labels = spherical_k_means(rows, 3).labels
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.data())
def test_the_same_fraction_of_every_cluster(labels, data):
    labels = np.array(labels)
    size = data.draw(st.integers(1, len(labels)))
    chosen = cluster_sample(labels, size, random_state=1)
    assert len(set(chosen.tolist())) == size
    for name in np.unique(labels):
        assert abs((labels[chosen] == name).sum() - (labels == name).sum() * size / len(labels)) < 1


def test_bad_input():
    with pytest.raises(RecipeError, match="clusters: found 3, expected 1 to 2"):
        spherical_k_means(np.array([[1.0], [2.0], [0.0]]), 3)
    with pytest.raises(RecipeError, match="not finite"):
        spherical_k_means(np.array([[np.nan]]), 1)
    with pytest.raises(RecipeError, match="phrases to draw: found 4, expected 1 to 3"):
        cluster_sample(np.zeros(3, int), 4)


def test_tags_of_a_phrase():
    try:
        found = penn_tags([["2", "cups", "flour"], []])
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert found == [["CD", "NNS", "NN"], []]
