"""How problems of a document are reported: at their source locations, all of them at once."""

import os
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from recipes import FULL_RECIPE, recipe_of, recipe_problems
from rewarm.checkpoints.lineage import last_lr_of_base
from rewarm.errors import RecipeError
from rewarm.recipe.recipe import load_recipe


def test_reports_all_problems_in_source_order():
    text = """\
run: x
tokens: -5
modle: {preset: pythia-14m}
data:
  context: 1000
  train: {new: {shards: data/new, wieght: 2}}
batch: {tokens: 1.5, microbatch: 10}
schedule:
  name: rewarm
  peek_lr: 3e-4
  min_lr: 3e-5
  warmup: 1.5
every: {lgo: 5}
"""
    assert recipe_problems(text, "seed=x") == [
        "--set seed=x: seed: should be a valid integer (got 'x')",
        "r.yaml:1:1: model: required, but missing",
        "r.yaml:2:1: tokens: should be greater than 0 (got -5)",
        "r.yaml:3:1: modle: no such setting; did you mean 'model'?",
        "r.yaml:6:35: data.train.new.wieght: no such setting; did you mean 'weight'?",
        "r.yaml:7:9: batch.tokens: should be a count, such as 2_097_152, 20M, 10B or 1e9 (got 1.5)",
        "r.yaml:8:1: schedule.peak_lr: required, but missing",
        "r.yaml:10:3: schedule.peek_lr: no such setting; did you mean 'peak_lr'?",
        "r.yaml:12:3: schedule.warmup: should be less than 1, a share of the run (got 1.5, which "
        "is 150%); for percent write 1.5%",
        "r.yaml:13:9: every.lgo: no such setting; did you mean 'log'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lr=3e-4",
            "optimizer.lr: no such setting; learning rates are set in `schedule`, such as "
            "schedule.peak_lr",
        ),
        (
            "data.train={a b: {shards: x}}",
            "data.train.a b: a name should consist of letters, digits, '.', '_' and '-', and start",
        ),
        ("optimizer=[1]", "optimizer: should be settings (`key: value` lines), got [1]"),
        ("data.train={}", "data.train: should not be empty"),
        ("run=''", "run: should not be empty"),
        ("schedule.name={x}", "schedule.name: should be text"),
        ("schedule={}", "schedule.name: required, but missing"),
        (
            "schedule={peak_lr: 5e-4}",
            "schedule.name: required, but missing, since `schedule: {...}` is a whole schedule; to "
            "change one setting of it, in an arm or after --set, write schedule.peak_lr",
        ),
        ("peak_lr=1e-3", "peak_lr: no such setting; did you mean schedule.peak_lr?"),
        ("clip=2", "clip: no such setting; did you mean optimizer.clip?"),
        ("seed=", "seed: should be a valid integer (got nothing)"),
        (
            "model=runs/base",
            "model: should be settings (`key: value` lines), got 'runs/base'; write model: {base: "
            "runs/base}",
        ),
        ("schedule=rewarm", "schedule: should be settings, such as {name: rewarm"),
        ("schedule.warmup=1001 steps", "schedule.warmup: 1001 steps are too many: should be less"),
    ],
)
def test_message(thousand_steps, override, message):
    (problem,) = recipe_problems(thousand_steps, override)
    assert f": {message}" in problem


def test_long_values_are_shortened(thousand_steps):
    (problem,) = recipe_problems(thousand_steps, f"seed={'x' * 1000}")
    assert problem.endswith(f"(got '{'x' * 56}...)")


def test_problems_of_several_settings_are_located_at_one_of_them_or_their_section():
    for override, start in (
        (
            "batch.tokens=98_304",
            "--set batch.tokens=98_304: batch.tokens: should be a whole number",
        ),
        ("data.context=1_500", "r.yaml:34:3: batch.tokens: should be a whole number"),
        ("batch.tokens=101_000", "r.yaml:35:3: batch.microbatch: should divide the 101 sequences"),
        ("model.architecture.positions=512", "r.yaml:21:3: data.context: should be at most the"),
        ("schedule.min_lr=4e-4", "r.yaml:36:1: schedule: min_lr 0.0004 should not be above"),
        ("model.architecture.heads=3", "r.yaml:6:3: model.architecture: hidden 128 should divide"),
    ):
        assert recipe_problems(FULL_RECIPE, override)[0].startswith(start)


