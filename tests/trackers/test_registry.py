import pytest
from tracked_lines import RECORDING

from rewarm.plugins import installed_plugins
from rewarm.trackers.registry import (
    TRACKER_GROUP,
    find_tracker,
    is_builtin,
    load_tracker,
    setting_problems,
)

BUILTIN = ["mlflow", "tensorboard", "trackio", "wandb"]


def test_builtin_trackers_use_entry_points():
    assert [plugin.name for plugin in installed_plugins(TRACKER_GROUP)] == BUILTIN
    for name in BUILTIN:
        assert is_builtin(find_tracker(name))
        assert load_tracker(find_tracker(name)).contract == 1


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ValueError, match=r"no tracker named 'wanbd'; did you mean 'wandb'\? \(ins"):
        find_tracker("wanbd")


def test_two_distributions_of_one_name_are_refused(distribution):
    distribution("second", RECORDING, TRACKER_GROUP, wandb="Recording")
    with pytest.raises(ValueError, match=r"'wandb': rewarm \S+ and second 1.0; uninstall one"):
        find_tracker("wandb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("contract = 1", "contract = 2"), "built for contract 2 of rewarm trackers"),
        (("contract = 1", "pass"), "built for contract None"),
        (("(Tracker)", ""), "is not a rewarm.Tracker"),
        (("def open", "def begin"), r"has no open\(self, run\)"),
    ],
)
def test_a_broken_contract_is_refused(distribution, change, message):
    module = f"broken_{abs(hash(change))}"  # a module is imported once
    distribution(module, RECORDING.replace(*change), TRACKER_GROUP, broken="Recording")
    with pytest.raises(ValueError, match=message):
        load_tracker(find_tracker("broken"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"projct": "x"}, ("projct", "no such setting; did you mean 'project'?")),
        ({"mode": "on"}, ("mode", "should be 'offline', 'online' or 'disabled' (got 'on')")),
        ({"project": ""}, ("project", "String should have at least 1 character (got '')")),
    ],
)
def test_settings_are_checked(settings, problem):
    (found,) = setting_problems(load_tracker(find_tracker("wandb")), settings)
    assert found == problem


def test_an_address_that_mlflow_would_take_for_a_folder_is_refused():
    kind = load_tracker(find_tracker("mlflow"))
    ((setting, problem),) = setting_problems(kind, {"tracking_uri": "127.0.0.1:5000"})
    assert setting == "tracking_uri"
    assert problem.startswith("not an address; give one such as http://127.0.0.1:5000")
    for uri in ("http://127.0.0.1:5000", "sqlite:///a.db", "file:/a", "databricks", None):
        assert not list(setting_problems(kind, {"tracking_uri": uri}))
