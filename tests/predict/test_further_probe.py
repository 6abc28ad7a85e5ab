"""The further arm that narrows a prediction most, against a fit to that arm's own losses."""

from functools import cache

import numpy as np
import pytest
from predicted_studies import PEAK
from searched_arms import ARMS, fitted_arms, recipe_of_arm
from synthetic_probes import LOGARITHMS, Arm

from rewarm.predict.accuracy import predict_change
from rewarm.predict.fit import Probe, fit_model
from rewarm.predict.further_probe import find_further_probe
from rewarm.predict.loss_models import LawModel

TARGET = recipe_of_arm(Arm(replay=0.25))


@cache
def further_arm():
    return find_further_probe(fitted_arms(), TARGET)


def last_error(fit, name):
    curve = ARMS.curve(TARGET, [TARGET.steps])
    return float(fit.standard_error(name, curve, 0.25)[-1])


def test_it_narrows_as_it_says():
    fitted = fitted_arms()
    further = further_arm()
    recipe, share = further.recipe, further.choice.replay
    assert ARMS.replay_share(recipe) == pytest.approx(share)
    curve = ARMS.curve(recipe, np.linspace(0, recipe.steps, 21).astype(int)[1:].tolist())
    law = LawModel(("upstream",), ("downstream",), 0.1)
    changes = {name: law.change(LOGARITHMS, name, curve, share) for name in law.sets}
    arms = [*ARMS.probes, Probe("further", curve, share, changes)]
    measured = fit_model(law, arms)
    target = ARMS.curve(TARGET, [TARGET.steps])
    for name, (before, after) in further.widths.items():
        scale = fitted.error_scale("saturating", name)
        low, high = predict_change(fitted.law, scale, name, target, 0.25).interval(0.8)
        assert before == pytest.approx(float(high[-1] - low[-1]))
        assert after < before
        better = scale._replace(freedom=scale.freedom + 1)
        low, high = predict_change(measured, better, name, target, 0.25).interval(0.8)
        assert after == pytest.approx(float(high[-1] - low[-1]), rel=0.1)


def test_it_is_short_and_within_what_was_probed():
    further = further_arm()
    assert 0 < further.narrowing < 1
    assert further.recipe.steps in (100, 200, 400)
    assert further.choice.peak <= PEAK
    assert further.recipe.schedule.decay == TARGET.schedule.decay


def test_for_much_replay_it_has_replay():
    """The arms have up to 10 % of it, and 40 % is predicted."""
    further = find_further_probe(fitted_arms(), recipe_of_arm(Arm(replay=0.4)))
    assert further.choice.replay >= 0.2
