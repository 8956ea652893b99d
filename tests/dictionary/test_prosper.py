"""ProSper's models against the golden numbers, brute force over all states, and the identities between them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from weightsmith.dictionary import BSC, DSC, GSC, MCA, MMCA, TSC
from weightsmith.dictionary._prosper.linear import LinearParameters
from weightsmith.dictionary._prosper.model import Parameters
from weightsmith.dictionary._prosper.schedule import Settings, annealed, settings_of
from weightsmith.dictionary._prosper.shards import keep_largest
from weightsmith.dictionary._prosper.states import States, truncated_prior

Y = np.array([[1, 0, 2], [0.5, 1.5, -0.5], [2, 1, 1], [0, 0.2, 0.1]])
W = np.array([[1, 0.2, 0.5], [0.1, 1, 0.3], [0.8, 0.4, 1.5]])  # features x components, as the golden numbers
EXACT = {"n_components": 3, "n_candidates": 3, "max_active": 3, "schedule": None}
ONE_STEP = {**EXACT, "max_iter": 1, "components_init": W.T, "sigma_init": 0.7}
SLAB = {"pi_init": [0.3, 0.2, 0.4], "slab_mean_init": [1, 0.5, 0.8], "slab_variance_init": [0.5, 0.6, 0.7]}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(pi=0.3) -> LinearParameters:
    return LinearParameters(tensor(W.T), tensor(pi), tensor(0.7), torch.zeros(3, dtype=torch.float64))


def step(model, parameters, now=Settings()):  # noqa: B008
    return model._step(tensor(Y), parameters, model._states(), now, torch.Generator(), 1e-3)[0]


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_log_joint_of_bsc():
    model, states = BSC(**EXACT), States(3, 3, 3)
    _, joint = model._joint(tensor(Y), linear(), states, 1.0)
    expected = [-5.1020408163, -2.3268896971, -5.1330121461, -1.4493386767, -3.6231671493, -3.521126333, -2.2047998024]
    codes = states.codes(torch.arange(states.size).expand(4, -1), torch.arange(3).expand(4, -1))[0]
    by_code = dict(zip(map(tuple, codes.int().tolist()), joint[0].tolist(), strict=True))
    order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
    np.testing.assert_allclose([by_code[code] for code in order], [*expected, -5.5418935812], atol=1e-9)
    assert by_code[0, 0, 0] == pytest.approx(-5 / (2 * 0.49), abs=1e-12)


def test_step_of_bsc():
    model = BSC(pi_init=0.3, **ONE_STEP).fit(Y)
    expected = [
        [1.1060611641, 0.5721706132, 0.7780168108],
        [0.2906548527, 0.9488096878, 0.0388077908],
        [0.9524513111, -0.1437998793, 1.3984962944],
    ]
    np.testing.assert_allclose(model.components_.T, expected, atol=1e-9)
    assert model.pi_ == pytest.approx(0.3245598057, abs=1e-9)
    assert model.sigma_ == pytest.approx(0.6368228224, abs=1e-9)
    assert 4 * model.lower_bound_curve_[0] == pytest.approx(-14.5077078391, abs=1e-9)


@pytest.mark.parametrize(
    ("anneal_prior", "expected"),
    [
        (0.0, [0.0817999, 0.33261283, 0.05272778, 0.07728009, 0.21447724, 0.14924655, 0.07343613, 0.01841939]),
        (1.0, [0.04638237, 0.28808927, 0.04566964, 0.10224548, 0.18576732, 0.19746075, 0.09715972, 0.03722546]),
    ],
)
def test_posterior_of_bsc_at_temperature_2(anneal_prior, expected):
    model, states = BSC(**EXACT), States(3, 3, 3)
    now = Settings(temperature=2.0, anneal_prior=anneal_prior)
    (block,) = model._expect(tensor(Y), linear(), states, now)
    codes = states.codes(torch.arange(states.size).expand(4, -1), block.candidates_NC)[0].int().tolist()
    q = {tuple(code): value for code, value in zip(codes, block.q_NK[0].tolist(), strict=True)}
    np.testing.assert_allclose([q[code] for code in itertools.product((0, 1), repeat=3)], expected, atol=1e-7)


def test_step_of_dsc():
    model = DSC(values=(0, 1, 2), pi_init=(0.6, 0.3, 0.1), **ONE_STEP).fit(Y)
    expected = [
        [0.9200884874, 0.5001392849, 0.7154876785],
        [0.2664394801, 0.8354871718, 0.0185626776],
        [0.7787415042, -0.1181868099, 1.3316445339],
    ]
    np.testing.assert_allclose(model.components_.T, expected, atol=1e-9)
    np.testing.assert_allclose(model.pi_, [0.668574818, 0.2894772822, 0.0419478998], atol=1e-9)
    assert model.sigma_ == pytest.approx(0.6349087439, abs=1e-9)
    assert 4 * model.lower_bound_curve_[0] == pytest.approx(-15.1834028964, abs=1e-9)


def test_step_of_tsc():
    model = TSC(pi_init=0.3, **ONE_STEP).fit(Y)
    expected = [
        [1.15865548, 0.66774177, 0.91658225],
        [0.38019774, 0.91678277, 0.10378619],
        [0.97691732, -0.00543673, 1.40091744],
    ]
    np.testing.assert_allclose(model.components_.T, expected, atol=1e-8)
    assert model.pi_ == pytest.approx(0.31320662, abs=1e-8)
    assert model.sigma_ == pytest.approx(0.67546205, abs=1e-8)


def test_step_of_mca():
    parameters = Parameters(tensor(W.T), tensor(0.3), tensor(0.7))
    model, states = MCA(**EXACT), States(3, 3, 3)
    (block,) = model._expect(tensor(Y), parameters, states, Settings())
    before_floor = model._maximize(model._sums(block, parameters, states, 1.0), 4.0, parameters, states)
    expected = np.array(
        [
            [1.4240872, 0.50355935, 1.14236288],
            [0.6192056, 1.03716342, 0.26390481],
            [0.94240455, -0.26458016, 1.56380077],
        ]
    )
    np.testing.assert_allclose(before_floor.components_HD.T, expected, atol=1e-8)
    stepped = step(model, parameters)
    np.testing.assert_allclose(stepped.components_HD.T, np.maximum(expected, 1e-4), atol=1e-8)
    assert float(stepped.pi) == pytest.approx(0.3514390401, abs=1e-9)
    assert float(stepped.sigma) == pytest.approx(0.6450805672, abs=1e-9)


def test_step_of_mmca():
    parameters = Parameters(tensor(W.T), tensor(0.3), tensor(0.7))
    inert, free = step(MMCA(**EXACT), parameters), step(MMCA(**EXACT, inertia=False), parameters)
    with_inertia = [
        [1.1903435603, 0.2830955431, 0.6628885484],
        [0.2052659116, 1.016688615, 0.288732825],
        [0.8511359651, 0.2213559527, 1.5250638093],
    ]
    without = [
        [1.42436421, 0.50535646, 1.1486651],
        [0.61884154, 1.03711173, 0.26392085],
        [0.95642818, -0.24869937, 1.56493394],
    ]
    np.testing.assert_allclose(inert.components_HD.T, with_inertia, atol=1e-9)
    np.testing.assert_allclose(free.components_HD.T, without, atol=1e-8)
    assert float(free.pi) == pytest.approx(0.3514395988, abs=1e-9)
    assert float(free.sigma) == pytest.approx(0.6448979011, abs=1e-9)


def test_step_of_gsc():
    model = GSC(**ONE_STEP, **SLAB).fit(Y)
    assert 4 * model.lower_bound_curve_[0] == pytest.approx(-15.3543973498, abs=1e-9)
    np.testing.assert_allclose(4 * model.pi_, [1.55832372, 0.91846248, 1.44664987], atol=1e-8)
    np.testing.assert_allclose(4 * model.pi_ * model.slab_mean_, [1.7704717, 0.60192887, 1.04831362], atol=1e-8)
    np.testing.assert_allclose(model.slab_covariance_.diagonal(), [0.3670391, 0.34883513, 0.41126507], atol=1e-8)
    assert model.noise_covariance_ == pytest.approx(0.3761845606, abs=1e-9)


def test_truncated_prior():
    assert truncated_prior(10, 3, 0.2) == pytest.approx((0.8791261184, 1.476395008), abs=1e-9)
    assert truncated_prior(10, 5, 0.2) == pytest.approx((0.9936306176, 1.96083712), abs=1e-8)
    for pi in (1e-5, 0.2, 0.9):
        mass, active = truncated_prior(7, 7, pi)
        assert mass == pytest.approx(1, abs=1e-12)
        assert pi * 7 * mass / active == pytest.approx(1, abs=1e-9)


# Brute force ----------------------------------------------------------------------------------------------------------


def brute_force(points, components, values, prior, sigma):
    """Log-likelihood and mean codes over every state, from the definition."""
    codes = np.array(list(itertools.product(range(len(values)), repeat=len(components))))
    log_prior = np.log(np.asarray(prior))[codes].sum(1)
    clean = np.asarray(values, float)[codes] @ components
    error = np.square(points[:, None] - clean).sum(2)
    joint = log_prior - error / (2 * sigma**2) - points.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
    likelihood = logsumexp(joint, axis=1)
    return likelihood, np.exp(joint - likelihood[:, None]) @ np.asarray(values, float)[codes]


def drawn(seed, components=3, features=4, points=25):
    generator = np.random.default_rng(seed)
    codes = generator.choice([-1.0, 0.0, 1.0, 2.0], (points, components), p=[0.1, 0.6, 0.2, 0.1])
    atoms = generator.normal(size=(components, features))
    return codes @ atoms + 0.3 * generator.normal(size=(points, features)), generator.normal(size=atoms.shape)


LINEAR = {
    "BSC": (BSC, {"pi_init": 0.3}, (0, 1), (0.7, 0.3)),
    "TSC": (TSC, {"pi_init": 0.3}, (-1, 0, 1), (0.15, 0.7, 0.15)),
    "DSC": (DSC, {"values": (2, 0, -1), "pi_init": (0.1, 0.7, 0.2)}, (2, 0, -1), (0.1, 0.7, 0.2)),
}


@pytest.mark.parametrize("name", LINEAR)
@given(seed=st.integers(0, 10**6), components=st.integers(1, 4))
@settings(max_examples=8)
def test_exact_linear_models_are_brute_force(name, seed, components):
    kind, hyper, values, prior = LINEAR[name]
    points, start = drawn(seed, components)
    exact = {"n_components": components, "n_candidates": components, "max_active": components, "schedule": None}
    model = kind(**exact, **hyper, components_init=start, sigma_init=0.5, max_iter=1, random_state=0).fit(points)
    expected, _ = brute_force(points, start, values, prior, 0.5)
    assert model.lower_bound_curve_[0] == pytest.approx(expected.mean(), rel=1e-10)
    prior = np.atleast_1d(model.pi_)
    prior = {"BSC": [1 - prior[0], prior[0]], "TSC": [prior[0] / 2, 1 - prior[0], prior[0] / 2], "DSC": prior}[name]
    expected, means = brute_force(points, model.components_, values, prior, model.sigma_)
    np.testing.assert_allclose(model.score_samples(points), expected, rtol=1e-9)
    np.testing.assert_allclose(model.transform(points), means, atol=1e-9)


@given(seed=st.integers(0, 10**6), noise=st.sampled_from(["scalar", "diagonal", "full"]))
@settings(max_examples=8)
def test_exact_gsc_is_brute_force(seed, noise):
    points, start = drawn(seed)
    mean, variance, pi = np.array([1, 0.5, -0.8]), np.array([0.5, 0.6, 0.7]), np.array([0.3, 0.2, 0.4])
    hyper = {"slab_mean_init": mean, "slab_variance_init": variance, "pi_init": pi}
    model = GSC(**{**EXACT, **hyper}, noise=noise, components_init=start, sigma_init=0.5, max_iter=1).fit(points)
    joint = []
    for code in itertools.product((0.0, 1.0), repeat=3):
        on = np.array(code)
        covariance = 0.25 * np.eye(4) + (start.T * (on * variance)) @ start
        log_prior = (on * np.log(pi) + (1 - on) * np.log(1 - pi)).sum()
        joint.append(log_prior + multivariate_normal.logpdf(points, (on * mean) @ start, covariance))
    assert model.lower_bound_curve_[0] == pytest.approx(logsumexp(joint, axis=0).mean(), rel=1e-9)


def likelihood_never_falls(model, points):
    curve = model.fit(points).lower_bound_curve_
    return bool((np.diff(curve) >= -1e-9 * np.abs(curve[:-1])).all())


@pytest.mark.parametrize("name", LINEAR)
@given(seed=st.integers(0, 10**6), offset=st.booleans())
@settings(max_examples=6)
def test_exact_em_never_lowers_the_likelihood(name, seed, offset):
    points, _ = drawn(seed, points=60)
    kind, hyper = LINEAR[name][:2]
    hyper = {key: value for key, value in hyper.items() if key == "values"}
    assert likelihood_never_falls(kind(**EXACT, **hyper, fit_offset=offset, max_iter=25, random_state=seed), points)


@pytest.mark.parametrize("slab", ["diagonal", "full"])
@given(seed=st.integers(0, 10**6), noise=st.sampled_from(["scalar", "diagonal", "full"]))
@settings(max_examples=6)
def test_exact_em_never_lowers_the_likelihood_of_gsc(slab, seed, noise):
    points, _ = drawn(seed, points=60)
    assert likelihood_never_falls(GSC(**EXACT, slab=slab, noise=noise, max_iter=25, random_state=seed), points)


@pytest.mark.parametrize("kind", [BSC, TSC, GSC])
def test_truncated_likelihood_is_a_lower_bound(kind):
    points, _ = drawn(5, components=6, features=8, points=50)
    model = kind(6, n_candidates=4, max_active=2, max_iter=20, random_state=0).fit(points)
    bounds = []
    for candidates, active in ((4, 2), (5, 3), (6, 6)):
        model.set_params(n_candidates=candidates, max_active=active)
        bounds.append(model.score_samples(points))
    assert (bounds[0] <= bounds[1] + 1e-9).all()
    assert (bounds[1] <= bounds[2] + 1e-9).all()


# Identities between the models ----------------------------------------------------------------------------------------


def test_dsc_with_binary_values_is_bsc():
    points, start = drawn(1)
    hyper = {**EXACT, "components_init": start, "sigma_init": 0.6, "max_iter": 10}
    one = BSC(**hyper, pi_init=0.25).fit(points)
    other = DSC(**hyper, values=(0, 1), pi_init=(0.75, 0.25)).fit(points)
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-9)
    np.testing.assert_allclose([other.pi_[1], other.sigma_], [one.pi_, one.sigma_], atol=1e-9)


def test_dsc_with_ternary_values_is_tsc():
    points, start = drawn(2)
    hyper = {**EXACT, "components_init": start, "sigma_init": 0.6, "max_iter": 1}
    one = TSC(**hyper, pi_init=0.25).fit(points)
    other = DSC(**hyper, values=(-1, 0, 1), pi_init=(0.125, 0.75, 0.125)).fit(points)
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-10)
    np.testing.assert_allclose([1 - other.pi_[1], other.sigma_], [one.pi_, one.sigma_], atol=1e-10)


def test_mmca_with_positive_components_is_mca():
    generator = np.random.default_rng(3)
    data = tensor(generator.random((40, 6)))
    parameters = Parameters(tensor(generator.random((4, 6)) + 0.1), tensor(0.3), tensor(0.4))
    one, other = MCA(4, max_active=3), MMCA(4, max_active=3, inertia=False)
    states, now = one._states(), Settings(temperature=1.3)  # the same sharpness for both
    results = [m._step(data, parameters, states, now, torch.Generator(), 1e-6)[0] for m in (one, other)]
    for name in ("components_HD", "pi", "sigma"):
        torch.testing.assert_close(getattr(results[0], name), getattr(results[1], name), rtol=1e-12, atol=1e-12)


def test_sharp_mca_is_the_maximum():
    generator = np.random.default_rng(4)
    components = tensor(generator.random((4, 6)) + 0.1)
    model, states = MCA(4), States(4, 4, 4)
    groups = list(model._groups(torch.arange(4)[None], components, states, 700.0, shares=True))
    maxima = torch.stack([components[members > 0].amax(0) for members in states.sets_SC])
    torch.testing.assert_close(groups[0].maximum_SD, maxima, rtol=2e-3, atol=0)


def test_gsc_with_a_narrow_slab_is_bsc():
    narrow = {"pi_init": [0.3] * 3, "slab_mean_init": [1.0] * 3, "slab_variance_init": [1e-9] * 3}
    wide = GSC(**ONE_STEP, **narrow).fit(Y)
    model = BSC(**ONE_STEP, pi_init=0.3).fit(Y)
    assert wide.lower_bound_curve_[0] == pytest.approx(model.lower_bound_curve_[0], abs=1e-6)
    np.testing.assert_allclose(wide.components_, model.components_, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "hyper"), [(BSC, {}), (TSC, {}), (DSC, {"pi_init": (0.2, 0.6, 0.2)}), (MMCA, {}), (GSC, SLAB)]
)
def test_permuted_components_permute_the_result(kind, hyper):
    points, start = drawn(6, components=3)
    order = [2, 0, 1]
    permuted = {name: value if kind is DSC else np.asarray(value)[order] for name, value in hyper.items()}
    model = kind(3, components_init=start, max_iter=5, schedule=None, **hyper).fit(points)
    other = kind(3, components_init=start[order], max_iter=5, schedule=None, **permuted).fit(points)
    np.testing.assert_allclose(other.components_, model.components_[order], atol=1e-9)
    np.testing.assert_allclose(other.transform(points), model.transform(points)[:, order], atol=1e-9)


@pytest.mark.parametrize(("kind", "same"), [(BSC, True), (TSC, True), (DSC, True), (GSC, True), (MMCA, False)])
def test_rotated_points_rotate_the_components(kind, same):
    points, start = drawn(7)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    # The noise's start is a mean over features, and so is its floor: it is given here.
    hyper = {"components_init": start, "sigma_init": 0.5, "max_iter": 5, "schedule": None, "random_state": 0}
    model, turned = kind(3, **hyper).fit(points), kind(3, **{**hyper, "components_init": start @ rotation})
    turned.fit(points @ rotation)
    assert np.allclose(turned.components_, model.components_ @ rotation, atol=1e-8) == same


# Parts ----------------------------------------------------------------------------------------------------------------


def test_states_are_all_small_sets_once():
    states = States(4, 3, 2, (-1.0, 2.0))
    codes = states.codes(torch.arange(states.size)[None], torch.tensor([[1, 2, 3]]))[0]
    kept = {tuple(code) for code in codes.tolist()}
    expected = {
        code
        for code in itertools.product((0.0, -1.0, 2.0), repeat=4)
        if sum(map(bool, code)) <= 1 or (sum(map(bool, code)) == 2 and code[0] == 0)
    }
    assert kept == expected
    assert len(kept) == states.size
    counts = torch.stack([(codes == value).sum(1) for value in (-1.0, 2.0)], 1).double()
    torch.testing.assert_close(states.counts_KV, counts)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=30), share=st.floats(0, 1))
@settings(max_examples=50)
def test_keep_largest_is_a_stable_sort(values, share):
    count = int(share * len(values))
    kept = keep_largest(tensor([value / 3 for value in values]), count)
    expected = sorted(np.argsort(-np.array(values), kind="stable")[:count].tolist())
    assert kept.nonzero().flatten().tolist() == expected


def test_schedule_holds_and_interpolates():
    points = {"temperature": [(2, 4.0), (-2, 1.0)], "cut": [(0.0, 0.0), (0.5, 1.0)]}
    temperatures, cuts = zip(*((now.temperature, now.cut) for now in settings_of(points, 8)), strict=True)
    assert temperatures == (4.0, 4.0, 4.0, 3.25, 2.5, 1.75, 1.0, 1.0)
    assert cuts == (0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0)
    assert settings_of({}, 1) == [Settings()]
    assert settings_of(annealed(5.0, 0.8), 10)[9].temperature == 1.0


def test_cut_keeps_the_points_the_truncation_explains():
    model = BSC(10, n_candidates=6, max_active=3)
    parameters = LinearParameters(torch.ones(10, 4).double(), tensor(0.2), tensor(1.0), torch.zeros(4).double())
    states = model._states()
    assert model._n_used(1000, parameters, states, Settings()) == 1000
    assert model._n_used(1000, parameters, states, Settings(cut=1.0)) == 879
    assert model._n_used(1000, parameters, states, Settings(cut=0.5)) == 939
    assert model._n_used(5, parameters, states, Settings(cut=1.0)) == 5
    crowded = LinearParameters(parameters.components_HD, tensor(0.99), tensor(1.0), parameters.offset_D)
    assert model._n_used(1000, crowded, states, Settings(cut=1.0)) == 11