def test_misspelt_setting_in_a_list_gets_a_suggestion(thousand_steps):
    weights = "data.train.downstream.weight=[{from: 0%, weight: 1}, {form: 50%, weight: 2}]"
    problems = recipe_problems(thousand_steps, weights)
    assert [problem.rpartition(": data.")[2] for problem in problems] == [
        "train.downstream.weight.1.form: no such setting; did you mean 'from'?",
        "train.downstream.weight.1.from: required, but missing",
    ]


# 200 mutations of a recipe with every setting; each is to be reported at its line.

NUMBER = ["ten", "[1]", "{a: 1}", "true", "''"]
COUNT = [*NUMBER, "-5", "0", "1.5", "1.5B.", "10 B B", "1e30", "null"]
SIZE = [*NUMBER, "0", "-5", "1.5", "1e3", "null", "10k"]
RATE = [*NUMBER, "-1e-5", ".nan", ".inf", "1%", "null"]
BOOLEAN = ["maybe", "2", "[true]", "null", "{}"]
TEXT = ["''", "5", "[a]", "{a: b}", "true"]
SECTION = ["5", "text", "[1]", "true"]
WRONG = {
    "run": TEXT,
    "seed": [*NUMBER, "-1", "1.5", "9223372036854775808", "007"],
    "tokens": [*COUNT, "99_999"],
    "model": SECTION,
    "model.architecture": SECTION,
    "model.architecture.layers": SIZE,
    "model.architecture.hidden": SIZE,
    "model.architecture.heads": SIZE,
    "model.architecture.vocabulary": SIZE,
    "model.architecture.rotary": [*NUMBER, "0", "1.5", "-.inf", "25%"],
    "model.architecture.activation": ["tanh", "5", "null"],
    "model.architecture.tied": BOOLEAN,
    "model.architecture.layer_norm_eps": [*NUMBER, "0", "-1e-5"],
    "data": SECTION,
    "data.context": [*COUNT, "4096", "2_000_000"],
    "data.lanes": SIZE,
    "data.train": [*SECTION, "{}", "null", "{bad name: {shards: x}}"],
    "data.train.new": SECTION,
    "data.train.new.shards": TEXT,
    "data.train.new.weight": [
        *NUMBER,
        "0",
        "-1",
        ".inf",
        ".nan",
        "0%",
        "5 percent",
        "1" + "0" * 400,
    ],
    "data.validation.new.tokens": [wrong for wrong in COUNT if wrong != "null"],
    "batch": SECTION,
    "batch.tokens": [*COUNT, "100_001", "1B"],
    "batch.microbatch": [*SIZE, "11"],
    "schedule": SECTION,
    "schedule.name": ["rewram", "5", "[rewarm]", "null"],
    "schedule.start_lr": RATE,
    "schedule.peak_lr": RATE,
    "schedule.min_lr": RATE,
    "schedule.warmup": [
        *NUMBER,
        "1.5",
        "-1%",
        ".nan",
        "100%",
        "1000 steps",
        "5 apples",
        "100M tokens",
    ],
    "schedule.decay": ["exponential", "5", "null"],
    "optimizer": SECTION,
    "optimizer.betas": ["0.9", "[0.9]", "[0.9, 1.0]", "[0.9, x]", "[0.9, 0.95, 0.99]", "null"],
    "optimizer.eps": [*RATE, "0"],
    "optimizer.clip": [wrong for wrong in RATE if wrong != "null"] + ["0"],
    "optimizer.carry": [*BOOLEAN, "true"],
    "precision": ["fp4", "32", "null"],
    "compile": BOOLEAN,
    "every": SECTION,
    "every.log": [wrong for wrong in COUNT if wrong != "1e30"],
    "every.save": [wrong for wrong in COUNT if wrong not in ("null", "1e30")],
}
# These conflict with another setting, at whose line they are reported.
REPORTED_AT = {("batch.tokens", "1B"): "tokens"}
REQUIRED = [
    "run",
    "tokens",
    "model",
    "model.architecture",
    "model.architecture.layers",
    "model.architecture.hidden",
    "model.architecture.heads",
    "data",
    "data.train",
    "data.train.new.shards",
    "data.validation.new.shards",
    "batch",
    "batch.tokens",
    "batch.microbatch",
    "schedule",
    "schedule.name",
    "schedule.peak_lr",
    "schedule.min_lr",
]


