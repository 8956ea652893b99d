"""The first stage: what lists may hold, corrections, the set loss by hand, gradients, learning."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.portions import IngredientDecoder, set_loss

FOODS, DISHES = 20, 4
IMAGES = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(1))


def decoder(seed=0, **changes):
    torch.manual_seed(seed)
    made = IngredientDecoder(FOODS, DISHES, width=16, heads=2, head_width=8, image_channels=6, **changes).eval()
    with torch.no_grad():  # far from uniform, so that lists differ
        made.out.weight.mul_(8)
        made.embedding.weight.mul_(20)
    return made


@given(st.integers(0, 500))
@settings(deadline=None, max_examples=15)
def test_lists_have_no_dish_no_repeat_and_at_most_five_and_ten(seed):
    made = decoder(seed)
    for number, found in enumerate(made.generate([0, 1, 3], IMAGES)):
        assert found.dish == (0, 1, 3)[number]
        assert len(found.main) <= 5
        assert len(found.optional) <= 10
        assert len(set(found.ingredients)) == len(found.ingredients)
        assert all(1 <= food <= FOODS for food in found.ingredients)
        assert len(found.confidences) == len(found.ingredients)
        assert all(0 < confidence <= 1 for confidence in found.confidences)


def test_an_end_that_is_never_likely_fills_both_lists():
    made = decoder()
    with torch.no_grad():
        made.out.bias[0] = -1e4
    found = made.generate([2], IMAGES[:1])[0]
    assert (len(found.main), len(found.optional)) == (5, 10)
    with torch.no_grad():
        made.out.bias[0] = 1e4
    assert made.generate([2], IMAGES[:1])[0].ingredients == ()


def test_dishes_and_what_is_written_have_probability_zero():
    made = decoder()
    said = made(torch.tensor([1]), torch.tensor([[4, 9, 2]]), made.tokens_of(IMAGES[:1], 1)).exp()
    torch.testing.assert_close(said.sum(-1), torch.ones(1, 4))
    assert (said[..., 1 + FOODS :] == 0).all()
    assert said[0, 0, [4, 9, 2]].gt(0).all()
    assert [said[0, step, [4, 9, 2]].eq(0).sum().item() for step in range(4)] == [0, 1, 2, 3]


def test_later_ingredients_and_padding_change_nothing_before():
    made = decoder()
    tokens = made.tokens_of(IMAGES[:1], 1)
    long = made(torch.tensor([1]), torch.tensor([[4, 9, 2, 0, 0]]), tokens)
    short = made(torch.tensor([1]), torch.tensor([[4, 9]]), tokens)
    torch.testing.assert_close(long[:, :3], short, atol=1e-5, rtol=1e-5)


def test_an_optional_list_knows_the_main_one_and_where_it_begins():
    made = decoder()
    tokens = made.tokens_of(IMAGES[:2], 2)
    dish, begun = torch.tensor([1, 1]), torch.tensor([2, 1])
    both = made(dish, torch.tensor([[4, 9, 0, 3], [4, 0, 3, 0]]), tokens[:1].expand(2, -1, -1), begun)
    alone = made(dish[:1], torch.tensor([[4, 9, 0, 3]]), tokens[:1], begun[:1])
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[0, 3, 5:FOODS], both[1, 2, 5:FOODS])


def test_a_correction_keeps_what_is_before_and_goes_on_from_there():
    made = decoder(3)
    with torch.no_grad():
        made.out.bias[0] = -3.0
    image = IMAGES[:1]
    found = made.generate([2], image)[0]
    count = len(found.ingredients)
    assert len(found.main) >= 2
    assert found.optional
    for place in range(count):  # the same ingredient changes nothing
        assert made.correct(found, place, found.ingredients[place], image) == found
    other = next(food for food in range(1, FOODS + 1) if food not in found.ingredients)
    for place in (1, len(found.main), count - 1):
        again = made.correct(found, place, other, image)
        assert again.ingredients[: place + 1] == (*found.ingredients[:place], other)
        assert again.confidences[: place + 1] == (*found.confidences[:place], 1.0)
        assert len(set(again.ingredients)) == len(again.ingredients)
        if place >= len(found.main):
            assert again.main == found.main
    # going on from a prefix that the decoder wrote itself gives what it wrote
    begin = type(found)(2, found.main[:1], (), found.confidences[:1])
    assert made.generate([2], image, prefixes=[begin])[0] == found


def test_impossible_corrections_and_dishes_are_refused():
    made = decoder(3)
    with torch.no_grad():
        made.out.bias[0] = -3.0
    found = made.generate([2], IMAGES[:1])[0]
    with pytest.raises(RecipeError, match="place of the correction"):
        made.correct(found, 99, 1, IMAGES[:1])
    with pytest.raises(RecipeError, match="1 to 20"):
        made.correct(found, 0, FOODS + 1, IMAGES[:1])
    with pytest.raises(RecipeError, match="already at place 0"):
        made.correct(found, 1, found.ingredients[0], IMAGES[:1])
    with pytest.raises(RecipeError, match="0 to 3"):
        made.generate([DISHES], IMAGES[:1])
    with pytest.raises(ShapeError, match="image of the decoder"):
        made.generate([0])
    with pytest.raises(ShapeError, match=r"image of the decoder: .* expected none"):
        IngredientDecoder(FOODS, DISHES, width=16, heads=2, head_width=8).generate([0], IMAGES[:1])
    with pytest.raises(HyperparameterError, match="dishes"):
        IngredientDecoder(3, 0)
    with pytest.raises(HyperparameterError, match="image_channels"):
        IngredientDecoder(3, 2, image_encoder=torch.nn.Identity())


def test_the_set_loss_by_hand():
    # two steps of (end, a, b, c); a is wanted
    said = torch.tensor([[[0.2, 0.5, 0.2, 0.1], [0.6, 0.0, 0.3, 0.1]]])
    wanted = torch.tensor([[True, False, False]])
    bce = -(math.log(0.5) + math.log(0.8) + math.log(0.9)) / 3  # the second step is after the end
    end = -(math.log(0.8) + math.log(0.6)) / 2
    number = abs(0.5 + 0.2 + 0.1 - 1)
    for weights, expected in (
        ((1.0, 0.0, 0.0), bce),
        ((0.0, 1.0, 0.0), end),
        ((0.0, 0.0, 1.0), number),
        ((1000.0, 1.0, 1.0), 1000 * bce + end + number),
    ):
        assert set_loss(said.log(), wanted, weights=weights).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_order_of_a_list_means_nothing_to_the_loss():
    said = torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    wanted = torch.zeros(4, 7, dtype=torch.bool)
    wanted[:, [1, 4, 5]] = True
    swapped = said[:, [2, 0, 1]]
    only = (1.0, 0.0, 1.0)
    torch.testing.assert_close(set_loss(said, wanted, weights=only), set_loss(swapped, wanted, weights=only))


def test_the_loss_reaches_encoder_and_dish():
    encoder = torch.nn.Conv2d(3, 6, 4, 4)
    torch.manual_seed(0)
    made = IngredientDecoder(
        FOODS, DISHES, width=16, heads=2, head_width=8, image_channels=6, image_encoder=encoder, main=3, optional=3
    )
    main, optional = torch.zeros(2, FOODS, dtype=torch.bool), torch.zeros(2, FOODS, dtype=torch.bool)
    main[:, :2], optional[1, 5] = True, True
    loss = made.loss(torch.tensor([0, 1]), main, optional, torch.randn(2, 3, 16, 16))
    loss.backward()
    assert loss.isfinite()
    assert encoder.weight.grad.abs().sum() > 0
    assert made.embedding.weight.grad[1 + FOODS : 3 + FOODS].abs().sum() > 0


def test_lists_are_learned_and_depend_on_dish_and_main():
    """Dish 0 is 1, 2 then 3; dish 1 is 4 then 5, 6; each seen with and without its optional ones in the image."""
    torch.manual_seed(0)
    made = IngredientDecoder(6, 2, width=24, heads=2, head_width=12, image_channels=1, main=3, optional=3, dropout=0.0)
    dish = torch.tensor([0, 0, 1, 1])
    image = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None, None].expand(-1, 1, 2, 2)
    lists = [((1, 2), ()), ((1, 2), (3,)), ((4,), ()), ((4,), (5, 6))]
    main, optional = torch.zeros(4, 6, dtype=torch.bool), torch.zeros(4, 6, dtype=torch.bool)
    for row, (first, second) in enumerate(lists):
        main[row, [food - 1 for food in first]] = True
        optional[row, [food - 1 for food in second]] = True
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        made.loss(dish, main, optional, image, generator=generator).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    found = made.generate(dish.tolist(), image)
    assert [(set(x.main), set(x.optional)) for x in found] == [(set(a), set(b)) for a, b in lists]
