"""``weightsmith kitchen``: every command on real input, and what each refuses."""

import csv
import inspect
import io
import json
import subprocess
import sys
import warnings
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from weightsmith_kitchen import MealKit, Recipe
from weightsmith_kitchen.cli import app
from weightsmith_kitchen.kit import make
from weightsmith_kitchen.options import FORMAT

RECIPE = "Pancakes\nServes 4\n2 cups flour\n3 eggs\n1 cup milk\n1. Mix all and fry it in a hot pan."


def run(*arguments, status=0, **options):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit) and status == "error":
        return result.exception
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "pancakes.txt"
    path.write_text(RECIPE, "utf-8")
    return path


def test_the_demo_writes_its_files(tmp_path):
    result = run("demo", "--out", tmp_path / "demo")
    assert "butter: 2 tablespoons; onion: 1; for 6 people" in result.output
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "kit.csv",
        "kit.json",
        "kit.pdf",
        "recipe.txt",
    ]
    kit = MealKit.from_json((tmp_path / "demo" / "kit.json").read_text("utf-8"))
    assert kit.servings == 6
    assert (tmp_path / "demo" / "kit.pdf").read_bytes().startswith(b"%PDF-")


def test_what_is_parsed_is_what_is_read_back(recipe, tmp_path):
    run("parse", recipe, "--out", tmp_path / "out.jsonl")
    made = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert made.pop("file") == str(recipe)
    assert Recipe.from_dict(made).to_dict() == made
    again = tmp_path / "again.json"
    again.write_text(json.dumps(made), "utf-8")
    assert json.loads(run("parse", again).stdout)["ingredients"] == made["ingredients"]


def test_parse_as_csv(recipe):
    rows = list(csv.DictReader(io.StringIO(run("parse", recipe, "--format", "csv").stdout)))
    assert [(row["name"], row["quantity"], row["unit"]) for row in rows] == [
        ("flour", "2", "cup"),
        ("eggs", "3", ""),
        ("milk", "1", "cup"),
    ]


def test_recipes_as_json_of_lines(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"title": "Soup", "ingredients": ["1 onion"], "yields": "4 servings"}), "utf-8")
    assert json.loads(run("parse", path).stdout)["servings"] == "4"
    path.write_text(json.dumps({"ingredients": ["1 onion"], "yields": "1.5 cups"}), "utf-8")
    assert json.loads(run("parse", path).stdout)["servings"] is None
    path.write_text("[]", "utf-8")
    assert "JSON without one" in run("parse", path, status=1).output


def test_a_kit_is_scaled_corrected_and_written(recipe, tmp_path):
    shown = run("kit", recipe, "--servings", "8", "--say", "no milk").output
    assert "4 cups" in shown
    assert "milk" not in shown
    run("kit", recipe, "--format", "pdf", "--out", tmp_path / "kit.pdf")
    assert (tmp_path / "kit.pdf").read_bytes().startswith(b"%PDF-")
    made = json.loads(run("kit", recipe, "--format", "json").stdout)
    assert made["servings"] == "4"
    rows = list(csv.DictReader(io.StringIO(run("kit", recipe, "--format", "csv").stdout)))
    assert [row["amount"] for row in rows] == ["2 cups", "3", "1 cup"]


def test_a_kit_from_standard_input(recipe):
    with recipe.open("rb") as stream:
        import subprocess
        import sys

        code = "from weightsmith_kitchen.cli import app; app()"
        command = [sys.executable, "-c", code, "kit", "-", "--format", "json"]
        found = subprocess.run(command, stdin=stream, capture_output=True, check=True)
    assert json.loads(found.stdout)["dish"] == "Pancakes"
    recipes = b"".join(json.dumps({"ingredients": [f"{n} eggs"]}).encode() + b"\n" for n in (2, 3))
    found = subprocess.run(command, input=recipes, capture_output=True, check=True)  # as `parse` pipes them
    assert [json.loads(line)["file"] for line in found.stdout.splitlines()] == [
        "/dev/stdin, line 1",
        "/dev/stdin, line 2",
    ]


