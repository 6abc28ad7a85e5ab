"""`rewarm schedules new`, which calls it, is tested in tests/cli/commands/test_schedules.py."""

import tomllib

import pytest

from rewarm.errors import ScheduleError
from rewarm.schedules import CONTRACT
from rewarm.schedules.new_plugin import write_plugin


def test_the_files_of_a_new_plugin(tmp_path):
    files = write_plugin("two-part", tmp_path)
    root = tmp_path / "rewarm-two-part"
    assert [str(path.relative_to(root)) for path in files] == [
        "pyproject.toml",
        "rewarm_two_part.py",
        "README.md",
        "tests/test_rewarm_two_part.py",
    ]
    project = tomllib.loads(files[0].read_text())["project"]
    assert project["name"] == "rewarm-two-part"
    assert project["entry-points"] == {"rewarm.schedules": {"two-part": "rewarm_two_part:TwoPart"}}
    module = files[1].read_text()
    assert "class TwoPart(Schedule):" in module
    assert f"contract: ClassVar[int] = {CONTRACT}" in module


@pytest.mark.parametrize("name", ["", "Two", "2part", "two_part", "two--part", "two-", "../two"])
def test_invalid_names_are_refused(tmp_path, name):
    with pytest.raises(ScheduleError, match="cannot be a schedule's name; use lower-case letters"):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_name_of_an_installed_schedule_is_refused(tmp_path):
    with pytest.raises(
        ScheduleError, match=r"rewarm .* already offers a schedule named 'constant'"
    ):
        write_plugin("constant", tmp_path)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    write_plugin("two-part", tmp_path)
    with pytest.raises(ScheduleError, match="rewarm-two-part: already exists; choose another name"):
        write_plugin("two-part", tmp_path)


def test_a_parent_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ScheduleError, match="cannot be written: Not a directory"):
        write_plugin("two-part", tmp_path / "file")