class Mutation(NamedTuple):
    name: str
    line: int
    """The line at which the problem should be reported."""
    text: str


def outline(text: str) -> dict[str, int]:
    """The line of every setting, by indentation alone: independent of the parser under test."""
    path: list[str] = []
    line_numbers = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("#"):
            path[(len(line) - len(line.lstrip())) // 2 :] = [line.split(":")[0].strip()]
            line_numbers[".".join(path)] = number
    return line_numbers


LINES, LINE_OF = FULL_RECIPE.splitlines(), outline(FULL_RECIPE)


def full_with(number: int, *new: str, until: int | None = None) -> str:
    """FULL_RECIPE with `new` instead of a line, or of the lines from it up to `until`."""
    return "\n".join([*LINES[: number - 1], *new, *LINES[(until or number + 1) - 1 :]]) + "\n"


def wrong_settings() -> Iterator[Mutation]:
    for path, number in LINE_OF.items():
        line = LINES[number - 1]
        parent, _, key = path.rpartition(".")
        section = LINE_OF[parent] if parent else 2
        after = [n for p, n in LINE_OF.items() if n > number and not p.startswith(f"{path}.")]
        until = after[0] if after else len(LINES) + 1
        if key not in ("new", "old"):  # corpora may have any name
            # Without a name, the settings of the schedule are not known.
            at = section if path == "schedule.name" else number
            for misspelt in (key[1:] + key[0], key + "s", key[:-1] + "_"):
                yield Mutation(misspelt, at, full_with(number, line.replace(key, misspelt, 1)))
        if path in REQUIRED:
            yield Mutation(f"no {path}", section, full_with(number, until=until))
        for wrong in WRONG.get(path, []):
            at = LINE_OF[REPORTED_AT.get((path, wrong), path)]
            new = f"{line.partition(':')[0]}: {wrong}"
            yield Mutation(f"{path}={wrong:.20}", at, full_with(number, new, until=until))


OPENED = ("[", "{", "]", "'", '"', "*", "@", "!!str ")


def broken_yaml() -> Iterator[Mutation]:
    for path, number in LINE_OF.items():
        line = LINES[number - 1]
        key, _, value = line.partition(": ")
        broken = []
        if value.startswith(("[", "{")):
            broken.append(line[:-1])
        elif value:
            broken += [f"{key}: {opened}{value}" for opened in OPENED]
        if line.startswith(" "):
            broken += ["\t" + line.lstrip(), line.replace(line.lstrip(), "\t" + line.lstrip())]
        if number - 1 not in (1, LINE_OF.get(path.rpartition(".")[0])):
            # Not the first setting: its indentation determines that of its section.
            broken += [" " + line, line.replace(":", "", 1)]
            broken += [line[1:]] if line.startswith(" ") else []
        for new in broken:
            yield Mutation(f"{number}:{new}", number, full_with(number, new))
        if value:
            yield Mutation(f"{number}: twice {path}", number + 1, full_with(number, line, line))


DRAW = random.Random(2308_04014)
MUTATIONS = [
    mutation
    for mutations in (wrong_settings, broken_yaml)
    for mutation in DRAW.sample(list(mutations()), 100)
]


def test_unmutated_recipe_is_valid():
    assert recipe_of(FULL_RECIPE).steps == 1000
    assert LINE_OF.keys() >= {*WRONG, *REQUIRED}
    assert len({mutation.text for mutation in MUTATIONS} - {FULL_RECIPE}) == 200


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_reported_at_its_line(mutation, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert any(p.startswith(f"{path}:{mutation.line}:") for p in raised.value.problems), str(
        raised.value
    )


@pytest.mark.parametrize("mutation", DRAW.sample(MUTATIONS, 12), ids=lambda mutation: mutation.name)
def test_check_command_reports_mutation_at_its_line(mutation, tmp_path, command):
    path = tmp_path / "r.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    code, output, errors = command("check", path)
    assert code == 2
    assert f"{path}:{mutation.line}:" in errors
    assert "Traceback" not in errors
    assert not output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("tokens=2M", "schedule.warmup=100 steps"),
            "schedule.warmup: 100 steps are too many: should be less than the run of 20 steps "
            "(2,000,000 tokens); write fewer, or a share such as 10%, or raise tokens",
        ),
        (
            ("schedule.warmup=200M tokens",),
            "schedule.warmup: 200M tokens are too many: should be less than the run of 1,000 steps "
            "(100,000,000 tokens)",
        ),
        (
            ("data.train.old.weight=[{from: 0, weight: 1}, {from: 1000 steps, weight: 2}]",),
            "data.train.old.weight.1.from: 1000 steps are too many: should be less than the run",
        ),
        (("schedule.warmup=150%",), "schedule.warmup: should be less than 1 (got '150%')"),
        (
            ("schedule.warmup=5",),
            "schedule.warmup: should be less than 1, a share of the run (got 5, which is 500%); "
            "for percent write 5%, or for steps '5 steps'",
        ),
        (
            ("schedule.warmup=1",),
            "schedule.warmup: should be less than 1, a share of the run (got 1, which is 100%); "
            "for percent write 1%, or for steps '1 step'",
        ),
        (
            ("data.train.old.weight=[{from: 0, weight: 1}, {from: 50, weight: 2}]",),
            "data.train.old.weight.1.from: should be less than 1, a share of the run (got 50",
        ),
    ],
    ids=str,
)
def test_a_span_that_is_too_long_is_compared_with_the_run(overrides, message):
    (problem,) = recipe_problems(FULL_RECIPE, *overrides)
    assert message in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *(
            (
                f"optimizer.betas={betas}",
                "should be a list of two numbers, such as [0.9, 0.95]",
            )
            for betas in ("0.9", "[0.9]", "[0.9, 0.95, 0.99]", "'0.9, 0.95'")
        ),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1: should be less than 1 (got 1)"),
        ("compile=maybe", "compile: should be true or false (got 'maybe')"),
    ],
)
def test_messages_say_what_is_expected(override, message):
    (problem,) = recipe_problems(FULL_RECIPE, override)
    assert message in problem


