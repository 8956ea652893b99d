"""D2NWG: the diffusion, the autoencoders, the conditions, and what is drawn."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightsmith.claims._d2nwg_baselines import PrincipalGaussian, nearest, zoo_mean
from weightsmith.core.errors import CalibrationError, CheckpointError, HyperparameterError, ShapeError, WeightsmithError
from weightsmith.core.training import Task, train_many
from weightsmith.predict import (
    Hypernetwork,
    OrderedEncoder,
    SetEncoder,
    WeightDiffusion,
    WeightVAE,
    WeightZoo,
    d2nwg,
    select,
)
from weightsmith.predict._d2nwg import ConvolutionalVAE, VAELoss, alignment_loss, ema_decay, memorisation
from weightsmith.predict._d2nwg.autoencoder import Encoded
from weightsmith.predict._d2nwg.conditions import draw_shots
from weightsmith.predict._d2nwg.noise import NoiseImages


def conditional_zoo(count=64, classes=2, features=3):
    """Heads whose rows are the class means of their tasks."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(count, classes, features, generator=generator)
    support = means[:, :, None] + 0.1 * torch.randn(count, classes, 6, features, generator=generator)
    return WeightZoo.from_state_dicts([{"weight": mean} for mean in means], support_NCSF=support), means


def perceptron():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def fitted(zoo, **options):
    torch.manual_seed(0)
    model = WeightDiffusion(zoo, OrderedEncoder(3, 2), vae=WeightVAE(6, latent=6, width=64), **options)
    return model.fit(
        vae_steps=120,
        steps=200,
        average=0.97,
        learning_rate=3e-3,
        vae_learning_rate=5e-3,
        batch_size=128,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture(scope="module")
def learnt():
    zoo, means = conditional_zoo(256)
    return fitted(zoo), zoo, means


# the diffusion ----------------------------------------------------------------------------------------------------


def test_the_variances_are_the_papers():
    scheduler = WeightDiffusion(conditional_zoo()[0])._scheduler("ddpm")
    betas, kept = scheduler.betas.double(), scheduler.alphas_cumprod.double()
    for step, value in ((0, 0.0015), (1, 0.0015065013), (511, 0.0066540718), (1023, 0.0155)):
        assert float(betas[step]) == pytest.approx(value, rel=1e-5)
    for step, value in ((0, 0.9985), (511, 0.1443738), (1023, 5.6108e-4)):
        assert float(kept[step]) == pytest.approx(value, rel=1e-4)
    assert math.sqrt(kept[1023]) == pytest.approx(0.0236872, rel=1e-4)


def test_the_terminal_signal_can_be_taken_away():
    scheduler = WeightDiffusion(conditional_zoo()[0], zero_terminal_snr=True)._scheduler("ddim")
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6


@pytest.mark.parametrize(
    ("time", "of_start", "of_now", "variance"),
    [(1, 0.50108188, 0.49891784, 7.5218719e-4), (1023, 3.7023800e-4, 0.99221096, None), (0, 1.0, 0.0, 0.0)],
)
def test_steps_of_the_posterior(time, of_start, of_now, variance):
    scheduler = WeightDiffusion(conditional_zoo()[0])._scheduler("ddpm")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(1024)
    kept = scheduler.alphas_cumprod[time]

    def step(start, now):
        noise, now = (now - kept.sqrt() * start) / (1 - kept).sqrt(), torch.full((20000, 1), now).double()
        return scheduler.step(noise * torch.ones_like(now), time, now, generator=torch.Generator().manual_seed(0))

    noise = step(0.0, 0.0).prev_sample
    assert (step(1.0, 0.0).prev_sample - noise).mean().item() == pytest.approx(of_start, rel=1e-4, abs=1e-9)
    assert (step(0.0, 1.0).prev_sample - noise).mean().item() == pytest.approx(of_now, rel=1e-4, abs=1e-6)
    if variance is not None:
        assert noise.var().item() == pytest.approx(variance, rel=0.03)


STEPS = [("ddim", 1), ("ddim", 20), ("ddim", 600), ("ddim", 1000), ("ddim", 1024), ("ddpm", 600), ("ddpm", 1024)]


@pytest.mark.parametrize("steps", [600, 1024])
def test_a_unit_variance_is_sampled_with_unit_variance(steps):
    """Of latents of mean 1 and variance 1 the optimal network is known: what it samples has them."""
    model = WeightDiffusion(conditional_zoo()[0])
    model.latent_scale.fill_(1)
    kept = model._scheduler("ddim").alphas_cumprod
    model.averaged.network.forward = lambda z, t, c: (1 - kept[t][:, None]).sqrt() * (z - kept[t][:, None].sqrt())
    found = []
    model.vae.decode = lambda z: found.append(z) or torch.zeros(len(z), 6)
    model.sample(count=500, steps=steps, generator=torch.Generator().manual_seed(0))
    assert found[0].mean().item() == pytest.approx(1.0, abs=0.06)
    assert found[0].var().item() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_training_without_terminal_signal_samples_the_zoo(sampler):
    zoo, means = conditional_zoo()
    model = fitted(zoo, zero_terminal_snr=True)
    support = torch.as_tensor(zoo.support_NCSF[:16])[:, :, :5]
    rows = model.sample_rows(support, 1, sampler=sampler, steps=200 if sampler == "ddim" else 1024)
    gap = (rows - means[:16].flatten(1)).square().mean() / means.square().mean()
    assert gap < 0.5, "the condition tells what to draw"


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("sampler", "steps"), STEPS)
def test_the_right_noise_leads_to_the_right_latent(sampler, steps, zero):
    """With steps that do not divide the times too, and where nothing of the latent is left at the last time."""
    zoo, _ = conditional_zoo()
    model = WeightDiffusion(zoo, zero_terminal_snr=zero)
    model.latent_scale.fill_(1)
    goal = torch.randn(2, model.vae.latent)
    kept = model._scheduler(sampler).alphas_cumprod

    def oracle(z, time, condition):
        assert bool((time >= 0).all())
        share = kept[time][:, None]
        noise = (z - share.sqrt() * goal) / (1 - share).sqrt()
        return share.sqrt() * noise - (1 - share).sqrt() * goal if zero else noise

    model.averaged.network.forward = oracle
    found = []
    model.vae.decode = lambda z: found.append(z) or torch.zeros(2, 6)
    model.sample(count=2, sampler=sampler, steps=steps)
    torch.testing.assert_close(found[0], goal, atol=2e-4, rtol=0)


