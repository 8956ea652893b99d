"""The meal kit's network: sets, padding, losses by hand, gradients, tables, saved folders."""

import math

import pytest
import torch

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith_kitchen.errors import ModelError, RecipeError
from weightsmith_kitchen.portions import (
    IngredientMLP,
    KitOutput,
    LabeledIngredient,
    LabeledRecipe,
    PortionCalorieNet,
    PortionEstimator,
    RecipeTable,
    kit_loss,
    total_errors,
    unit_weights,
)
from weightsmith_kitchen.portions.commands import _tested
from weightsmith_kitchen.portions.network import LOSSES, AttentionReduce
from weightsmith_kitchen.portions.recipes import read_labeled


@pytest.fixture
def net():
    torch.manual_seed(0)
    return PortionCalorieNet(30, width=32, head_width=8, image_channels=12).eval()


IMAGE = torch.randn(2, 12, 7, 7, generator=torch.Generator().manual_seed(1))
LIST = torch.tensor([[3, 17, 9, 4], [5, 6, 0, 0]])


def test_a_list_is_a_set(net):
    order = torch.tensor([2, 0, 3, 1])
    out = net(LIST[:1], IMAGE[:1])
    moved = net(LIST[:1, order], IMAGE[:1])
    for one, other in zip(out[:4], moved[:4], strict=True):
        torch.testing.assert_close(one[:, order], other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.total, moved.total, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(net):
    both = net(LIST, IMAGE)
    short = net(LIST[1:, :2], IMAGE[1:])
    for one, other in zip(both[:4], short[:4], strict=True):
        torch.testing.assert_close(one[1:, :2], other, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both.total[1:], short.total, atol=1e-6, rtol=1e-5)
    assert net(torch.tensor([[7]]), IMAGE[:1]).total.isfinite().all()


def test_weights_of_the_sum_are_a_distribution_without_padding():
    reduce = AttentionReduce(8)
    weights = reduce.weights(torch.randn(2, 4, 8), LIST != 0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[1, 2:] == 0).all()


def output(kcal, units=None, portions=None, aligned=None, total=None):
    kcal = torch.tensor([kcal])
    zero = torch.zeros_like(kcal)
    return KitOutput(
        torch.zeros(*kcal.shape, 6) if units is None else units,
        zero if portions is None else torch.tensor([portions]),
        kcal,
        zero if aligned is None else torch.tensor([aligned]),
        torch.zeros(1) if total is None else torch.tensor([total]),
    )


def target(kcal, mask, portion=None, total=0.0):
    return {
        "kcal": torch.tensor([kcal]),
        "mask": torch.tensor([mask]).bool(),
        "unit": torch.zeros(1, len(kcal), dtype=torch.long),
        "portion": torch.tensor([portion or [0.0] * len(kcal)]),
        "total": torch.tensor([total]),
    }


def test_the_losses_by_hand():
    out = output([1.0, 3.0])
    only = lambda part: dict.fromkeys([part], 1.0)  # noqa: E731
    assert kit_loss(out, target([2.0, 1.0], [1, 1]), parts=only("calorie")) == pytest.approx(2.5)
    assert kit_loss(out, target([2.0, 1.0], [1, 0]), parts=only("calorie")) == pytest.approx(1.0)
    assert kit_loss(out, target([2.0, 1.0], [1, 1]), parts=only("unit")).item() == pytest.approx(math.log(6))
    # all exact but the aligned energies, which are off by one
    exact = output([2.0, 1.0], aligned=[3.0, 2.0], total=3.0)
    loss = kit_loss(exact, target([2.0, 1.0], [1, 1], total=3.0), weights=torch.ones(6))
    assert loss.item() == pytest.approx(0.1 + math.log(6))


def test_a_portion_that_is_not_known_is_left_out():
    out = output([0.0, 0.0], portions=[1.0, 5.0])
    known = kit_loss(out, target([0.0, 0.0], [1, 1], [0.0, math.nan]), parts={"portion": 1.0})
    assert known.item() == pytest.approx(1.0)


def test_weights_of_units():
    expected = [1 / 3, 0.5556, 1.6667, 3.3333, 5.0, 5.0]
    assert unit_weights([50, 30, 10, 5, 3, 2]).tolist() == pytest.approx(expected, abs=1e-4)


def test_without_image_features_the_photo_changes_nothing_and_every_loss_reaches_it(net):
    zero = torch.zeros_like(IMAGE)
    torch.testing.assert_close(net(LIST, zero).total, net(LIST, zero * 2).total)
    assert not torch.allclose(net(LIST, IMAGE).total, net(LIST, zero).total)
    wanted = {
        "kcal": torch.ones(2, 4),
        "mask": LIST != 0,
        "unit": torch.zeros(2, 4, dtype=torch.long),
        "portion": torch.ones(2, 4),
        "total": torch.ones(2),
    }
    for part in LOSSES:
        image = IMAGE.clone().requires_grad_()
        kit_loss(net(LIST, image), wanted, parts={part: 1.0}).backward()
        assert image.grad is not None, part
        assert image.grad.abs().sum() > 0, part


def test_what_cannot_be_read_is_refused(net):
    with pytest.raises(ShapeError, match="image"):
        net(LIST)
    for blind in (PortionCalorieNet(30, width=32, head_width=8), IngredientMLP(30, width=32)):
        with pytest.raises(ShapeError, match=r"image of the network: found \(2, 12, 7, 7\), expected none"):
            blind(LIST, IMAGE)
    with pytest.raises(ShapeError, match="no ingredient"):
        net(torch.zeros(1, 3, dtype=torch.long), IMAGE[:1])
    with pytest.raises(HyperparameterError, match="width"):
        PortionCalorieNet(3, width=31)
    with pytest.raises(HyperparameterError, match="parts"):
        kit_loss(output([1.0]), target([1.0], [1]), parts={"calories": 1.0})


def test_every_loss_reaches_an_encoder_of_the_network():
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 12, 4, 4)
    kinds = (
        PortionCalorieNet(30, width=32, head_width=8, image_channels=12, image_encoder=encoder),
        IngredientMLP(30, width=32, image_channels=12, image_encoder=encoder),
    )
    wanted = {
        "kcal": torch.ones(2, 4),
        "mask": LIST != 0,
        "unit": torch.zeros(2, 4, dtype=torch.long),
        "portion": torch.ones(2, 4),
        "total": torch.ones(2),
    }
    for network in kinds:
        for part in LOSSES:
            encoder.zero_grad()
            kit_loss(network(LIST, torch.randn(2, 3, 16, 16)), wanted, parts={part: 1.0}).backward()
            assert encoder.weight.grad.abs().sum() > 0, part
    with pytest.raises(HyperparameterError, match="image_channels"):
        PortionCalorieNet(30, width=32, image_encoder=encoder)


