"""`rewarm predict --search`: runs the search, prints it, and writes the recommended recipe."""

from __future__ import annotations

import contextlib
import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from rewarm.errors import DataError, RecipeError, RewarmError, printable

if TYPE_CHECKING:
    from rewarm.predict.arms import StudiedArms
    from rewarm.predict.prediction import FittedArms, Prediction
    from rewarm.predict.search import Candidate, SearchResult
    from rewarm.recipe.recipe import Recipe
    from rewarm.table_cells import Table


class SearchOptions(NamedTuple):
    """The options of `rewarm predict` that only a search has, as they were written."""

    keep: list[str]
    ranges: list[str]
    tokens: str | None
    write: Path | None
    overwrite: bool


def search_recipe(
    fitted: FittedArms,
    recipe_file: Path,
    overrides: list[str],
    options: SearchOptions,
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Searches from a recipe on; prints the Pareto front and writes the recommended recipe.

    Args:
        fitted: the arms to learn from, with the law.
        recipe_file: the recipe.
        overrides: settings to change in it.
        options: the options.
        out: a figure to write.
        as_json: whether to print JSON.

    Raises:
        RecipeError: an option is wrong, or no run keeps the constraints.
        RewarmError: a file cannot be written.
    """
    from rewarm.cli import prediction_output, search_output
    from rewarm.cli.options import load_recipe_file
    from rewarm.predict.constraints import parse_constraint
    from rewarm.predict.search import search
    from rewarm.predict.search_ranges import parse_ranges
    from rewarm.predict.search_space import choice_of, default_space

    arms, recipe = fitted.arms, load_recipe_file(recipe_file, overrides)
    constraints = [parse_constraint(text, arms) for text in options.keep]
    ranges = parse_ranges(options.ranges)
    space = default_space(arms, recipe, ranges, most_tokens=_parse_tokens(options.tokens))
    space = space._replace(most_sequences=_readable_sequences(recipe))
    result = search(fitted, recipe, space, constraints)
    if result.recommended is None:
        raise search_output.unmet_constraints(result, constraints)
    start = fitted.predict(str(recipe_file), recipe, arms.replay_share(recipe))
    predictions = [start, *(candidate.prediction for candidate in result.front)]
    notes = prediction_output.fit_notes(fitted)
    notes += [search_output.space_note(space, result.searched), *space.notes]
    own = choice_of(arms, recipe)
    front = search_output.front_table(result, start, own, constraints)
    errors = prediction_output.accuracy_table(fitted)
    if as_json:
        search_json = search_output.search_as_json(result, space, constraints)
        whole = prediction_output.predictions_as_json(fitted, predictions)
        print(json.dumps(whole | {"search": search_json}, indent=1))
    else:
        _print(notes, front, start, result, errors)
    # Written last: what was computed is not lost if a file cannot be written.
    if options.write is not None:
        _write_recommended(options.write, recipe_file, overrides, arms, recipe, result, options)
    if out is not None:
        from rewarm.plots.search_figure import draw_search
        from rewarm.report.prediction_page import save_prediction

        save_prediction(
            out,
            lambda: draw_search(arms, result, start, constraints),
            title=f"Schedules for {recipe_file}",
            notes=[*search_output.recommendation_notes(result), *notes],
            tables=[front, errors._replace(caption=prediction_output.ERRORS_NOTE)],
        )
    for path, what in ((options.write, "the recommended recipe"), (out, "the front")):
        if path is not None and not as_json:
            print(f"{path}: {what}")


def _print(
    notes: list[str], front: Table, start: Prediction, result: SearchResult, errors: Table
) -> None:
    from rewarm.cli import prediction_output, search_output
    from rewarm.cli.terminal_tables import print_notes, print_result_table

    print_notes(notes)
    print()
    print_result_table(front)
    print_notes(search_output.start_notes(start))
    print()
    print_notes(search_output.recommendation_notes(result))
    print()
    print_result_table(errors)
    print_notes([prediction_output.ERRORS_NOTE])


def _parse_tokens(text: str | None) -> int | None:
    from rewarm.quantities import parse_positive_count

    if text is None:
        return None
    try:
        return parse_positive_count(text)
    except ValueError as error:
        raise typer.BadParameter(f"--tokens {text}: {error}") from None


def _readable_sequences(recipe: Recipe) -> dict[str, float]:
    """Returns how many sequences of each corpus may be read, of those in a folder on this disk."""
    from rewarm.data.shard_format import read_shard_index

    most = {}
    for name, corpus in recipe.data.train.items():
        if recipe.data.max_epochs is not None:
            with contextlib.suppress(DataError):  # a URL, some shards of a folder, or text
                index = read_shard_index(Path(corpus.shards))
                blocks = sum(index.shard_blocks(recipe.data.context))
                most[name] = recipe.data.max_epochs * blocks
    return most


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Checks that a recipe may be written to a path.

    Raises:
        RecipeError: it exists, and is not to be overwritten, or it is not named as a recipe.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError([f"--write {path}: should end with .yaml, as a recipe does"])
    if path.is_dir():
        raise RecipeError([f"--write {path}: is a folder; name a file"])
    if path.exists() and not overwrite:
        raise RecipeError(
            [f"--write {path}: already exists; choose another name, or add --overwrite"]
        )


def _write_recommended(
    path: Path,
    recipe_file: Path,
    overrides: list[str],
    arms: StudiedArms,
    recipe: Recipe,
    result: SearchResult,
    options: SearchOptions,
) -> None:
    """Writes the recommended recipe: the file that the search started from, with its settings.

    Paths become absolute, and the run directory a new one beside that of the recipe.
    """
    from rewarm.checkpoints.lineage import last_lr_of_base
    from rewarm.files import atomic_write, create_folder_of
    from rewarm.predict.search_space import apply_choice
    from rewarm.recipe.path_settings import RECIPE_PATHS, resolve_paths
    from rewarm.recipe.recipe import load_recipe_document, validate_recipe
    from rewarm.recipe.yaml_document import YamlDocument, flatten_settings, write_yaml

    best = result.recommended
    assert best is not None
    original, document = load_recipe_document(recipe_file), load_recipe_document(recipe_file)
    document.apply_overrides(overrides)
    for one in (original, document):
        resolve_paths(one, RECIPE_PATHS)
    before = flatten_settings(original.data)
    apply_choice(document, recipe, arms, best.choice)
    document.set_value(("run",), _new_run(recipe.run, path), "search")
    after = flatten_settings(document.data)
    text = _header(recipe_file, arms, best, result, before, after) + write_yaml(document.data)
    validate_recipe(YamlDocument(text, str(path)), base_lr=last_lr_of_base)
    check_new_file(path, overwrite=options.overwrite)
    try:
        create_folder_of(path)
        atomic_write(path, text)
    except OSError as error:
        raise RewarmError(f"{path}: cannot be written: {error.strerror}") from None


def _new_run(run: str, recipe_file: Path) -> str:
    """Returns a run directory that does not exist yet, named by the recipe's file."""
    suffixes = chain([""], map("-{}".format, count(2)))
    names = (f"{run}-{recipe_file.stem}{suffix}" for suffix in suffixes)
    return next(name for name in names if not Path(name).exists())


def _header(
    recipe_file: Path,
    arms: StudiedArms,
    best: Candidate,
    result: SearchResult,
    before: dict[str, Any],
    after: dict[str, Any],
) -> str:
    """Returns where a recommended recipe comes from, as comments."""
    from rewarm.predict.prediction import LEVELS
    from rewarm.version import __version__

    losses = []
    for loss in best.prediction.losses:
        low, high = (float(bound[-1]) for bound in loss.intervals[LEVELS[0]])
        losses.append(f"{loss.name} {loss.loss[-1]:.3f} ({LEVELS[0]:.0%}: {low:.3f} to {high:.3f})")
    lines = [
        f"Recommended by `rewarm predict --search` of rewarm {__version__},",
        f"from {recipe_file} and the arms {', '.join(probe.arm for probe in arms.probes)}:",
        f"{result.rule}.",
        f"Predicted last losses in nats: {', '.join(losses)}.",
        *(f"Note: {note}." for note in (*best.prediction.reach.notes, *result.edges)),
        *(
            f"{name}: {before.get(name, 'not set')} -> {after.get(name, 'removed')}"
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        ),
    ]
    return "".join(f"# {printable(' '.join(line.split()))}\n" for line in lines)
