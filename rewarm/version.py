"""The installed version of rewarm."""

from importlib.metadata import version

__version__ = version("rewarm")