def test_an_ingredient_alone_does_not_know_the_others():
    torch.manual_seed(0)
    network = IngredientMLP(30, width=32, image_channels=12).eval()
    both, other = network(LIST, IMAGE), network(torch.tensor([[3, 8, 0, 0], [5, 6, 0, 0]]), IMAGE)
    for one, again in zip(both[:4], other[:4], strict=True):
        torch.testing.assert_close(one[0, 0], again[0, 0])
        torch.testing.assert_close(one[1, :2], again[1, :2])
    torch.testing.assert_close(both.total, (both.kcal * (LIST != 0)).sum(1))
    assert not torch.allclose(network(LIST, 2 * IMAGE).kcal, both.kcal)
    with pytest.raises(ShapeError, match="image"):
        network(LIST)


@pytest.fixture(scope="module")
def recipes():
    foods = {
        "flour": ("cup", 455.0),
        "egg": ("count", 72.0),
        "butter": ("tablespoon", 102.0),
        "salt": ("teaspoon", 0.0),
    }
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(60):
        chosen = [name for name in foods if torch.rand(1, generator=generator) < 0.7] or ["egg"]
        amounts = torch.randint(1, 4, (len(chosen),), generator=generator).tolist()
        made.append(
            LabeledRecipe(
                tuple(
                    LabeledIngredient(name, foods[name][0], amount, amount * foods[name][1])
                    for name, amount in zip(chosen, amounts, strict=True)
                )
            )
        )
    return made


def test_units_and_energies_are_learned_and_survive_a_folder(recipes, tmp_path):
    estimator = PortionEstimator(RecipeTable.learn(recipes), width=32, head_width=8)
    run = estimator.fit(recipes, epochs=60, learning_rate=2e-3)
    assert run.losses[-1] < run.losses[0]
    found, total = estimator.estimate(["flour", "egg", "salt"])
    assert [item.unit for item in found] == ["cup", "count", "teaspoon"]
    assert found[0].kcal > 4 * found[1].kcal > found[2].kcal
    assert 500 < total < 2000
    estimator.save_pretrained(tmp_path / "kit")
    again, same = PortionEstimator.from_pretrained(tmp_path / "kit").estimate(["flour", "egg", "salt"])
    assert (again, same) == (found, total)
    (tmp_path / "kit" / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ModelError, match="other"):
        PortionEstimator.from_pretrained(tmp_path / "kit")


def test_another_fit_goes_on_from_all_weights(recipes, tmp_path):
    estimator = PortionEstimator(RecipeTable.learn(recipes), width=16, head_width=4)
    before = estimator.network.total_out.bias.clone()
    estimator.fit(recipes, epochs=3, learning_rate=1e-2)
    assert not torch.equal(estimator.network.total_out.bias, before)
    estimator.save_pretrained(tmp_path / "kit")
    for trained in (estimator, PortionEstimator.from_pretrained(tmp_path / "kit")):
        state = {name: value.clone() for name, value in trained.network.state_dict().items()}
        trained.fit(recipes[:9], epochs=1, learning_rate=0.0)
        assert all(torch.equal(value, state[name]) for name, value in trained.network.state_dict().items())


