import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from weightsmith.dictionary._supervised import lift as lift_module, problem as problem_module
from weightsmith.dictionary._supervised.factored import descend, least_squares_codes, logistic_regression
from weightsmith.dictionary._supervised.gradient import (
    Point,
    balanced_factors,
    gradient,
    objective,
    project_rank,
    projected_gradient,
    smoothness,
    target,
)
from weightsmith.dictionary._supervised.joint import label_energies
from weightsmith.dictionary._supervised.lift import lift_and_start, lift_of
from weightsmith.dictionary._supervised.majorize import leading_subspace, majorize
from weightsmith.dictionary._supervised.problem import Problem, Rows, label_loss, probabilities
from weightsmith.embedded import digits

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


def make(x, y, *, xi=0.1, nu=1e-2, z=None, weight=None, label_weight=None, classes=None):
    x, y = torch.as_tensor(x, dtype=F64), torch.as_tensor(y)
    ones = torch.ones(len(x), dtype=F64)
    weight = ones if weight is None else weight
    return Problem(
        rows=Rows(x),
        z_NZ=ones[:, None] if z is None else torch.cat([ones[:, None], z], dim=1),
        y_NK=functional.one_hot(y.long(), classes or int(y.max()) + 1)[:, 1:].to(F64),
        weight_N=weight,
        label_weight_N=weight if label_weight is None else label_weight,
        xi=xi,
        nu=nu,
    )


@pytest.fixture(scope="module")
def three_eight():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    kept = np.isin(y, (3, 8))
    return x[kept][:150] / 16, (y[kept][:150] == 8).astype(int)


def drawn(seed, n=40, p=9, classes=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, p, generator=generator, dtype=F64)
    y = torch.arange(n) % classes
    return x, y[torch.randperm(n, generator=generator)]


GOLDEN = make([[1.0, 0], [0, 1], [2, 1]], [1, 0, 1], xi=0.5, nu=0.1)
GOLDEN_POINT = Point(
    torch.tensor([[0.2], [-0.1]], dtype=F64),
    torch.tensor([[1, 0.5, 1.5], [0.5, 0.25, 0.75]], dtype=F64),
    torch.tensor([[0.05]], dtype=F64),
)


def test_golden_step_of_projected_gradient():
    def close(found, wanted):
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64), atol=2e-10, rtol=0)

    lift, target_MC = lift_of(GOLDEN, "filter"), target(GOLDEN, "filter")
    logit = GOLDEN.rows.times(GOLDEN_POINT.a_MK) + GOLDEN.z_NZ @ GOLDEN_POINT.gamma_ZK
    close(probabilities(logit).T, [[0.5621765009, 0.4875026035, 0.5866175789]])
    slope = gradient(GOLDEN, lift, target_MC, GOLDEN_POINT)
    close(slope.a_MK.T, [[-1.2245883413, 0.0541201824]])
    close(slope.b_MC, [[0, 0.5, -0.5], [0.5, -0.75, -0.25]])
    close(slope.gamma_ZK, [[-0.3537033167]])
    assert objective(GOLDEN, lift, target_MC, GOLDEN_POINT) == pytest.approx(2.4705312233, abs=1e-9)
    moved = Point(*(value - 0.1 * change for value, change in zip(GOLDEN_POINT, slope, strict=True)))
    close(torch.linalg.svdvals(torch.cat([moved.a_MK, moved.b_MC], 1)), [2.1360476925, 0.2571801873])
    point = project_rank(moved, 1)
    close(point.a_MK.T, [[0.2198949176, 0.1064517974]])
    close(point.b_MC, [[0.9866251008, 0.4920246751, 1.5596636975], [0.4776282076, 0.2381906394, 0.7550379325]])
    close(point.gamma_ZK, [[0.0853703317]])
    assert objective(GOLDEN, lift, target_MC, point) == pytest.approx(2.4311923624, abs=1e-9)
    assert smoothness(GOLDEN, "filter") == pytest.approx(2.2969388126, abs=1e-9)


@pytest.mark.parametrize("model", ["filter", "feature"])
def test_gradients_are_autograds(model):
    x, y = drawn(3)
    weight = torch.linspace(0.5, 2, len(x), dtype=F64)
    problem = make(x, y, nu=0.3, z=torch.randn(len(x), 2, dtype=F64), weight=weight, label_weight=weight * (1 + y))
    shape = (9, len(x)) if model == "filter" else (len(x), 9)
    point = [torch.randn(shape[0], 2), torch.randn(shape), torch.randn(3, 2)]
    point = Point(*(block.to(F64).requires_grad_() for block in point))
    root = weight.sqrt()
    a = point.a_MK if model == "filter" else point.a_MK / root[:, None]
    logit = (x @ a if model == "filter" else a) + problem.z_NZ @ point.gamma_ZK
    value = problem.label_weight_N @ label_loss(logit, problem.y_NK)
    b_PN = point.b_MC if model == "filter" else point.b_MC.T
    value = value + problem.xi * (x.T * root - b_PN).square().sum()
    value = value + problem.nu * (point.a_MK.square().sum() + point.gamma_ZK.square().sum())
    wanted = torch.autograd.grad(value, list(point))
    lift, target_MC = lift_of(problem, model), target(problem, model)
    detached = Point(*(block.detach() for block in point))
    for one, other in zip(gradient(problem, lift, target_MC, detached), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    assert objective(problem, lift, target_MC, detached) == pytest.approx(value.item(), rel=1e-12)


SOLVERS = {
    "mm": lambda problem, steps, model: majorize(problem, 2, model=model, max_iter=steps, tol=0),
    "lpgd": lambda problem, steps, model: projected_gradient(problem, 2, model=model, max_iter=steps, tol=-1),
    "bcd": lambda problem, steps, model: descend(problem, 2, model=model, max_iter=steps // 4, tol=-1),
    "bcd >= 0": lambda problem, steps, model: descend(problem, 2, model=model, nonnegative=True, max_iter=steps // 4),
}


@pytest.mark.parametrize("xi", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("model", ["filter", "feature"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_step_raises_the_objective(three_eight, solver, model, xi):
    values = np.array(SOLVERS[solver](make(*three_eight, xi=xi), 60, model).values)
    assert len(values) > 5
    assert (np.diff(values) <= 1e-9 * np.abs(values[:-1])).all()
    assert values[-1] < values[0]


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(4, 30),
    p=st.integers(1, 40),
    classes=st.integers(2, 4),
    rank=st.integers(1, 4),
    xi=st.floats(1e-3, 1e3),
    nu=st.floats(0, 10),
    model=st.sampled_from(["filter", "feature"]),
)
def test_majorization_never_raises_the_objective(seed, n, p, classes, rank, xi, nu, model):
    x, y = drawn(seed, n, p, classes)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, 4, (n,), generator=generator).to(F64)
    weight[:2] = 1
    z = torch.randn(n, 2, generator=generator, dtype=F64)
    ratio = torch.tensor([0.1, 1, 5, 2], dtype=F64)[y]
    problem = make(x, y, xi=xi, nu=nu, z=z, weight=weight, label_weight=weight * ratio, classes=classes)
    values = np.array(majorize(problem, min(rank, n, p), model=model, max_iter=25, tol=0).values)
    assert (np.diff(values) <= 1e-9 * np.abs(values[:-1]) + 1e-12).all()


def test_reaches_lower_than_the_papers_steps(three_eight):
    assert majorize(make(*three_eight, xi=1.0, nu=0.0), 2, max_iter=3000, tol=0).values[-1] <= 333.7
    assert majorize(make(*three_eight, xi=100.0, nu=0.0), 2, max_iter=300, tol=0).values[-1] <= 33317.2
    assert projected_gradient(make(*three_eight, xi=1.0, nu=0.0), 2, max_iter=100, tol=-1).values[-1] > 345


def test_large_xi_is_truncated_svd_and_logistic_regression(three_eight):
    x, y = three_eight
    nu = 0.05
    solution = majorize(make(x, y, xi=1e5, nu=nu), 2, max_iter=20_000, tol=0)
    right = np.linalg.svd(x, full_matrices=False)[2][:2].T
    cosines = np.linalg.svd(right.T @ solution.atoms_PR.numpy(), compute_uv=False)
    assert cosines.min() > 1 - 5e-5
    inputs = np.hstack([x @ right, np.ones((len(x), 1))])
    wanted = LogisticRegression(C=1 / (2 * nu), fit_intercept=False, tol=1e-10).fit(inputs, y).decision_function(inputs)
    found = x @ (solution.atoms_PR @ solution.beta_RK).numpy()[:, 0] + solution.gamma_ZK[0, 0].item()
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize(("n", "p"), [(60, 5), (6, 11)])
@pytest.mark.parametrize("classes", [2, 3])
def test_full_rank_is_logistic_regression(n, p, classes):
    x, y = drawn(0, n, p, classes)
    solution = majorize(make(x, y, nu=0.5), min(n, p), max_iter=20_000, tol=0)
    assert solution.squared_error < 1e-10
    inputs = np.hstack([x.numpy(), np.ones((n, 1))])
    a = torch.cat([solution.atoms_PR @ solution.beta_RK, solution.gamma_ZK])
    if classes == 2:
        wanted = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(inputs, y).coef_
        np.testing.assert_allclose(a.T, wanted, atol=1e-5)
    else:
        # the penalty of the reference class's zero coefficients makes it another problem than scikit-learn's
        problem = make(x, y, nu=0.5)
        eye = torch.eye(p + 1, dtype=F64)
        exact = logistic_regression(problem, torch.as_tensor(inputs), eye, torch.zeros(p + 1, classes - 1, dtype=F64))
        torch.testing.assert_close(a, exact, atol=1e-5, rtol=0)


def test_reconstruction_is_the_projection_at_a_stationary_point(three_eight):
    x, _ = three_eight
    solution = projected_gradient(make(*three_eight, xi=10.0, nu=10.0), 2, max_iter=2000, tol=1e-15)
    basis = np.linalg.qr(solution.atoms_PR.numpy())[0]
    assert solution.squared_error == pytest.approx(((x - x @ basis @ basis.T) ** 2).sum(), rel=1e-6)
    mm = majorize(make(*three_eight, xi=10.0, nu=10.0), 2, max_iter=200, tol=0)
    u = mm.atoms_PR.numpy()
    assert mm.squared_error == pytest.approx(((x - x @ u @ u.T) ** 2).sum(), rel=1e-9)
    np.testing.assert_allclose(u.T @ u, np.eye(2), atol=1e-9)
    assert mm.values[-1] == pytest.approx(solution.values[-1], rel=1e-6)


def test_two_class_softmax_is_the_sigmoid():
    logit = torch.linspace(-900, 900, 41, dtype=F64)[:, None]
    padded = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(probabilities(logit), padded.softmax(1)[:, 1:])
    for label in (0, 1):
        wanted = functional.cross_entropy(padded, torch.full((41,), label), reduction="none")
        torch.testing.assert_close(label_loss(logit, torch.full_like(logit, label)), wanted)


def test_other_order_of_classes():
    x, y = drawn(1)
    solve = {"max_iter": 200, "tol": 0.0}
    one = majorize(make(x, y), 2, **solve)
    other = majorize(make(x, torch.tensor([0, 2, 1])[y]), 2, **solve)
    torch.testing.assert_close((one.atoms_PR @ one.beta_RK).flip(1), other.atoms_PR @ other.beta_RK, atol=1e-7, rtol=0)
    torch.testing.assert_close(one.gamma_ZK.flip(1), other.gamma_ZK, atol=1e-7, rtol=0)
    y = y % 2
    one, other = (majorize(make(x, labels), 2, **solve) for labels in (y, 1 - y))
    torch.testing.assert_close(one.atoms_PR @ one.beta_RK, -(other.atoms_PR @ other.beta_RK), atol=1e-7, rtol=0)
    torch.testing.assert_close(one.gamma_ZK, -other.gamma_ZK, atol=1e-7, rtol=0)


def test_turned_and_scaled_features():
    x, y = drawn(2)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=F64)).Q
    one = majorize(make(x, y), 2, max_iter=200, tol=0)
    turned = majorize(make(x @ turn.T, y), 2, max_iter=200, tol=0)
    a = one.atoms_PR @ one.beta_RK
    torch.testing.assert_close(turned.atoms_PR @ turned.beta_RK, turn @ a, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.atoms_PR @ turned.atoms_PR.T @ turn, turn @ one.atoms_PR @ one.atoms_PR.T)
    plain = majorize(make(x, y, nu=0.0), 2, max_iter=200, tol=0)
    scaled = majorize(make(3 * x, y, xi=0.1 / 9, nu=0.0), 2, max_iter=200, tol=0)
    a = plain.atoms_PR @ plain.beta_RK
    torch.testing.assert_close(scaled.atoms_PR @ scaled.beta_RK * 3, a, atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.gamma_ZK, plain.gamma_ZK, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", ["filter", "feature"])
def test_balanced_factors_give_the_point_back(model):
    torch.manual_seed(0)
    shape = (5, 7) if model == "filter" else (7, 5)
    point = Point(torch.randn(shape[0], 2).double(), torch.randn(shape).double(), torch.zeros(1, 2))
    point = project_rank(point, 3)
    atoms, beta, codes = balanced_factors(point, 3, model)
    assert atoms.norm().item() == pytest.approx(1, abs=1e-12)
    b_PN = point.b_MC if model == "filter" else point.b_MC.T
    torch.testing.assert_close(atoms @ codes, b_PN, atol=1e-10, rtol=0)
    torch.testing.assert_close(atoms @ beta if model == "filter" else codes.T @ beta, point.a_MK, atol=1e-10, rtol=0)


def test_every_sample_twice_and_twice_the_penalty():
    x, y = drawn(4)
    for model in ("filter", "feature"):
        # the feature model's classifier block grows with the samples, and so does its penalty: only the rest doubles
        nu = 0.01 if model == "filter" else 0.0
        one = majorize(make(x, y, nu=nu), 2, model=model, max_iter=100, tol=0)
        two = majorize(make(x.repeat(2, 1), y.repeat(2), nu=2 * nu), 2, model=model, max_iter=100, tol=0)
        torch.testing.assert_close(two.atoms_PR @ two.beta_RK, one.atoms_PR @ one.beta_RK, atol=1e-6, rtol=1e-6)
        assert two.values[-1] == pytest.approx(2 * one.values[-1], rel=1e-8)


def test_a_covariate_of_zeros_counts_for_nothing():
    x, y = drawn(5)
    none = majorize(make(x, y), 2, max_iter=100)
    zeros = majorize(make(x, y, z=torch.zeros(len(x), 1, dtype=F64)), 2, max_iter=100)
    assert zeros.gamma_ZK[1].abs().max() == 0
    torch.testing.assert_close(zeros.gamma_ZK[:1], none.gamma_ZK)
    torch.testing.assert_close(zeros.atoms_PR @ zeros.beta_RK, none.atoms_PR @ none.beta_RK)


@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 30)])
def test_rows_of_all_kinds_multiply_alike(monkeypatch, n, p):
    monkeypatch.setattr(problem_module, "CHUNK", 40)
    torch.manual_seed(0)
    x = torch.randn(n, p, dtype=F64) * (torch.rand(n, p) < 0.3)
    weight, right, left = torch.rand(n, dtype=F64), torch.randn(p, 3, dtype=F64), torch.randn(n, 3, dtype=F64)
    single = Rows(x.float())
    assert single.matrix_NP.dtype == torch.float32
    for rows, tolerance in ((Rows(x), 1e-12), (Rows(x.to_sparse_csr()), 1e-12), (single, 1e-5)):
        for found, wanted in (
            (rows.times(right), x @ right),
            (rows.transposed_times(left), x.T @ left),
            (rows.gram(weight), x.T @ (weight[:, None] * x)),
            (rows.row_gram(), x @ x.T),
            (rows.squares(), x.square().sum(1)),
        ):
            assert found.dtype == F64
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
        problem = Problem(rows, left, left, weight, weight, xi=1.0, nu=0.0)
        lift, _, norm = lift_and_start(problem, 4, "filter")
        assert norm == pytest.approx(torch.linalg.matrix_norm(weight.sqrt()[:, None] * x, 2).item() ** 2, rel=1e-5)
        eye = torch.eye(lift.size, dtype=F64)
        basis, _ = lift.factors(eye, eye)
        torch.testing.assert_close(basis.T @ basis, eye, atol=1e-5, rtol=0)
        torch.testing.assert_close(lift.times(eye), x @ basis, atol=1e-5, rtol=1e-5)
        diagonal = (weight[:, None] * (x @ basis).square()).sum(0)
        torch.testing.assert_close(lift.gram_times(eye), diagonal.diag(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", [torch.clone, torch.Tensor.to_sparse_csr])
def test_data_too_large_for_a_gram_matrix(monkeypatch, three_eight, form):
    x, y = three_eight
    exact = majorize(make(x, y, xi=1.0), 2)
    monkeypatch.setattr(lift_module, "LARGEST_GRAM", 20)
    problem = make(x, y, xi=1.0)
    problem.rows = Rows(form(torch.as_tensor(x)))
    found = majorize(problem, 2)
    assert found.values[0] == pytest.approx(exact.values[0], rel=1e-6)
    assert found.values[-1] == pytest.approx(exact.values[-1], rel=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), size=st.integers(33, 60), rank=st.integers(1, 5))
def test_leading_subspace_is_never_worse_and_converges(seed, size, rank):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=F64)
    matrix = root @ root.T
    before = basis = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=F64)).Q
    best = torch.linalg.eigvalsh(matrix)[-rank:].sum()
    for _ in range(60):
        kept = torch.trace(basis.T @ matrix @ basis)
        before, basis = basis, leading_subspace(lambda columns: matrix @ columns, basis, before)
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=F64), atol=1e-10, rtol=0)
        assert torch.trace(basis.T @ matrix @ basis) >= kept - 1e-9 * best
    assert torch.trace(basis.T @ matrix @ basis) > best * (1 - 1e-4)


def test_logistic_regression_is_scikit_learns():
    images, labels = digits()
    x, y = images.flatten(1)[:300, 20:40].double(), labels[:300] % 3
    problem = make(x, y % 2, nu=0.5)
    found = logistic_regression(problem, x, torch.eye(20, dtype=F64), torch.zeros(20, 1, dtype=F64))
    wanted = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=5000).fit(x, y % 2).coef_
    np.testing.assert_allclose(found.T, wanted, atol=1e-6)
    problem = make(x, y, nu=0.5)
    coefficients = torch.randn(20, 2, dtype=F64)
    found = logistic_regression(problem, x, torch.eye(20, dtype=F64), coefficients).requires_grad_()
    value = problem.loss(x @ found) + 0.5 * found.square().sum()
    assert torch.autograd.grad(value, found)[0].abs().max() < 1e-5


def test_least_squares_codes_are_scipys():
    from scipy.optimize import nnls

    generator = torch.Generator().manual_seed(0)
    atoms, x = (torch.randn(size, generator=generator, dtype=F64) for size in ((9, 4), (15, 9)))
    target, gram = x @ atoms, atoms.T @ atoms
    free = least_squares_codes(target, gram)
    torch.testing.assert_close(free, torch.linalg.lstsq(atoms, x.T).solution.T)
    found = least_squares_codes(target, gram, start_NR=torch.zeros(15, 4, dtype=F64), sweeps=500)
    np.testing.assert_allclose(found, [nnls(atoms.numpy(), row.numpy())[0] for row in x], atol=1e-6)


def test_label_energies_are_minima():
    generator = torch.Generator().manual_seed(1)
    atoms, x = (torch.randn(size, generator=generator, dtype=F64) for size in ((9, 3), (20, 9)))
    beta, offset = 5 * torch.randn(3, 2, generator=generator, dtype=F64), torch.randn(20, 2, dtype=F64)
    found = label_energies(x @ atoms, atoms.T @ atoms, beta, offset, xi=0.05)
    for label in range(3):
        y = functional.one_hot(torch.full((20,), label), 3)[:, 1:].to(F64)
        codes = (x @ atoms).clone().requires_grad_()
        optimizer = torch.optim.LBFGS([codes], max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def cost(codes=codes, y=y):
            return 0.05 * (x - codes @ atoms.T).square().sum(1) + label_loss(codes @ beta + offset, y)

        def closure(optimizer=optimizer, cost=cost):
            optimizer.zero_grad()
            value = cost().sum()
            value.backward()
            return value

        optimizer.step(closure)
        torch.testing.assert_close(found[:, label] + 0.05 * x.square().sum(1), cost().detach(), atol=1e-6, rtol=1e-6)
