"""Each promise of the contract, and a schedule that breaks it."""

import pytest

from rewarm.errors import ScheduleError
from rewarm.recipe.recipe import RecipeError, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.schedules import Constant
from rewarm.testing import check_schedule, conformance, rates

SOURCE = '''
import time
from typing import Annotated, ClassVar, Literal
from pydantic import ConfigDict, Field, PrivateAttr, field_serializer, model_validator
from rewarm import Rate, Schedule, Span, linear


class Plain(Schedule):
    """Falls linearly to 0."""

    contract: ClassVar[int] = 1
    name: Literal["plain"] = "plain"
    peak_lr: Annotated[Rate, Field(examples=[3e-4])]
    """The rate at the start."""
    hold: Span = Span(0)
    """How long the rate stays at the peak."""

    def __call__(self, progress):
        left = 1 - max(0.0, min(progress, 1) - self.hold) / (1 - self.hold)
        return self.peak_lr * left
'''


def test_a_simple_schedule_keeps_all_promises(distribution):
    distribution("all_kept", SOURCE, plain="Plain")
    assert set(conformance("plain", {}).values()) == {None}
    check_schedule("plain")
    check_schedule("plain", peak_lr="5x base", hold="10%")
    check_schedule("plain", hold="100 steps")


@pytest.mark.parametrize("name", ["rewarm", "no-warmup"])
@pytest.mark.parametrize("decay", ["cosine", "clipped-cosine", "linear", "1-sqrt"])
def test_builtin_schedules_keep_all_promises(name, decay):
    check_schedule(name, decay=decay)
    check_schedule(name, decay=decay, preheat="5%")


def test_builtin_schedules_keep_all_promises_with_other_settings():
    check_schedule("rewarm", decay="inverse-sqrt", warmup="2%", start_lr="base")
    check_schedule("rewarm", decay="none", min_lr=None)
    check_schedule("constant", lr="base")


@pytest.mark.parametrize(
    ("promise", "violation", "body"),
    [
        (
            "finite and not negative",
            "at progress 0.001 gave -1e-06",
            "def __call__(self, progress): return -1e-6",
        ),
        (
            "finite and not negative",
            "gave nan; a rate is finite",
            "def __call__(self, progress): return float('nan') if progress > 5 else 1e-3",
        ),
        (
            "finite and not negative",
            "gave 'fast'; a rate is a number",
            "def __call__(self, progress): return 'fast'",
        ),
        (
            "pure: the same in any order",
            "the same progress should always give the same rate",
            "seen: ClassVar[list[float]] = []\n"
            "    def __call__(self, progress):\n"
            "        self.seen.append(progress)\n"
            "        return 1e-3 / len(self.seen)",
        ),
        (
            "pure: the same in any order",
            "its settings changed while it was called",
            "lrs: list[float] = []\n"
            '    """Rates so far."""\n'
            "    def __call__(self, progress):\n"
            "        self.lrs.append(progress)\n"
            "        return 1e-3",
        ),
        (
            "holds past its end",
            "the rate is 0.001 at the end, and 0.001000000001 at progress 1.000000001",
            "def __call__(self, progress): return 1e-3 * progress",
        ),
        (
            "sees progress only",
            "in a run of 1,000 steps and",
            "_steps: int = PrivateAttr(1)\n"
            "    @model_validator(mode='after')\n"
            "    def _look(self, info):\n"
            "        self._steps = info.context['budget'].steps\n"
            "        return self\n"
            "    def __call__(self, progress): return 1e-3 / self._steps",
        ),
        pytest.param(
            "fast",
            "µs; at most 200",
            "def __call__(self, progress): return time.sleep(3e-4) or 1e-3",
            marks=pytest.mark.slow,
        ),
        (
            "comes back from YAML and JSON",
            "read back from JSON it is",
            "@field_serializer('peak_lr')\n"
            "    def _rounded(self, lr): return round(lr, 3)\n"
            "    def __call__(self, progress): return self.peak_lr",
        ),
        (
            "settings documented",
            "the setting secret has no docstring under it",
            "secret: int = 3\n    def __call__(self, progress): return 1e-3",
        ),
        (
            "refuses unknown settings",
            "an unknown setting is ignored",
            "model_config = ConfigDict(extra='ignore')\n"
            "    def __call__(self, progress): return 1e-3",
        ),
        (
            "frozen",
            "can be changed; keep frozen=True",
            "model_config = ConfigDict(frozen=False)\n"
            "    def __call__(self, progress): return 1e-3",
        ),
        (
            "marks within the run",
            "the mark 'late' is at 1.5",
            "def marks(self): return {'late': 1.5}",
        ),
    ],
)
def test_a_broken_promise_is_reported(distribution, request, promise, violation, body):
    module = f"broken_promise_{request.node.callspec.indices['promise']}"
    source = f"{SOURCE}\n\nclass Broken(Plain):\n    '''A docstring.'''\n\n    "
    source += (
        f"contract: ClassVar[int] = 1\n    name: Literal['{module}'] = '{module}'\n    {body}\n"
    )
    distribution(module, source, **{module: "Broken"})
    results = conformance(module, {})
    assert violation in results[promise]
    with pytest.raises(AssertionError, match=f"breaks its contract:(.|\n)*{promise}: "):
        check_schedule(module)


def test_an_exception_is_a_broken_promise(distribution):
    body = "\n\nclass Raises(Plain):\n    contract: ClassVar[int] = 1\n"
    body += "    name: Literal['raises'] = 'raises'\n    def marks(self): return 1 / 0\n"
    distribution("one_raises", SOURCE + body, raises="Raises")
    results = conformance("raises", {})
    assert "raised ZeroDivisionError" in results["marks within the run"]


def test_a_schedule_that_cannot_be_built_is_an_error():
    with pytest.raises(ScheduleError, match="no schedule named 'rewram'"):
        check_schedule("rewram")
    with pytest.raises(ScheduleError, match=r"cannot be built for the test: warmup: .*less than 1"):
        check_schedule("rewarm", warmup=2)


def test_a_recipe_cannot_name_a_schedule_of_another_contract(distribution, thousand_steps):
    for contract in ("= 2", ""):
        source = SOURCE.replace(
            "contract: ClassVar[int] = 1", f"contract: ClassVar[int] {contract}"
        )
        module = f"contract{len(contract)}"
        distribution(module, source.replace('"plain"', f'"{module}"'), **{module: "Plain"})
        document = YamlDocument(thousand_steps, "r.yaml")
        document.apply_override(f"schedule={{name: {module}, peak_lr: 1e-3}}")
        built_for = "contract 2" if contract else "no contract"
        with pytest.raises(RecipeError, match=rf"built for {built_for}.*has contract 1; install"):
            validate_recipe(document)


def test_rates_of_every_step_of_a_run():
    curve = rates("rewarm", 4, peak_lr=2.0, min_lr="base", warmup="2 steps", decay="linear")
    assert curve == [1.0, 2.0, pytest.approx(1 + 1.5e-5), 3e-5]
    assert rates(Constant, 2, lr="base") == [3e-5, 3e-5]
    warmup = {"peak_lr": 1.0, "decay": "none", "warmup": "20 tokens"}
    assert rates("rewarm", 4, tokens_per_step=10, **warmup) == [0.5, 1.0, 1.0, 1.0]