def test_what_parse_wrote_becomes_kits(recipe, tmp_path):
    other = tmp_path / "soup.txt"
    other.write_text("Soup\nServes 2\n1 onion\n", "utf-8")
    run("parse", recipe, other, "--out", tmp_path / "parsed.jsonl")
    lines = (tmp_path / "parsed.jsonl").read_text("utf-8").splitlines()
    made = list(map(json.loads, run("kit", tmp_path / "parsed.jsonl", "--format", "json").stdout.splitlines()))
    kits = list(map(json.loads, run("kit", recipe, other, "--format", "json").stdout.splitlines()))
    assert [kit.pop("file") for kit in made] == [f"{tmp_path / 'parsed.jsonl'}, line {number}" for number in (1, 2)]
    assert [kit.pop("file") for kit in kits] == [str(recipe), str(other)]
    assert made == kits
    refused = run("kit", tmp_path / "parsed.jsonl", status="error")
    assert "the format text: found 2 recipes, expected one" in str(refused)
    (tmp_path / "one.jsonl").write_text(lines[1] + "\n", "utf-8")
    assert "Soup" in run("kit", tmp_path / "one.jsonl").stdout
    (tmp_path / "broken.jsonl").write_text(f"{lines[0]}\n{lines[1][:40]}\n", "utf-8")
    result = run("kit", tmp_path / "broken.jsonl", "--out", tmp_path / "kits.csv", "--format", "csv", status=1)
    assert "broken.jsonl, line 2: recipe: found JSON that cannot be read" in " ".join(result.stderr.split())
    assert len((tmp_path / "kits.csv").read_text("utf-8").splitlines()) == 4
    (tmp_path / "empty.jsonl").write_text("\n", "utf-8")
    assert "no line in" in str(run("kit", tmp_path / "empty.jsonl", "--format", "json", status="error"))


@pytest.mark.parametrize("command", ["parse", "kit"])
def test_resuming_a_finished_run_says_that_nothing_is_left_to_do(recipe, tmp_path, command):
    arguments = (command, recipe, "--out", tmp_path / "out.jsonl", "--format", "json", "--resume")
    assert "nothing is left" not in run(*arguments).stderr
    assert "nothing is left to do: 1 files, 0 failed" in run(*arguments).stderr
    assert "exists" in str(run(*arguments[:-1], status="error"))


def test_estimate_and_search():
    made = json.loads(run("estimate", "100 g butter", "2 cups unobtainium", "--format", "json").stdout)
    assert made["kcal"][0] == pytest.approx(743)
    assert not made["complete"]
    hits = list(map(json.loads, run("search", "rye flour", "--limit", "2", "--format", "json").stdout.splitlines()))
    assert len(hits) == 2
    assert all("rye" in hit["name"].lower() for hit in hits)


def test_a_table_of_ones_own(tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("name,kcal,grams_per_piece\ngranola bar,400,50\n", "utf-8")
    made = json.loads(run("estimate", "2 granola bars", "--table", table, "--format", "json").stdout)
    assert made["kcal"][0] == pytest.approx(400)
    table.write_text("name,kcal\nx,much\n", "utf-8")
    assert "line 2, kcal" in str(run("estimate", "1 egg", "--table", table, status="error"))


def test_photos(tmp_path):
    Image.new("RGB", (96, 96), (120, 60, 20)).save(tmp_path / "plain.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"<svg/>")
    result = run("recognize", tmp_path, "--format", "json", status=1)
    made = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(made) == 1
    assert made[0]["regions"][0]["candidates"]
    assert "broken.jpg" in result.output
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"plain.jpg": [[0, 0, 50, 50], [40, 40, 96, 96]]}), "utf-8")
    rows = run("recognize", tmp_path / "plain.jpg", "--boxes", boxes, "--format", "csv").stdout.splitlines()
    assert len(rows) >= 2
    boxes.write_text(json.dumps({"other.jpg": [[0, 0, 50, 50]]}), "utf-8")
    refused = run("recognize", tmp_path / "plain.jpg", "--boxes", boxes, status="error")
    assert "for no photo, such as other.jpg" in str(refused)
    boxes.write_text("[", "utf-8")
    assert "expected JSON" in str(run("recognize", tmp_path / "plain.jpg", "--boxes", boxes, status="error"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kit", "{recipe}", "--servings", "0"], "above 0"),
        (["kit", "{recipe}", "--say", "make it spicy", "--format", "text"], "not understood"),
        (["kit", "{recipe}", "{recipe}"], "expected one"),
        (["kit", "{recipe}", "--format", "pdf"], "--out"),
        (["kit", "{recipe}", "--format", "text", "--out", "{folder}/x"], "terminal"),
        (["parse", "{folder}", "--resume"], "cannot be resumed"),
        (["recognize", "{folder}"], "nothing to read"),
        (["estimate", ""], "ingredient"),
        (["parse", "{folder}", "--out", "{recipe}", "--overwrite"], "which is read"),
        (["kit", "{recipe}", "--format", "pdf", "--out", "{recipe}", "--overwrite"], "which is read"),
        (["kit", "{recipe}", "--table", "{table}", "--format", "csv", "--out", "{table}", "--overwrite"], "is read"),
    ],
)
def test_what_is_refused(recipe, tmp_path, arguments, said):
    table = tmp_path / "own.csv"
    table.write_text("name,kcal\nflour,350\n")
    words = [argument.format(recipe=recipe, folder=tmp_path, table=table) for argument in arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert recipe.read_text("utf-8") == RECIPE
    assert said in " ".join((result.output + str(result.exception)).replace("│", " ").split())


@pytest.mark.parametrize("words", ['estimate "2 eggs"', "search egg", "kit {recipe}", "kit {recipe} --format json"])
def test_a_result_that_cannot_be_printed_is_an_error(recipe, words):
    command = f"{sys.executable} -m weightsmith kitchen {words.format(recipe=recipe)} >&-"
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False, text=True)
    assert (result.returncode, result.stderr[:33]) == (1, "error: standard output is closed.")


