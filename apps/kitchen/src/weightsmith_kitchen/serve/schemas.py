"""What the REST interface takes and gives."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChangeRequest",
    "ChatRequest",
    "ExportRequest",
    "FoodHit",
    "KitAnswer",
    "PhotoAnswer",
    "RecipeRequest",
    "Row",
    "ScaleRequest",
    "Search",
    "Status",
]

Kit = dict[str, Any]


class Strict(BaseModel):
    """A request: a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class RecipeRequest(Strict):
    """A recipe as it is pasted."""

    text: str = Field(
        description="Title, servings, ingredient lines, steps.", examples=["Serves 2\n2 eggs\n1 tbsp butter"]
    )
    servings: float | None = Field(None, gt=0, le=10_000, description="How many people, where the text does not say.")


class ScaleRequest(Strict):
    """A kit and the number of people it shall be for."""

    kit: Kit
    servings: float = Field(ge=0.01, le=10_000)


class ChatRequest(Strict):
    """A kit and a correction in words."""

    kit: Kit
    text: str = Field(max_length=2_000, examples=["2 eggs instead of 1, no butter"])


class ChangeRequest(Strict):
    """A kit and a change of one ingredient. Without ``line``, ``food`` and ``remove`` nothing changes."""

    kit: Kit
    place: int = Field(ge=0, description="Which ingredient, from 0; the number of ingredients adds one.")
    line: str | None = Field(None, max_length=2_000, description="The ingredient as a line.", examples=["200 g flour"])
    food: str | None = Field(None, max_length=200, description="Id of a row of the table.", examples=["usda:50713"])
    remove: bool = False


class ExportRequest(Strict):
    """A kit to be written as a file."""

    kit: Kit


class Row(BaseModel):
    """An ingredient as the page shows it."""

    name: str
    called: str = Field(description="The name after the amount: egg of one, eggs of several.")
    text: str = Field(description="The line of the recipe.")
    line: str = Field(description="The ingredient as it is now, as a line.")
    amount: str = Field(description="In kitchen fractions.", examples=["1 1/2 cups"])
    grams: list[float] | None = Field(description="Value, lowest and highest.")
    kcal: list[float] | None
    food: str | None = Field(description="Name of the row that the energy comes from.")
    food_id: str | None
    source: str
    basis: str = Field(description="How the weight was found.")
    notes: list[str]


class KitAnswer(BaseModel):
    """A kit: as it is sent back for the next correction, and as it is shown."""

    kit: Kit
    dish: str
    rows: list[Row]
    servings: float
    servings_known: bool
    kcal: list[float] = Field(description="Value, lowest and highest.")
    kcal_per_serving: list[float]
    yields: str = Field(
        description="What it makes, where the recipe says so.", examples=["makes 24 cookies, 20 kcal per cookie"]
    )
    complete: bool = Field(description="Nothing is missing; otherwise the total is a lower bound.")
    missing: str = Field(description="What the total lacks, by name.", examples=["no amount of pepper"])
    shopping_list: list[str] = Field(description="What to buy: a line for each food, its amounts added.")
    notes: list[str]
    said: str = Field("", description="What a correction in words did, or why it did nothing.")
    understood: bool = True
    steps: list[str] = Field(default_factory=list, description="Instructions of the recipe.")


class PhotoAnswer(KitAnswer):
    """A kit of a photo, and what was recognized."""

    recognition: dict[str, Any]
    width: int
    height: int


class FoodHit(BaseModel):
    """A row of the nutrition table."""

    id: str
    name: str
    kcal: float | None = Field(description="Per 100 g.")
    source: str
    score: float


class Search(BaseModel):
    """Rows whose names are nearest."""

    query: str
    hits: list[FoodHit]


class Status(BaseModel):
    """What the server works with."""

    version: str
    foods: int
    example: str = Field(description="A recipe to try.")
    max_bytes: int
    most_lines: int
