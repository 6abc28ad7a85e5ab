"""The model card of a checkpoint: what it states, and that it may be edited."""

import json
import shutil

import pytest
import yaml
from damage import rewrite_manifest
from training_runs import run, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.manifest import MANIFEST, MODEL_CARD, verify_checkpoint
from rewarm.checkpoints.model_card import model_card
from rewarm.checkpoints.training_state import Ancestor, read_training_state
from rewarm.errors import Preempted
from rewarm.model.architecture import PRESETS

PYTHIA = Ancestor(
    name="EleutherAI/pythia-14m",
    directory="/home/me/.cache/x",
    revision="step143000",
    commit="f" * 40,
    step=143_000,
    tokens=299_892_736_000,
    lrs=(0.0, 1e-3, 1e-4),
)


@pytest.fixture
def card(trained_run):
    """Returns the model card of a trained checkpoint, with a changed state or recipe."""
    checkpoint = last_checkpoint(trained_run)

    def render(recipe=lambda text: text, **changes):
        state = read_training_state(checkpoint).model_copy(update=changes)
        return model_card(
            PRESETS["pythia-14m"], state, recipe((checkpoint / "recipe.yaml").read_text())
        )

    return render


def metadata(card):
    _, front_matter, _ = card.split("---\n", 2)
    return yaml.safe_load(front_matter)


def test_a_checkpoint_has_a_card_that_its_manifest_lists(trained_run):
    checkpoint = last_checkpoint(trained_run)
    text = (checkpoint / MODEL_CARD).read_text()
    assert MODEL_CARD in json.loads((checkpoint / MANIFEST).read_text())["files"]
    state = read_training_state(checkpoint)
    assert "after step 20 of 20 of pre-training with rewarm" in text
    assert "None: the weights were newly initialized." in text
    assert "20,480 tokens, in sequences of 64:" in text
    assert "| downstream | 0.7 | a local folder |\n| upstream | 0.3 | a local folder |" in text
    assert "    peak_lr: 0.01\n" in text
    assert "Learning rates so far: 0.005 first, 0.01 at most, 0.001 last." in text
    for name in ("upstream", "downstream"):
        before, after = state.baseline[name], state.losses[name]
        row = f"| {name} | {name} | {before:.4f} | {after:.4f} | {after - before:+.4f} |"
        assert row in text
    assert str(trained_run.parent) not in text  # no local path


def test_the_license_is_left_to_the_user(card):
    assert "license" not in metadata(card())
    assert metadata(card().replace("# license: (yours", "license: mit # ("))["license"] == "mit"
    assert "## License\n\nNot stated." in card()


def test_the_base_is_named_and_is_that_of_the_hub(card):
    run_of_pythia = Ancestor(name="/home/me/runs/first", directory="/home/me/runs/first", step=20)
    text = card(lineage=[PYTHIA, run_of_pythia])
    assert metadata(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "EleutherAI/pythia-14m",
        "tags": ["gpt_neox", "rewarm"],
    }
    assert "of continual pre-training" in text
    first, second = text.partition("weights |\n")[2].splitlines()[1:3]
    assert first == (
        "| EleutherAI/pythia-14m | step143000 | 143,000 | 299,892,736,000 | 0.0001 |  |"
    )
    assert second == "| first |  | 20 |  |  |  |"
    assert "base_model" not in metadata(card(lineage=[run_of_pythia]))


def test_urls_are_named_without_credentials_and_weights_that_change(card):
    def recipe(text):
        document = yaml.safe_load(text)
        document["data"]["train"] = {
            "new": {
                "shards": "https://me:secret@host/pile?token=secret",
                "weight": [{"from": 0, "weight": 0.9}, {"from": "30%", "weight": 0.5}],
            }
        }
        return yaml.safe_dump(document)

    text = card(recipe)
    assert "| new | 0.9 from 0, 0.5 from 30% | https://\\*\\*\\*@host/pile?\\*\\*\\* |" in text
    assert "secret" not in text


def test_names_of_an_untrusted_base_stay_text(card):
    hostile = PYTHIA.model_copy(update={"name": "a/b\n---\nlicense: mit\n# | <script>"})
    text = card(lineage=[hostile], losses={"<b>|x": 1.0})
    assert "base_model" not in metadata(text)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\n# |" not in text
    assert "| \\<b\\>\\|x |" in text


def test_a_baseline_that_was_measured_later_is_not_that_before_step_1(card):
    text = card(losses={"new": 3.0}, baseline={"new": 4.0}, baseline_steps={"new": 10})
    assert "| new |  |  | 3.0000 |  |" in text
    assert "Not measured." in card(losses={})


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_a_checkpoint_whose_card_was_changed_is_used_as_before(
    trained_run, recipe_text, tmp_path, corpora, command, change
):
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "run", until=7)
    path = last_checkpoint(tmp_path / "run") / MODEL_CARD
    path.unlink() if change == "deleted" else path.write_text("license: mit")
    assert command("verify", tmp_path / "run")[0] == 0
    code, _, err = command("eval", path.parent, "--data", f"x={corpora}/upstream/val")
    assert (code, MODEL_CARD in err) == (0, False)
    resumed = run(recipe_text, tmp_path / "run", resume=True)
    assert trained_files(resumed) == trained_files(last_checkpoint(trained_run))
    assert (resumed / MODEL_CARD).read_text() == (
        last_checkpoint(trained_run) / MODEL_CARD
    ).read_text()


def test_a_checkpoint_without_a_card_is_intact(trained_run, tmp_path):
    """As those of earlier versions are."""
    checkpoint = shutil.copytree(last_checkpoint(trained_run), tmp_path / "step-00000020")
    (checkpoint / MODEL_CARD).unlink()
    rewrite_manifest(checkpoint)
    assert MODEL_CARD not in (checkpoint / MANIFEST).read_text()
    verify_checkpoint(checkpoint)
