"""Plug-ins are real distributions on the path."""

import json
import sys
import tomllib
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError, field_validator
from repository import ROOT

from rewarm import Schedule, schedules
from rewarm.errors import ScheduleError
from rewarm.quantities import Budget
from rewarm.recipe.json_schema import recipe_schema
from rewarm.schedules import Constant, NoWarmup, Rewarm, registry
from rewarm.schedules.builtin import Decay

SOURCE = """
from typing import ClassVar, Literal
from rewarm import Schedule

class Step(Schedule):
    "Falls to a tenth after half of the run."
    contract: ClassVar[int] = 1
    name: Literal["step"] = "step"
    lr: float
    def __call__(self, progress):
        return self.lr if progress < 0.5 else self.lr / 10

class Uncallable(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["uncallable"] = "uncallable"

def function(progress):
    return 1.0
"""


def test_builtin_schedules_use_entry_points():
    builtin = {plugin.name: plugin.distribution for plugin in schedules.installed()}
    assert builtin.items() >= dict.fromkeys(["constant", "no-warmup", "rewarm"], "rewarm").items()
    assert schedules.find("rewarm") is Rewarm
    assert schedules.find("no-warmup") is NoWarmup
    assert schedules.find("constant") is Constant


def test_a_plugin_is_found(distribution):
    distribution("found_steps", SOURCE, step="Step")
    kind = schedules.find("step")
    assert issubclass(kind, Schedule)
    assert [kind(lr=1.0)(at) for at in (0.1, 0.9)] == [1.0, 0.1]
    assert schedules.origin("step")[:3] == ("step", "found_steps", "1.0")


def test_an_unknown_name_is_an_error_that_lists_the_installed_ones():
    with pytest.raises(
        ScheduleError,
        match=r"no schedule named 'rewram'; did you mean 'rewarm'\? \(installed: .*no-warmup",
    ):
        schedules.find("rewram")
    with pytest.raises(ScheduleError, match=r"no schedule named 'zzz' \(installed: "):
        schedules.find("zzz")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "wsd",
            ": it is in the plug-in rewarm-wsd, which is not installed; in a clone of rewarm: pip "
            "install ./plugins/rewarm-wsd (installed: ",
        ),
        ("wsd_s", ": 'wsd-s' is in the plug-in rewarm-wsd, which is not installed; "),
        ("rewarm-infinite", ": 'infinite' is in the plug-in rewarm-infinite, which is not"),
        ("infinit", "; did you mean 'infinite'? (installed: "),
        ("cosine", ": a decay, and no schedule; write name: rewarm (or no-warmup) and decay: cosi"),
        ("cosine_with_warmup", ": a decay, and no schedule; write name: rewarm (or no-warmup) and"),
        ("clipped-cosine", ": a decay, and no schedule; write name: rewarm (or no-warmup) and dec"),
    ],
)
def test_a_schedule_that_is_not_installed_is_named_with_what_to_do(name, hint, monkeypatch):
    builtin = [plugin for plugin in schedules.installed() if plugin.distribution == "rewarm"]
    monkeypatch.setattr(registry, "installed", lambda: builtin)
    with pytest.raises(ScheduleError) as raised:
        schedules.find(name)
    assert f"no schedule named {name!r}{hint}" in str(raised.value)