def test_portions_are_read_from_photos(tmp_path):
    """The only thing that tells one egg from three is the photo."""
    amounts = torch.randint(1, 4, (80,), generator=torch.Generator().manual_seed(0))
    recipes = [LabeledRecipe((LabeledIngredient("egg", "count", n, 70.0 * n),)) for n in amounts.tolist()]
    photos = amounts[:, None, None, None].float().expand(-1, 3, 8, 8) - 2
    torch.manual_seed(0)
    encoder = torch.nn.Conv2d(3, 4, 4, 4)
    options = {"width": 16, "heads": 2, "head_width": 8, "image_channels": 4, "dropout": 0.0}
    estimator = PortionEstimator(RecipeTable.learn(recipes), image_encoder=encoder, **options)
    estimator.fit(recipes, list(photos), epochs=40, learning_rate=5e-3, batch_size=16)
    few, many = (estimator.estimate(["egg"], torch.full((3, 8, 8), value)) for value in (-1.0, 1.0))
    assert few[0][0].portion == pytest.approx(1, abs=0.3)
    assert many[0][0].portion == pytest.approx(3, abs=0.3)
    assert many[1] == pytest.approx(210, abs=25)
    estimator.save_pretrained(tmp_path / "kit")
    again = PortionEstimator.from_pretrained(tmp_path / "kit", image_encoder=torch.nn.Conv2d(3, 4, 4, 4))
    assert again.estimate(["egg"], torch.ones(3, 8, 8)) == many
    with pytest.raises(RecipeError, match="photos: found 1, expected 80"):
        estimator.fit(recipes, list(photos[:1]))


def test_percentages_of_errors():
    found = total_errors([150, 300], [100, 400])
    assert found == pytest.approx((75.0, 0.3, 0.375, 0.375))
    assert total_errors([0, 0, 0], [1, 2, 3]).median_relative == 1
    with pytest.raises(RecipeError, match="true energies"):
        total_errors([1.0], [0.0])
    with pytest.raises(RecipeError, match="predicted energies"):
        total_errors([1.0], [1.0, 2.0])


def test_an_unknown_ingredient_names_the_nearest(recipes):
    estimator = PortionEstimator(RecipeTable.learn(recipes), width=16, head_width=4)
    with pytest.raises(RecipeError, match="flour"):
        estimator.estimate(["flours"])


def test_rare_units_become_other_and_long_recipes_keep_what_counts(recipes):
    odd = LabeledRecipe((LabeledIngredient("fig", "armful", 1, 50.0), *recipes[0].ingredients))
    table = RecipeTable.learn([*recipes, odd], slots=2)
    assert "armful" not in table.units
    assert table.units[-1] == "other"
    with pytest.warns(
        UserWarning, match=rf"^{len(odd.ingredients) - 2} ingredients are .* slots={len(odd.ingredients)} "
    ):
        sample = table.samples([odd])[0]
    assert int(sample["mask"].sum()) == 2
    kept = sorted((item.kcal for item in odd.ingredients), reverse=True)[:2]
    assert (sample["kcal"] * table.kcal_scale).tolist() == pytest.approx(kept)
    assert sample["total"].item() * table.kcal_scale == pytest.approx(odd.kcal)


@pytest.mark.parametrize(
    ("portion", "kcal", "field"),
    [
        (-1, 3.0, "portion"),
        (0, 3.0, "portion"),
        (1, math.nan, "kcal"),
        (1, -3.0, "kcal"),
        (math.inf, 1.0, "portion"),
    ],
)
def test_impossible_targets_name_the_recipe(portion, kcal, field):
    with pytest.raises(RecipeError, match=rf"recipe 0 \(Stew\), fig, {field}"):
        RecipeTable.learn([LabeledRecipe((LabeledIngredient("fig", "count", portion, kcal),), "Stew")])


def test_unit_that_was_never_learned_is_no_target(recipes):
    odd = LabeledRecipe((LabeledIngredient("egg", "armful", 1, 50.0), LabeledIngredient("flour", "cup", 1, 455.0)))
    table = RecipeTable.learn(recipes)
    assert "other" not in table.units
    sample = table.samples([odd])[0]
    assert sample["unit"][:2].tolist() == [table.units.index("cup"), -100]
    assert sample["portion"].isnan().tolist()[:2] == [False, True]
    estimator = PortionEstimator(table, width=16, head_width=4)
    with pytest.raises(RecipeError, match=r"armful \(1\), expected .*cup"):
        estimator.fit([*recipes, odd], epochs=1)
    scores, notes = _tested(estimator, [odd])
    assert scores.units in (0, 1)
    assert notes == ("units of the test that are in no recipe learned from, and not scored: armful",)


def test_portion_of_nothing_in_a_table_is_refused(tmp_path):
    table = tmp_path / "recipes.csv"
    table.write_text("recipe,ingredient,unit,portion,kcal\nstew,fig,count,,3\nstew,fig,count,0,3\n")
    with pytest.raises(RecipeError, match="line 3, portion"):
        read_labeled(table)
