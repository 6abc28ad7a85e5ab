import pytest

from rewarm.model.architecture import PRESETS
from rewarm.model.published_pythia import published_architecture, published_training


@pytest.mark.parametrize("name", ["EleutherAI/pythia-410m", "EleutherAI/pythia-410m-deduped"])
def test_a_pythia_model_has_the_architecture_of_its_preset(name):
    assert published_architecture(name) == PRESETS["pythia-410m"]


@pytest.mark.parametrize("name", ["someone/pythia-410m", "EleutherAI/gpt-neox-20b", "pythia-410m"])
def test_nothing_is_published_about_other_models(name):
    assert published_architecture(name) is None
    assert published_training(name, None) is None


def test_the_final_checkpoint():
    training = published_training("EleutherAI/pythia-410m", None)
    # 143,000 steps of 1,024 × 2,048 tokens; the peak of 3e-4 after 1,430 steps of warm-up
    assert (training.step, training.tokens) == (143_000, 299_892_736_000)
    assert training.lrs == pytest.approx((3e-4 / 1430, 3e-4, 3e-5))


def test_an_early_revision_is_still_in_the_warm_up():
    training = published_training("EleutherAI/pythia-410m", "step143")
    assert training.lrs == pytest.approx((3e-4 / 1430, 3e-5, 3e-5))


@pytest.mark.parametrize("revision", ["step0", "step143001", "main", "step-5", "step10000000"])
def test_nothing_is_published_about_other_revisions(revision):
    assert published_training("EleutherAI/pythia-410m", revision) is None