def test_all_plugins_of_this_repository_are_known():
    offered = {}
    for file in (ROOT / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        offered |= dict.fromkeys(project["entry-points"][schedules.GROUP], project["name"])
    assert offered == registry.PLUGINS


def test_all_decays_are_known():
    assert {*registry._DECAYS, "none"} == set(get_args(Decay))


def test_only_the_requested_schedule_is_imported(distribution):
    distribution("never_imported", "raise RuntimeError('imported')", never="Never")
    assert schedules.find("rewarm") is Rewarm
    assert "never" in [plugin.name for plugin in schedules.installed()]
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize(
    ("name", "source", "kind", "message"),
    [
        ("bad_raise", "raise RuntimeError('out of order')", "Step", "RuntimeError: out of order"),
        ("bad_exit", "import sys; sys.exit(7)", "Step", "SystemExit: 7"),
        ("bad_generator", "raise GeneratorExit", "Step", "GeneratorExit; fix"),
        ("bad_import", "import no_such_module", "Step", "ModuleNotFoundError: No module named"),
        ("bad_syntax", "def", "Step", "SyntaxError"),
        ("bad_nothing", "", "Step", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_an_error(distribution, name, source, kind, message):
    distribution(name, source, step=kind)
    with pytest.raises(
        ScheduleError, match=rf"{name} 1\.0 cannot be imported: {message}"
    ) as raised:
        schedules.find("step")
    assert str(raised.value).endswith(f"fix or uninstall {name}")


@pytest.mark.parametrize(
    ("module", "entry", "kind", "message"),
    [
        ("odd_function", "f", "function", "is not a rewarm.Schedule: odd_function:function"),
        ("odd_type", "f", "Literal", "is not a rewarm.Schedule"),
        ("odd_name", "stairs", "Step", "declares the name 'step'; it should equal"),
        ("odd_call", "uncallable", "Uncallable", "has no __call__"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_an_error(distribution, module, entry, kind, message):
    distribution(module, SOURCE, **{entry: kind})
    with pytest.raises(ScheduleError, match=f"schedule '{entry}' of {module} 1.0 {message}"):
        schedules.find(entry)


def test_a_distribution_without_name_and_version_is_still_listed(distribution, tmp_path):
    distribution("anonymous", SOURCE, step="Step")
    (tmp_path / "site" / "anonymous-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\n"
    )
    assert schedules.origin("step")[:3] == ("step", "?", "?")
    assert schedules.identity("step") == {"name": "step", "distribution": "?", "version": "?"}
    assert issubclass(schedules.find("step"), Schedule)


def test_two_distributions_with_one_name_are_refused_before_either_is_imported(distribution):
    for name in ("twin_a", "twin_b"):
        distribution(name, SOURCE, step="Step")
    with pytest.raises(
        ScheduleError,
        match=r"two distributions offer .* 'step': twin_a 1.0 and twin_b 1.0; uninstall one",
    ):
        schedules.find("step")
    assert not {"twin_a", "twin_b"} & set(sys.modules)


def test_settings_are_resolved_against_the_given_budget_and_base():
    written = {"name": "rewarm", "peak_lr": "10x base", "min_lr": "base", "warmup": "25 steps"}
    context = {"budget": Budget(100.0, 64), "base_lr": lambda: 3e-5}
    read = schedules.read(written, context)
    assert (type(read), float(read.warmup), read.min_lr) == (Rewarm, 0.25, 3e-5)
    longer = schedules.read(read, {"budget": Budget(1000, 64), "base_lr": None})
    assert (float(longer.warmup), longer.min_lr) == (0.025, 3e-5)


@pytest.mark.parametrize(
    ("written", "location", "message"),
    [
        ("rewarm", (), "Value error, should be settings, such as {name: rewarm"),
        ({}, ("name",), "required, but missing"),
        ({"name": 3}, ("name",), "should be text"),
        ({"name": "rewram"}, ("name",), "no schedule named 'rewram'; did you mean 'rewarm'?"),
        ({"name": "constant", "rl": 1}, ("lr",), "Field required"),
    ],
)
def test_invalid_settings_are_located(written, location, message):
    class Outer(BaseModel):
        inner: Schedule

        @field_validator("inner", mode="plain")
        @classmethod
        def _read(cls, value, info):
            return schedules.read(value, {"budget": None, "base_lr": None})

    with pytest.raises(ValidationError) as raised:
        Outer(inner=written)
    first = raised.value.errors()[0]
    assert first["loc"] == ("inner", *location)
    assert first["msg"].startswith(message)


FAULTY = """
import sys
import tomllib
from typing import get_args
from typing import ClassVar, Literal
from pydantic import field_serializer, field_validator
from rewarm import Schedule

class Exits(Schedule):
    contract: ClassVar[int] = 1
    name: Literal["exits"] = "exits"
    where: str = "nowhere"
    def __call__(self, progress):
        return 1.0
    @field_validator("where")
    @classmethod
    def check(cls, where):
        return sys.exit(0) if where == "validator" else where
    @field_serializer("where")
    def write(self, where):
        return sys.exit(0) if where == "serializer" else where
    @classmethod
    def model_json_schema(cls, *_, **__):
        sys.exit(0)
"""


@pytest.mark.parametrize("where", ["validator", "serializer"])
def test_sys_exit_in_checks_of_settings_is_an_error(distribution, where):
    distribution(f"exits_{where}", FAULTY, exits="Exits")
    with pytest.raises(ValueError, match=r"'exits' cannot check its settings: .*SystemExit: 0"):
        schedules.read({"name": "exits", "where": where}, {"budget": None, "base_lr": None})


def test_a_schema_that_cannot_be_made_is_an_error_and_left_out_of_that_of_recipes(distribution):
    distribution("exits_schema", FAULTY, exits="Exits")
    with pytest.raises(ScheduleError, match="Exits cannot be described: SystemExit: 0"):
        schedules.settings_schema(schedules.find("exits"))
    choices = json.dumps(recipe_schema())
    assert "schedule-exits" not in choices
    assert "schedule-rewarm" in choices


def test_an_import_that_takes_too_long_is_an_error(distribution):
    distribution("slow_to_import", "import time; time.sleep(3)" + SOURCE, step="Step")
    with pytest.raises(ScheduleError, match=r"cannot be imported: it takes longer than 0.1 s; fix"):
        schedules.find("step", max_seconds=0.1)