def test_decays_of_the_running_average():
    decays = [ema_decay(step) for step in (1, 2, 10, 100, 1000, 10**9)]
    assert decays == pytest.approx([0.1818182, 0.25, 0.55, 0.9181818, 0.9910891, 0.9999], abs=1e-7)


# autoencoders ----------------------------------------------------------------------------------------------------


def test_divergence_and_loss_by_hand():
    assert float(Encoded(torch.ones(1, 1), torch.zeros(1, 1)).kl()) == 0.5
    assert float(Encoded(torch.zeros(3, 4), torch.zeros(3, 4)).kl()) == 0.0
    still = Encoded(torch.zeros(1, 1), torch.zeros(1, 1))
    assert float(VAELoss()(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), still)) == 501.0


def test_the_image_must_hold_the_chunks():
    vae = ConvolutionalVAE(50, chunks=2, chunk_features=128, image_side=16, channels=(4, 4, 8), latent_channels=4)
    assert vae.latent == 4 * (16 // 4) ** 2
    again, code = vae(torch.randn(3, 50))
    assert again.shape == (3, 50)
    assert code.mean.shape == (3, vae.latent)
    with pytest.raises(HyperparameterError, match=r"found 1 \* 100"):
        ConvolutionalVAE(50, chunk_features=100, image_side=16)


def test_both_published_configurations_have_1024_latents():
    with torch.device("meta"):
        small = ConvolutionalVAE(2864)
        large = ConvolutionalVAE(
            11_220_132, chunks=924, chunk_features=8192, image_channels=462, image_side=128, channels=(64, 64, 64, 128)
        )
    assert small.latent == large.latent == 1024
    assert large.spread.in_features == 12143
    assert small.spread.weight.numel() * 2 == pytest.approx(23e6, rel=0.03)


def test_a_collapsed_autoencoder_stops_the_fit():
    zoo, _ = conditional_zoo()
    vae = WeightVAE(6, latent=2)
    vae.loss = VAELoss(absolute=0.0, squared=1e-6, kl=100.0)
    with pytest.raises(WeightsmithError, match="the same latent"):
        WeightDiffusion(zoo, vae=vae).fit(vae_steps=150, steps=1)


def test_members_that_lose_their_score_give_a_warning():
    zoo, _ = conditional_zoo()
    model = WeightDiffusion(zoo, vae=WeightVAE(6, latent=1))
    rows = {row.tobytes() for row in zoo.weights_NP}
    with pytest.warns(UserWarning, match="decoded members keep"):
        model.fit(
            vae_steps=100, steps=1, evaluate=lambda state: 1.0 if state["weight"].numpy().tobytes() in rows else 0.5
        )


def test_members_of_different_initialisations_give_a_warning():
    inputs = torch.randn(20, 30, 4, generator=torch.Generator().manual_seed(0))
    task = Task(inputs, (inputs[..., 0] > 0).long())
    for same in (True, False):
        states = train_many(perceptron, task, steps=20, same_start=same)
        model = WeightDiffusion(WeightZoo.from_state_dicts(states), vae=WeightVAE(58, latent=4))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.fit(vae_steps=200, steps=1)
        assert same != any("weightsmith.merge.match_weights" in str(one.message) for one in told)


# conditions ----------------------------------------------------------------------------------------------------


def test_order_of_shots_and_classes():
    support = torch.randn(2, 3, 5, 4)
    ordered, pooled = OrderedEncoder(4, 3).eval(), SetEncoder(4, out_features=8, class_features=16).eval()
    for encoder in (ordered, pooled):
        torch.testing.assert_close(encoder(support), encoder(support.flip(2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled(support), pooled(support.flip(1)), atol=1e-5, rtol=1e-4)
    by_class = ordered(support).unflatten(1, (3, -1))
    torch.testing.assert_close(ordered(support.flip(1)).unflatten(1, (3, -1)), by_class.flip(1))
    assert not torch.allclose(ordered(support), ordered(support.flip(1)))


def test_alignment_prefers_the_members_own_task():
    data = torch.randn(8, 16)
    assert alignment_loss(data, data, 0.05) < alignment_loss(data, data.roll(1, 0), 0.05) - 1
    swapped = alignment_loss(data.roll(1, 0), data, 0.05)
    torch.testing.assert_close(swapped, alignment_loss(data, data.roll(1, 0), 0.05), atol=0.5, rtol=0.2)


def test_shots_are_different_examples():
    support = torch.arange(6.0).reshape(1, 1, 6, 1).expand(4, 2, 6, 1)
    drawn = draw_shots(support, 5).squeeze(-1)
    assert all(len(set(row.tolist())) == 5 for row in drawn.flatten(0, 1))
    assert len({tuple(row.tolist()) for row in drawn.flatten(0, 1)}) > 1


# drawing ----------------------------------------------------------------------------------------------------


def test_drawn_heads_follow_their_task(learnt):
    model, zoo, _ = learnt
    fresh = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(9))
    shots = fresh[:, :, None].expand(-1, -1, 5, -1)
    heads = model.sample_rows(shots, generator=torch.Generator().manual_seed(0)).unflatten(1, (2, 3))
    pairs = ((heads, fresh), (heads, fresh.roll(-1, 0)), (zoo_mean(zoo)["weight"], fresh))
    own, other, mean = ((one - goal).norm(dim=(1, 2)).mean() for one, goal in pairs)
    assert own < 0.4 * other
    assert own < 0.6 * mean


def test_latents_are_scaled_to_variance_one_and_the_scale_is_saved(learnt):
    model, zoo, _ = learnt
    rows = model._rows(torch.arange(len(zoo)))
    with torch.no_grad():
        code = model.vae.encode(rows)
        spread = (code.sample(torch.randn_like(code.mean)) * model.latent_scale).std()
    assert float(spread) == pytest.approx(1, abs=0.05)
    again = WeightDiffusion(zoo, OrderedEncoder(3, 2), vae=WeightVAE(6, latent=6, width=64))
    again.load_state_dict(model.state_dict())
    support = torch.randn(2, 5, 3)
    draw = partial(model.sample_rows, support[None], 3, generator=torch.Generator().manual_seed(0))
    expected = draw()
    found = again.sample_rows(support[None], 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, expected)


def test_very_large_latents_are_scaled_down(learnt):
    """A thousand times larger latents, their decoder and spread to match: the same draws from the same noise model."""
    model, zoo, _ = learnt
    large = copy.deepcopy(model)
    last, first = large.vae.encoder[-1], large.vae.decoder[0]
    with torch.no_grad():
        for tensor in (last.weight, last.bias):
            tensor[: large.vae.latent] *= 1000
        last.bias[large.vae.latent :] += 2 * math.log(1000)
        first.weight /= 1000
        assert large.vae.encode(large._rows(torch.arange(len(zoo)))).mean.std() > 100
    for one in (model, large):
        one._encode(None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(large.latent_scale * 1000, model.latent_scale, rtol=1e-4, atol=0)
    support = torch.randn(2, 5, 3)
    mine, its = (
        one.sample_rows(support[None], 4, generator=torch.Generator().manual_seed(0)) for one in (model, large)
    )
    torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mixed", [True, False])
def test_permuted_classes_permute_heads_only_if_the_zoo_has_them_in_all_orders(mixed):
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(356, 2, 3, generator=generator) + torch.tensor([[2.0, 0, 0], [-2.0, 0, 0]])
    members, fresh = means[:256], means[256:]
    if mixed:
        members = members.take_along_dim(torch.rand(256, 2, 1, generator=generator).argsort(1), 1)
    support = members[:, :, None] + 0.1 * torch.randn(256, 2, 6, 3, generator=generator)
    model = fitted(WeightZoo.from_state_dicts([{"weight": head} for head in members], support_NCSF=support))
    noise, accuracies = torch.randn(2, 50, 3, generator=generator), []
    for tasks in (fresh, fresh.flip(1)):
        shots = tasks[:, :, None].expand(-1, -1, 5, -1)
        heads = model.sample_rows(shots, generator=torch.Generator().manual_seed(1)).unflatten(1, (2, 3))
        logits = torch.einsum("tcsf,tkf->tcsk", tasks[:, :, None] + noise, heads)
        accuracies.append((logits.argmax(3) == torch.arange(2)[:, None]).float().mean().item())
    in_order, permuted = accuracies
    assert in_order > 0.9
    if mixed:
        assert permuted == pytest.approx(in_order, abs=0.05)
    else:
        assert permuted < 0.5


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_draws_do_not_depend_on_each_other(learnt, sampler):
    model, _, _ = learnt
    support = torch.randn(2, 5, 3)
    few, many = (
        model.sample_rows(support[None], count, sampler=sampler, steps=20, generator=torch.Generator().manual_seed(3))
        for count in (2, 5)
    )
    torch.testing.assert_close(few, many[:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(many[0], many[1])


def test_nothing_is_drawn_before_training(learnt):
    model, zoo, _ = learnt
    new = WeightDiffusion(zoo, OrderedEncoder(3, 2), vae=WeightVAE(6, latent=6, width=64))
    with pytest.raises(WeightsmithError, match="not trained. Call fit"):
        new.sample(torch.randn(2, 5, 3))
    new.load_state_dict(model.state_dict())
    assert len(new.sample(torch.randn(2, 5, 3))) == 1


def test_no_draws_and_bad_draws(learnt):
    model, zoo, _ = learnt
    support = torch.randn(2, 5, 3)
    assert model.sample(support, 0) == []
    for change in ({"count": -1}, {"steps": 0}, {"steps": 2000}):
        with pytest.raises(HyperparameterError):
            model.sample(support, **change)
    with pytest.raises(HyperparameterError, match="sampler: found 'euler'"):
        model._scheduler("euler")
    for wrong in (torch.randn(1, 5, 3), torch.randn(3, 5, 3), torch.randn(2, 5, 4), torch.randn(2, 0, 3), None):
        with pytest.raises(ShapeError, match="support"):
            model.sample(wrong)
    with pytest.raises(ShapeError, match="expected none"):
        WeightDiffusion(zoo).sample(support)


def test_what_cannot_be_learnt_is_refused():
    zoo, _ = conditional_zoo()
    bare = WeightZoo(zoo.weights_NP, zoo.slots)
    with pytest.raises(CalibrationError, match="found none"):
        WeightDiffusion(bare, OrderedEncoder(3, 2))
    with pytest.raises(CalibrationError, match="found 6, expected 7"):
        WeightDiffusion(zoo, OrderedEncoder(3, 2), shots=7)
    with pytest.raises(CalibrationError):
        nearest(bare, torch.zeros(2, 5, 3))
    with pytest.raises(CalibrationError):
        Hypernetwork(bare, OrderedEncoder(3, 2))
    for change in ({"beta_start": 0.0}, {"beta_end": 1e-4}, {"timesteps": 1}, {"shots": 0}):
        with pytest.raises(HyperparameterError):
            WeightDiffusion(zoo, **change)
    with pytest.raises(HyperparameterError, match="vae_steps"):
        WeightDiffusion(zoo).fit(vae_steps=0)


def test_the_authors_networks_run_end_to_end():
    zoo = WeightZoo.from_state_dicts([nn.Linear(4, 3).state_dict() for _ in range(8)])
    vae = ConvolutionalVAE(15, chunk_features=64, image_side=8, channels=(4, 8), latent_channels=4)
    model = WeightDiffusion(zoo, vae=vae, network=NoiseImages(vae.latent, 0, channels=(8, 8, 8)))
    model.fit(vae_steps=30, steps=2, batch_size=8)
    assert model.sample(count=2, steps=2)[0]["weight"].shape == (3, 4)
    with pytest.raises(HyperparameterError, match="a square"):
        NoiseImages(60, 0)


# baselines, selection, command --------------------------------------------------------------------------------------


def test_baselines():
    zoo, means = conditional_zoo(256)
    support = means[5][:, None].expand(-1, 5, -1)
    assert torch.equal(nearest(zoo, support)["weight"], means[5])
    torch.testing.assert_close(zoo_mean(zoo)["weight"], means.mean(0))
    torch.manual_seed(0)
    regression = Hypernetwork(zoo, OrderedEncoder(3, 2)).fit(steps=300, batch_size=64, learning_rate=2e-3)
    fresh = torch.randn(2, 3)
    error = (regression.predict(fresh[:, None].expand(-1, 5, -1))["weight"] - fresh).norm()
    assert error < 0.5 * (means.mean(0) - fresh).norm()
    drawn = PrincipalGaussian(zoo, 6).sample(4000, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([state["weight"].flatten() for state in drawn])
    torch.testing.assert_close(rows.T.cov(), means.flatten(1).T.cov(), atol=0.1, rtol=0.1)


def test_selection_gives_the_model_its_weights_back():
    model = nn.Linear(1, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = [{"weight": torch.full((1, 1), value)} for value in (1.0, 5.0)]
    best = select(model, drawn, lambda model: model.weight.item())
    assert [candidate.score for candidate in best] == [5.0, 1.0]
    with pytest.raises(ZeroDivisionError):
        select(model, drawn, lambda model: 1 / 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_selection_refuses_other_tensors_and_ranks_nan_last():
    model, scored = nn.Linear(1, 1, bias=False), []
    for wrong in ({"module.weight": torch.ones(1, 1)}, {"weight": torch.ones(2, 1)}):
        with pytest.raises(ShapeError, match="tensors of candidate 1"):
            select(model, [{"weight": torch.ones(1, 1)}, wrong], lambda model: scored.append(1) or 1.0)
    assert not scored
    drawn = [{"weight": torch.full((1, 1), value)} for value in (1.0, math.nan, 3.0, 2.0)]
    scores = [candidate.score for candidate in select(model, drawn, lambda model: model.weight.item())]
    assert scores[:3] == [3.0, 2.0, 1.0]
    assert math.isnan(scores[3])


def test_repeated_members_are_told():
    zoo, _ = conditional_zoo()
    copies = torch.from_numpy(np.asarray(zoo.weights_NP[:5])) + 1e-4
    assert memorisation(zoo, copies)["ratio"] < 0.01
    assert memorisation(zoo, torch.randn(50, 6))["ratio"] > 0.5
    twice = WeightZoo(np.repeat(zoo.weights_NP, 2, 0), zoo.slots)
    assert memorisation(twice, torch.randn(50, 6))["zoo"] == memorisation(zoo, torch.randn(50, 6))["zoo"]
    assert memorisation(WeightZoo(zoo.weights_NP[[0, 0]], zoo.slots), copies)["ratio"] == 0


def test_command_writes_all_or_nothing(tmp_path):
    zoo, _ = conditional_zoo(16)
    source = tmp_path / "zoo"
    zoo.save(source)
    task = tmp_path / "task.safetensors"
    save_file({"support": torch.randn(2, 5, 3)}, task)
    small = {"count": 3, "latent": 2, "vae_steps": 150, "steps": 5, "batch_size": 16}
    result = d2nwg([source], tmp_path / "new", support=task, **small)
    rows = [load_file(tmp_path / "new" / f"{name}.safetensors")["weight"] for name in ("0", "1", "2", "mean")]
    torch.testing.assert_close(torch.stack(rows[:3]).mean(0), rows[3])
    assert result.totals["members"] == 16
    with pytest.raises(CalibrationError, match="of the new task: False"):
        d2nwg([source], tmp_path / "other", **small)
    with pytest.raises(CheckpointError, match="cannot read"):
        d2nwg([source], tmp_path / "other", support=source / "manifest.json", **small)
    with pytest.raises(HyperparameterError, match="one zoo"):
        d2nwg([source, source], tmp_path / "other", support=task, **small)
    assert not (tmp_path / "other").exists()


def test_equal_generators_draw_equal_networks_whatever_the_global_seed(tmp_path):
    (tmp_path / "zoo").mkdir()
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(40, generator=draw)
    for number in range(6):
        save_file({"w": base + 0.3 * torch.randn(40, generator=draw)}, tmp_path / "zoo" / f"{number}.safetensors")
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        options = {"vae_steps": 50, "steps": 5, "latent": 4, "generator": torch.Generator().manual_seed(0)}
        d2nwg([tmp_path / "zoo"], tmp_path / f"out{seed}", count=1, **options)
        drawn.append(load_file(tmp_path / f"out{seed}" / "0.safetensors")["w"])
    assert torch.equal(*drawn)