def test_a_base_that_is_not_there_is_one_problem_and_not_one_of_each_rate(tmp_path, monkeypatch):
    (tmp_path / "runs" / "base" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    rates = ["schedule.start_lr=base", "schedule.peak_lr=5x base", "schedule.min_lr=base"]

    def problem_of(base: str, file: str = "r.yaml") -> tuple[str, int]:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(FULL_RECIPE)
        with pytest.raises(RecipeError) as raised:
            load_recipe(path, [f"model={{base: {base}}}", *rates], base_lr=last_lr_of_base)
        (problem,) = raised.value.problems
        return problem.removeprefix(f"--set model={{base: {base}}}: model.base: "), (
            raised.value.exit_code
        )

    assert problem_of("runs/bse") == (
        f"runs/bse: no such folder ({tmp_path}/runs/bse); correct the path; for a model of the "
        "hub, also set model.base_lr; did you mean 'runs/base'?",
        3,
    )
    assert problem_of(f"{tmp_path}/nowhere") == (
        f"nowhere: no such folder ({tmp_path}/nowhere); correct the path",
        3,
    )
    assert problem_of("runs")[0].startswith("runs: a folder of runs; expected a model directory")
    assert problem_of("runs")[0].endswith("; name one, such as runs/base")
    assert problem_of("runs/base@7")[0].startswith("runs/base: the run has no complete checkpoint")


def test_a_base_is_looked_for_beside_the_recipe_too(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    path = folder / "r.yaml"
    architecture = re.compile(r"model:\n  architecture:\n(    .*\n)*")
    text = architecture.sub("model: {base: runs/base}\n", FULL_RECIPE)
    path.write_text(text.replace("start_lr: 3e-5", "start_lr: base"))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, [], base_lr=last_lr_of_base)
    (problem,) = raised.value.problems
    assert problem == (
        f"{path}:5:9: model.base: runs/base: no such folder ({tmp_path}/runs/base); correct the "
        "path; for a model of the hub, also set model.base_lr; nor is it beside the recipe "
        f"({folder}/runs/base)"
    )


def test_another_problem_beside_a_missing_base_has_the_exit_code_of_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(FULL_RECIPE)
    with pytest.raises(RecipeError) as raised:
        load_recipe(
            path,
            ["model={base: /nowhere}", "schedule.start_lr=base", "tf32=maybe"],
            base_lr=last_lr_of_base,
        )
    assert (len(raised.value.problems), raised.value.exit_code) == (2, 2)


def test_spans_of_plugins_are_compared_with_the_run_too(plugins):
    wsd = "schedule={name: wsd, lr: 1e-3, decay: 2000 steps}"
    assert "decay: 2000 steps are too many: should be at most the run of 1,000 steps" in "\n".join(
        recipe_problems(FULL_RECIPE, wsd)
    )
    sequence = (
        "schedule={name: sequence, parts: [{length: 1, schedule: "
        "{name: rewarm, peak_lr: 1e-3, min_lr: 0.0, warmup: 2000 steps}}]}"
    )
    assert "should be less than the part of the run that this schedule is for" in "\n".join(
        recipe_problems(FULL_RECIPE, sequence)
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/pile",
        "https://secret@host/pile",
        "s3://key:sec/ret@bucket/pile",
        "hf://datasets:secret@host/pile",
        "https://host/pile/{0..3}.tar?X-Amz-Signature=secret&X-Amz-Date=1",
        "gs://bucket/pile?token=secret",
    ],
)
@pytest.mark.parametrize("setting", ["data.train.new.shards", "model.base", "run"])
def test_credentials_in_urls_are_refused_and_not_shown(url, setting):
    with pytest.raises(RecipeError) as raised:
        recipe_of(FULL_RECIPE, f"{setting}={url}")
    assert f"{setting}: should be a URL without user, password and query" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "sec/ret" not in str(raised.value)


def test_names_of_revisions_wildcards_and_checkpoints_are_not_credentials():
    for shards in ("hf://datasets/me/pile@main/x", "https://host:8080/pile@v1/0000?.tar"):
        assert recipe_of(FULL_RECIPE, f"data.train.new.shards={shards}")
    assert recipe_of(FULL_RECIPE, "run=runs/x@40000")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (r'"a\0b"', "should not contain a NUL character"),
        (r'"a\ud800"', "should be UTF-8 text; half of a surrogate pair"),
        (os.fsdecode(b"a\xff"), "not text: special characters are not allowed"),
    ],
)
@pytest.mark.parametrize("setting", ["run", "model.base", "data.train.new.shards"])
def test_text_that_cannot_be_written_or_be_a_path_is_refused(setting, written, message):
    (problem,) = [
        problem
        for problem in recipe_problems(FULL_RECIPE, f"{setting}={written}")
        if "exactly one of" not in problem
    ]
    assert message in problem
