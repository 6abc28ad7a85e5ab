"""Constraints as they are written, and the losses that they allow."""

import numpy as np
import pytest
from predicted_studies import STARTS
from searched_arms import ARMS

from rewarm.errors import RecipeError
from rewarm.predict.constraints import parse_constraint


@pytest.mark.parametrize(
    ("text", "highest"),
    [
        ("upstream rise <= 0.03", STARTS["upstream"] + 0.03),
        ("upstream rise<0.03", STARTS["upstream"] + 0.03),
        ("upstream forgetting <= 3e-2", STARTS["upstream"] + 0.03),
        ("downstream fall >= 0.5", STARTS["downstream"] - 0.5),
        ("downstream adaptation > 0.5", STARTS["downstream"] - 0.5),
        ("upstream <= 3.2", 3.2),
    ],
)
def test_constraints_limit_losses_from_above(text, highest):
    constraint = parse_constraint(text, ARMS)
    [name] = constraint.sets
    assert constraint.role == name == text.split()[0]
    assert constraint.highest_loss == pytest.approx(highest)
    excess = constraint.excess({name: np.array([highest - 0.5, highest, highest + 0.25])})
    assert excess.tolist() == pytest.approx([-0.5, 0, 0.25])


def test_a_role_stands_for_the_mean_of_its_sets():
    roles = {"pile": "upstream", "books": "upstream", "german": "downstream"}
    arms = ARMS._replace(roles=roles, starts={"pile": 2.0, "books": 3.0, "german": 4.0})
    constraint = parse_constraint("upstream rise <= 0.1", arms)
    assert constraint.sets == ("pile", "books")
    assert constraint.excess({"pile": 2.5, "books": 2.8}) == pytest.approx(2.65 - 2.6)
    assert parse_constraint("books <= 3.1", arms).sets == ("books",)
    assert constraint.describe(2.65) == "upstream rise 0.150"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "cannot be read"),
        ("upstream rise <= much", "cannot be read"),
        ("upstream rise <= nan", "cannot be read"),
        ("upstream", "cannot be read"),
        ("upstraem rise <= 0.1", "no validation set named 'upstraem'; did you mean 'upstream'?"),
        ("code rise <= 0.1", "code is neither upstream nor downstream, and is not predicted"),
        ("upstream rises <= 0.1", "no metric named 'rises'; did you mean 'rise'?"),
        ("upstream rise >= 0.1", "it asks for a higher loss"),
        ("downstream fall <= 0.1", "it asks for a higher loss"),
        ("downstream >= 3", "it asks for a higher loss"),
    ],
)
def test_what_is_no_constraint(text, problem):
    with pytest.raises(RecipeError) as error:
        parse_constraint(text, ARMS._replace(not_described=["code"]))
    assert str(error.value).startswith(f"--keep {text!r}: {problem}")
    assert error.value.exit_code == 2
