"""rewarm: continual pre-training of GPT-NeoX / Pythia models, with the learning rate in view."""

from importlib.metadata import version

from rewarm.errors import RewarmError
from rewarm.quantities import Rate, Span
from rewarm.recipe import Recipe
from rewarm.schedules import Schedule, cosine, linear

__version__ = version("rewarm")
__all__ = ["Rate", "Recipe", "RewarmError", "Schedule", "Span", "__version__", "cosine", "linear"]