PRINTING = [["recognize"], ["parse"], ["kit"], ["estimate"], ["search"]]
TRAINING = [["train", name] for name in ("recognize", "ingredients", "portions", "vlm")]


@pytest.mark.parametrize("command", PRINTING + TRAINING, ids=" ".join)
def test_each_command_that_prints_results_has_the_same_option_for_their_format(command):
    group = app
    for name in command[:-1]:
        group = next(found.typer_instance for found in group.registered_groups if found.name == name)
    made = next(one for one in group.registered_commands if command[-1] == (one.name or one.callback.__name__))
    parameters = inspect.signature(made.callback, eval_str=True).parameters
    values, option = get_args(parameters["format"].annotation)
    assert option is FORMAT
    assert {"text", "json"} <= set(get_args(values))
    assert "json" not in parameters


def test_the_formats_of_estimate_search_and_parse(recipe):
    rows = list(csv.DictReader(io.StringIO(run("estimate", "100 g butter", "2 eggs", "--format", "csv").stdout)))
    assert [(row["ingredient"], row["kcal"]) for row in rows] == [("butter", "743.0"), ("eggs", rows[1]["kcal"])]
    rows = list(csv.DictReader(io.StringIO(run("search", "butter", "--format", "csv").stdout)))
    assert rows[0]["name"].lower().startswith("butter")
    assert set(rows[0]) == {"name", "kcal_per_100g", "category", "source", "id", "score"}
    assert "no row of the table" in run("search", "", "--format", "json", status=1).stderr
    text = run("parse", recipe, "--format", "text").stdout
    assert text.splitlines()[0] == f"{recipe}: Pancakes, serves 4"
    assert "  2 cups flour" in text


def test_training_a_tagger(tmp_path):
    phrases = tmp_path / "phrases.tsv"
    phrases.write_text("2\tQUANTITY\ncups\tUNIT\nsugar\tNAME\n\t\n1\tQUANTITY\negg\tNAME\n\t\n" * 3, "utf-8")
    result = run("train", "ingredients", phrases, tmp_path / "tagger", "--test", phrases)
    assert "F1 of exact spans on 6 phrases: 1.0000" in result.output
    assert (tmp_path / "tagger" / "model.safetensors").is_file()
    made = json.loads(run("train", "ingredients", phrases, tmp_path / "other", "--format", "json").stdout)
    assert (made["phrases"], made["f1"]) == (6, None)
    assert made["notes"] == ["not tested: no test was given; name phrases that were not trained on with --test"]


def test_odd_labels_are_named_and_counted(tmp_path):
    phrases, test = tmp_path / "phrases.tsv", tmp_path / "test.tsv"
    phrases.write_text("2\tQUANTITY\nsugar\tname\n\n" * 4, "utf-8")
    test.write_text("2\tQUANTITY\nbig\tSIZE\neggs\tname\n", "utf-8")
    told = run("train", "ingredients", phrases, tmp_path / "a", "--test", test).stderr
    assert "note: label 'name' of 4 tokens is none of O, NAME" in told
    assert "(is NAME meant?)" in told
    assert "no token has the label NAME" in told
    assert "which count as missed: 'SIZE' (1)" in told
    test.write_text("\n\n", "utf-8")
    assert (
        f"not tested: {test} has no phrase"
        in run("train", "ingredients", phrases, tmp_path / "b", "--test", test).stderr
    )
    phrases.write_text("2\tQUANTITY\nsugar\t\n", "utf-8")
    assert "line 2" in str(run("train", "ingredients", phrases, tmp_path / "c", status="error"))


