"""`rewarm predict --search` on run directories whose losses follow the law exactly."""

import json

import pytest
from predicted_studies import ARMS, recipe_document, refused, write_arm, write_recipe
from synthetic_probes import Arm

from rewarm.recipe.recipe import load_recipe

SMALL = (
    *("--range", "peak=2.5e-4:2e-3", "--range", "replay=0,2%,5%"),
    *("--range", "decay=cosine", "--range", "warmup=5%", "--range", "minimum=10%"),
)
LIMIT = "upstream rise <= 0.8"


@pytest.fixture
def study(tmp_path):
    for name, arm in ARMS.items():
        write_arm(tmp_path / "study" / name, arm)
    return tmp_path / "study"


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, Arm(replay=0.05))


def test_a_search_is_printed_drawn_and_written(tmp_path, study, recipe, command):
    written, figure = tmp_path / "new" / "best.yaml", tmp_path / "new" / "front.html"
    words = ("predict", study, recipe, "--search", "--keep", LIMIT, *SMALL)
    code, out, err = command(*words, "--write", written, "--out", figure)
    assert (code, err) == (0, "")
    assert "searched 27 runs: peak 2.5e-4 to 2e-3" in out
    assert "Pareto front of forgetting against adaptation" in out
    assert "recommended (*): run " in out
    assert "the best adaptation among runs that keep the constraints" in out
    assert "further arm that would narrow its 80% intervals most" in out
    assert "Leave one arm out" in out
    page = figure.read_text()
    assert "data:image/svg+xml;base64," in page
    assert "recommended (*): run " in page
    text = written.read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "half, peak, quarter, replay" in "".join(comments)
    assert any(line.startswith("# schedule.peak_lr: 0.002 -> ") for line in comments)
    best, own = load_recipe(written), load_recipe(recipe)
    assert best.run == f"{own.run}-best"
    assert best.schedule.peak_lr < own.schedule.peak_lr
    same = {"run": own.run, "schedule": own.schedule}
    assert best.model_copy(update=same) == own


def test_the_header_has_all_changes_of_the_file(tmp_path, study, command):
    """Also those of --set, which is how a probe adds replay."""
    train = recipe_document(Arm(replay=0.05))["data"]["train"]
    added = ("--set", f"data.train={json.dumps(train)}", "--set", "precision=bf16")
    written = tmp_path / "best.yaml"
    recipe = write_recipe(tmp_path, Arm())
    words = ("predict", study, recipe, "--search", *added, *SMALL, "--write", written)
    assert command(*words)[0] == 0
    text = written.read_text()
    assert "# precision: fp32 -> bf16\n" in text
    assert "# data.train.upstream.shards: not set -> /data/old/train\n" in text


def test_json_has_the_front(study, recipe, command):
    words = ("predict", study, recipe, "--search", "--keep", LIMIT, *SMALL, "--json")
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    result = json.loads(out)
    search_result = result["search"]
    losses = {one["run"]: one["losses"] for one in result["predictions"]}
    assert list(losses) == [str(recipe), *(one["run"] for one in search_result["front"])]
    best = next(one for one in search_result["front"] if one["run"] == search_result["recommended"])
    assert best["keeps the constraints"]
    assert best["settings"]["replay"] == 0.05
    assert losses[best["run"]]["upstream"]["intervals"]["80%"][1][-1] <= 3.5 + 0.8
    assert search_result["constraints"] == [
        {"text": LIMIT, "sets": ["upstream"], "highest loss": pytest.approx(4.3)}
    ]
    widths = search_result["further arm"]["widths of 80% intervals"]
    assert all(one["with it"] < one["now"] for one in widths.values())
    assert search_result["searched"] == 27


def test_the_recommended_recipe_passes_check(tmp_path, corpora, trained_run, command):
    """Arms of real data and a real base; their losses are of the law."""
    sets = {name: {"shards": str(corpora / name / "val")} for name in ("upstream", "downstream")}
    base = {"base": str(trained_run)}
    for name, arm in ARMS.items():
        short = arm._replace(steps=20)
        train = {
            corpus: {"shards": str(corpora / corpus / "train"), "weight": one["weight"]}
            for corpus, one in recipe_document(short)["data"]["train"].items()
        }
        settings = {
            "model": base,
            "data": {"context": 64, "max_epochs": 8, "train": train, "validation": sets},
            "batch": {"tokens": 1024, "microbatch": 8},
            "tokens": 20 * 1024,
        }
        write_arm(tmp_path / "study" / name, short, **settings)
    recipe = write_recipe(tmp_path, Arm(replay=0.05, steps=20), **settings)
    written = tmp_path / "best.yaml"
    words = ("--search", *SMALL, "--write", written)
    code, _, err = command("predict", tmp_path / "study", recipe, *words)
    assert (code, err) == (0, "")
    code, out, err = command("check", written)
    assert (code, err) == (0, "")
    assert "next-best" in out


def test_a_file_is_not_overwritten_unless_asked(tmp_path, study, recipe, command):
    written = tmp_path / "best.yaml"
    written.write_text("mine")
    words = (study, recipe, "--search", *SMALL, "--write", written)
    code, err = refused(command, *words)
    assert code == 2
    assert "already exists; choose another name, or add --overwrite" in err
    assert written.read_text() == "mine"
    assert command("predict", *words, "--overwrite")[0] == 0
    assert load_recipe(written).steps == 400
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_recipe_without_old_data_is_told_how_to_add_some(tmp_path, study, command):
    recipe = write_recipe(tmp_path, Arm())
    code, out, _ = command("predict", study, recipe, "--search", *SMALL[:2], *SMALL[4:])
    assert code == 0
    assert "replay is not searched, as the recipe has no corpus of old data; add one" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--keep", "nonsense"), "--keep 'nonsense': cannot be read"),
        (("--keep", "books rise <= 1"), "no validation set named 'books' (sets: "),
        (("--keep", "upstream rise <= -1", *SMALL), "none of 27 runs keeps the constraints; the "),
        (("--tokens", "10B"), "10B tokens: predictions are known to hold up to 1.64M, twice"),
        (("--tokens", "many"), "--tokens many: should be a count"),
        (("--range", "peak=1e-3", "--range", "peak=2e-3"), "peak was given before; give all its"),
        (("--range", "decay=cosine,,linear"), "a shape is missing between commas"),
        (("--range", "pek=1"), "no setting named 'pek'; did you mean 'peak'?"),
        (("--range", "peak=1"), "a peak of 1: predictions are known to hold from 0.0001 to 0.004"),
        (("--force",), "--force: a search stays within the limits"),
        (("--overwrite",), "--overwrite needs --write FILE"),
        (("--write", "best.txt"), "--write best.txt: should end with .yaml"),
        (("--schedule", "rewarm"), "--search starts from one RECIPE"),
    ],
)
def test_what_a_search_refuses(study, recipe, command, words, reason):
    code, err = refused(command, study, recipe, "--search", *words)
    assert code == 2
    assert reason in err.replace("│ ", "")


def test_a_search_needs_a_recipe_and_its_options_a_search(study, recipe, command):
    for words, reason in (
        ((study, recipe, recipe, "--search"), "--search starts from one RECIPE"),
        ((study, recipe, "--keep", LIMIT), "--keep needs --search"),
        ((study, recipe, "--range", "peak=1e-3"), "--range needs --search"),
        ((study, recipe, "--write", "x.yaml"), "--write needs --search"),
    ):
        code, err = refused(command, *words)
        assert code == 2
        assert reason in err.replace("│ ", "")
