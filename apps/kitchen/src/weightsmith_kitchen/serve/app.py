"""The routes: what the page and programs call."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response

from weightsmith.core.web import Guard, Limits, answer_problems, problems, serve_page, uploaded
from weightsmith_kitchen import __version__
from weightsmith_kitchen.demo import RECIPE
from weightsmith_kitchen.errors import NutritionError, PhotoError, RecipeError
from weightsmith_kitchen.kit import MealKit, edit, make_kit, read_recipe, to_csv, to_pdf
from weightsmith_kitchen.kit.photo import kit_of_photo
from weightsmith_kitchen.nutrition import NutritionTable, price
from weightsmith_kitchen.photos.classifier import FoodClassifier
from weightsmith_kitchen.photos.images import open_photo, original_size
from weightsmith_kitchen.photos.loading import classifier_of
from weightsmith_kitchen.phrases.lines import split_line
from weightsmith_kitchen.phrases.read import read_ingredient
from weightsmith_kitchen.recipe import Ingredient
from weightsmith_kitchen.serve.schemas import (
    ChangeRequest,
    ChatRequest,
    ExportRequest,
    FoodHit,
    KitAnswer,
    PhotoAnswer,
    RecipeRequest,
    Row,
    ScaleRequest,
    Search,
    Status,
)

__all__ = ["create_app"]

T = TypeVar("T")
MOST_INGREDIENTS = 400
"""Ingredients of a kit on the page; the command line takes more."""
MOST_BOXES = 20
NOWHERE = "qwertz"
"""A name that no row has a word of."""
TYPES = {"pdf": "application/pdf", "csv": "text/csv", "json": "application/json"}


def create_app(
    table: NutritionTable,
    *,
    classifier: FoodClassifier | None = None,
    limits: Limits | None = None,
    warm_up: bool = False,
) -> Guard:
    """Make the ASGI application.

    Parameters
    ----------
    table : NutritionTable
        Where foods are looked up.
    classifier : FoodClassifier, optional
        Recognizes photos; by default the one that ships, loaded with the first photo.
    limits : Limits, optional
        Of size and rate.
    warm_up : bool, default: False
        Load what the first request would wait for when the application starts, in the background.

    Returns
    -------
    Guard
        The application with its checks around it; ``.app`` is the FastAPI application inside.
    """
    limits = limits or Limits(20 << 20, 600)
    # One processor's work at a time: a second thread at it would make both wait.
    worker = CapacityLimiter(1)

    async def in_thread(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await to_thread.run_sync(partial(work, *arguments, **options), limiter=worker)

    def warm() -> None:
        """Load and compile what the first request would wait for."""
        make_kit(["1 cup flour"], table)
        table.nearest(NOWHERE)  # needs the encoder of sentences, which takes longest
        if classifier is None:
            classifier_of()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = threading.Thread(target=warm, daemon=True)
        if warm_up:
            warming.start()
        yield
        if warm_up:  # a process that ends while a model is being loaded is aborted
            await to_thread.run_sync(warming.join)

    app = FastAPI(
        lifespan=lifespan,
        title="weightsmith kitchen",
        version=__version__,
        summary="A photo or a recipe to ingredients, portions, calories and a meal kit.",
        description="Answers on this machine only. No photo and no text is stored or logged. The server has no state.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    answer_problems(app, {RecipeError: 422, PhotoError: 422, NutritionError: 404})
    serve_page(app, "weightsmith_kitchen.serve")
    asked = problems(400, 403, 404, 408, 413, 415, 422)

    @app.get("/api/status", responses=problems(), operation_id="status")
    async def status() -> Status:
        """Say what the server works with."""
        return Status(
            version=__version__,
            foods=await in_thread(len, table),
            example=RECIPE,
            max_bytes=limits.max_bytes,
            most_lines=MOST_INGREDIENTS,
        )

    @app.post("/api/recipe", responses=asked, operation_id="recipe")
    async def recipe(request: RecipeRequest) -> KitAnswer:
        """Read a recipe and price it."""

        def work() -> KitAnswer:
            size = len(request.text.encode())
            if size > limits.max_bytes:
                raise HTTPException(413, f"text: found {size:,} bytes, expected at most {limits.max_bytes:,}.")
            read = read_recipe(request.text)
            _check_count(len(read.ingredients))
            made = make_kit(read, table, servings=request.servings)
            return _answer(made, steps=list(read.instructions))

        return await in_thread(work)

    @app.post("/api/photo", responses=asked, operation_id="photo", openapi_extra={"requestBody": PHOTO_BODY})
    async def photo(
        request: Request,
        boxes: Annotated[str | None, Query(description="JSON list of [xmin, ymin, xmax, ymax] in pixels.")] = None,
    ) -> PhotoAnswer:
        """Recognize the foods of a photo."""
        _, content = await uploaded(request, limits.max_bytes, expected="one photo")
        if len(content) > limits.max_bytes:
            raise HTTPException(413, f"photo: found {len(content):,} bytes, expected at most {limits.max_bytes:,}.")

        def work() -> PhotoAnswer:
            made = kit_of_photo(content, table, boxes=_boxes(boxes), classifier=classifier)
            width, height = original_size(open_photo(content, side=64))  # decoded small
            fields = _answer(made.kit).model_dump()
            return PhotoAnswer(**fields, recognition=made.recognition.to_dict(), width=width, height=height)

        return await in_thread(work)

    @app.post("/api/scale", responses=asked, operation_id="scale")
    async def scale(request: ScaleRequest) -> KitAnswer:
        """Scale a kit to a number of people."""
        return _answer(_kit(request.kit).scale(request.servings))

    @app.post("/api/chat", responses=asked, operation_id="chat")
    async def chat(request: ChatRequest) -> KitAnswer:
        """Correct a kit in words. What is not understood changes nothing, and the answer says what can be said."""
        reply = await in_thread(edit, _kit(request.kit), request.text, table)
        _check_count(len(reply.kit.ingredients))
        return _answer(reply.kit, said=reply.said, understood=reply.understood)

    @app.post("/api/change", responses=asked, operation_id="change")
    async def change(request: ChangeRequest) -> KitAnswer:
        """Change, add or remove one ingredient."""
        return _answer(await in_thread(_changed, _kit(request.kit), request, table))

    @app.get("/api/foods", responses=problems(422), operation_id="foods")
    async def foods(
        q: Annotated[str, Query(min_length=1, max_length=200, description="Name of a food.")],
        branded: Annotated[bool, Query(description="Also branded products.")] = False,
        limit: Annotated[int, Query(ge=1, le=50)] = 12,
    ) -> Search:
        """Search the nutrition table."""
        found = await in_thread(table.search, q, limit=limit, branded=branded)
        hits = [
            FoodHit(
                id=match.food.id,
                name=match.food.name,
                kcal=match.food.kcal,
                source=match.food.source,
                score=round(match.score, 3),
            )
            for match in found
        ]
        return Search(query=q, hits=hits)

    @app.post("/api/export", responses={**EXPORTED, **asked}, operation_id="export")
    async def export(
        request: ExportRequest,
        format: Annotated[Literal["pdf", "csv", "json"], Query(description="What to make.")] = "pdf",
    ) -> Response:
        """Write a kit as a file."""
        kit = _kit(request.kit)
        makers: dict[str, Callable[[], str | bytes]] = {
            "pdf": lambda: to_pdf(kit),
            "csv": lambda: to_csv(kit),
            "json": lambda: kit.to_json(indent=2),
        }
        content = await in_thread(makers[format])
        disposition = f'attachment; filename="meal-kit.{format}"'
        return Response(content, media_type=TYPES[format], headers={"content-disposition": disposition})

    return Guard(app, limits=limits)


PHOTO_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, ..."}},
            }
        }
    },
}
EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {
            "application/pdf": {"schema": {"type": "string", "format": "binary"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


def _check_count(count: int) -> None:
    if count > MOST_INGREDIENTS:
        raise RecipeError(
            "ingredients",
            found=f"{count}",
            expected=f"at most {MOST_INGREDIENTS}",
            do="Use `weightsmith kitchen kit FILE` for longer lists.",
        )


def _kit(stored: dict[str, Any]) -> MealKit:
    kit = MealKit.from_dict(stored)
    _check_count(len(kit.ingredients))
    return kit


def _boxes(text: str | None) -> list[list[float]] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
        boxes = [[float(number) for number in box] for box in found]
    except (ValueError, TypeError):
        raise PhotoError("boxes", found=text[:80], expected="a JSON list of [xmin, ymin, xmax, ymax]") from None
    if not 1 <= len(boxes) <= MOST_BOXES or any(len(box) != 4 for box in boxes):
        raise PhotoError("boxes", found=f"{len(boxes)} boxes", expected=f"1 to {MOST_BOXES} of four numbers each")
    return boxes


def _changed(kit: MealKit, request: ChangeRequest, table: NutritionTable) -> MealKit:
    place, adds = request.place, request.place == len(kit.ingredients)
    if request.remove:
        return kit.without(place)
    if request.line is not None:
        if len(request.line.strip().splitlines()) > 1:
            raise RecipeError("line", found="several lines", expected="one ingredient")
        made = [price(read_ingredient(part), table) for part in split_line(request.line)]
        if not all(item.name for item in made):
            raise RecipeError("ingredient", found=repr(request.line[:80]), expected="a food: 200 g flour")
        _check_count(len(kit.ingredients) + len(made) - (not adds))
        kit = kit.plus(made[0]) if adds else kit.put(place, made[0])
        for item in made[1:]:
            kit = kit.plus(item)
        return kit
    if request.food is not None and not adds:
        food = table.get(request.food)
        return kit.put(place, price(kit.at(place), table, food=food))
    return kit


def _answer(kit: MealKit, **more: Any) -> KitAnswer:
    total, single = kit.kcal, kit.kcal_per_serving
    return KitAnswer(
        kit=kit.to_dict(),
        dish=kit.dish,
        rows=[_row(item) for item in kit.ingredients],
        servings=float(kit.servings),
        servings_known=kit.servings_known,
        kcal=[total.value, total.low, total.high],
        kcal_per_serving=[single.value, single.low, single.high],
        yields=kit.yields,
        complete=kit.complete,
        missing=kit.missing,
        shopping_list=list(map(str, kit.shopping_list)),
        notes=list(kit.notes),
        **more,
    )


def _row(item: Ingredient) -> Row:
    weight, energy = item.grams, item.kcal
    return Row(
        name=item.name,
        called=item.called(),
        text=item.text,
        line=item.line(),
        amount=item.measured(),
        grams=None if weight is None else [weight.value, weight.low, weight.high],
        kcal=None if energy is None else [energy.value, energy.low, energy.high],
        food=None if item.food is None else item.food.name,
        food_id=None if item.food is None else item.food.id,
        source="" if item.food is None else item.food.source,
        basis=item.basis,
        notes=list(item.remarks),
    )