def test_training_of_portions(tmp_path):
    table = tmp_path / "recipes.csv"
    foods = ("egg,count,2,140", "milk,cup,1,150", "salt,tsp,,0")
    rows = [f"r{n},{food}" for n in range(40) for place, food in enumerate(foods) if (n >> place) % 2 or n % 8 == 0]
    table.write_text("recipe,ingredient,unit,portion,kcal\n" + "\n".join(rows), "utf-8")
    result = run("train", "portions", table, tmp_path / "p", "--width", 32, "--epochs", 150, "--learning-rate", 3e-3)
    assert "32 recipes, 3 ingredients, units" in result.output
    assert "8 other recipes: units 100.0% right" in result.output
    with table.open("a", encoding="utf-8") as stream:
        stream.writelines(f"\ns{n},truffle {n},gram,1,3" for n in range(40))
    options = ("--width", 32, "--epochs", 1, "--overwrite", "--format", "json")
    made = json.loads(run("train", "portions", table, tmp_path / "p", *options).stdout)
    assert made["test"]["recipes"] + made["recipes"] < 72  # what is left out is said
    assert "in no recipe learned from, and left out: truffle" in made["notes"][0]
    made = json.loads(run("train", "portions", table, tmp_path / "p", "--held-out", 0, *options).stdout)
    assert made["test"] is None
    assert made["notes"] == ["no recipe was left to test on: give more recipes, or a larger --held-out"]
    table.write_text("recipe,ingredient,unit,portion,kcal\n" + "\n".join(rows), "utf-8")
    learn = ("train", "portions", table, tmp_path / "p", *options)
    with pytest.warns(UserWarning, match="ingredients are left out"):
        run(*learn, "--slots", 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*ingredients are left out")
        run(*learn)
    table.write_text("recipe,ingredient,unit,portion,kcal\na,egg,count,2,-1\n", "utf-8")
    assert "line 2, kcal" in str(run("train", "portions", table, tmp_path / "q", status="error"))
    table.write_text("recipe,ingredient\n", "utf-8")
    assert "no column unit" in str(run("train", "portions", table, tmp_path / "q", status="error"))


def test_a_photo_of_no_food_has_a_row_that_says_so(tmp_path):
    Image.new("RGB", (96, 96), (90, 150, 230)).save(tmp_path / "blue.png")
    rows = list(csv.DictReader(io.StringIO(run("kit", tmp_path / "blue.png", "--format", "csv").stdout)))
    assert [(row["file"].endswith("blue.png"), row["ingredient"]) for row in rows] == [(True, "")]
    assert "not recognized" in rows[0]["notes"]


def test_a_search_without_a_near_name_exits_with_1():
    result = run("search", "zzqqx", "--format", "csv", status=1)
    assert "no row is 'zzqqx'" in result.output


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_notice_is_one_line_without_the_place_in_the_source(tmp_path, jobs):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    for number in range(2):
        frames[0].save(tmp_path / f"{number}.gif", save_all=True, append_images=frames[1:])
    words = ["kitchen", "recognize", tmp_path, "--format", "json", "--jobs", jobs]
    done = subprocess.run(
        [sys.executable, "-m", "weightsmith", *map(str, words)], capture_output=True, text=True, check=True
    )
    said = sorted(line for line in done.stderr.splitlines() if "frames" in line)
    assert said == [f"note: photo {tmp_path / f'{number}.gif'}: 2 frames, the first is read" for number in range(2)]
    assert "PhotoNotice" not in done.stderr
    assert ".py" not in done.stderr


def test_one_long_recipe_shows_its_progress(recipe, monkeypatch):
    seen = []
    monkeypatch.setattr(make, "track", lambda items, what: (seen.append((what, len(items))), items)[1])
    run("kit", recipe, "--format", "json")
    assert seen == [("pricing ingredients", 3)]


def test_what_a_recipe_makes_and_what_was_left_out_is_shown(tmp_path):
    (tmp_path / "cookies.txt").write_text("Cookies\nBy Jane Doe\nMakes 24 cookies\n2 cups flour\n", "utf-8")
    text = run("parse", tmp_path / "cookies.txt", "--format", "text").stdout
    assert ": Cookies, makes 24 cookies\n" in text
    assert "note: left out, no ingredient: 'By Jane Doe'" in text
    rows = list(csv.DictReader(io.StringIO(run("kit", tmp_path / "cookies.txt", "--format", "csv").stdout)))
    assert (rows[0]["makes"], rows[0]["buy"]) == ("24 cookies", "2 cups flour")
    assert "makes 24 cookies, 38" in run("kit", tmp_path / "cookies.txt").stdout
