"""The classes of rewarm's commands: what their help pages show, and in which words."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


class Command(TyperCommand):
    """A command whose help page has no types of flags and arguments."""

    def get_params(self, ctx: Any) -> Any:
        """Returns arguments and options, `--help` among them."""
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose help page has no types of flags and arguments."""

    def get_params(self, ctx: Any) -> Any:
        """Returns arguments and options, `--help` among them."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: Any) -> Any:
    """Leaves out what newer versions of typer show: `<bool>` of a flag, `<path>` of RECIPE."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            vars(parameter)["display_type_rich"] = lambda ctx: None
        elif isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters
