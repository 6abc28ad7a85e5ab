"""Batch scripts rely on the exit codes: the README states them, and every error has one."""

import re

from repository import ROOT

from rewarm import errors, exit_codes


def test_exit_codes_are_those_of_the_readme():
    table = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    codes = (
        exit_codes.DONE,
        exit_codes.BAD_RECIPE,
        exit_codes.UNUSABLE_INPUT,
        exit_codes.DIVERGED,
        exit_codes.STOPPED,
        exit_codes.INTERRUPTED,
    )
    assert codes == (0, 2, 3, 4, 75, 130)
    assert documented == set(codes)


def test_each_error_ends_with_its_exit_code():
    assert {
        errors.RewarmError: 1,
        errors.RecipeError: 2,
        errors.ScheduleError: 2,
        errors.DataError: 3,
        errors.CheckpointError: 3,
        errors.Diverged: 4,
        errors.Preempted: 75,
        errors.PeerError: 1,
        errors.LostPeerError: 1,
    } == {
        kind: kind.exit_code for kind in (errors.RewarmError, *errors.RewarmError.__subclasses__())
    }
