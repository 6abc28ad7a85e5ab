"""What is shown of the arms of a study, as cells of a table."""

from __future__ import annotations

from rewarm.study.intervals import Estimate
from rewarm.tables import EMPTY, Cell


def mean_cell(found: Estimate | None, *, sign: bool = False) -> Cell:
    """Returns a mean with its standard error."""
    if found is None:
        return EMPTY
    form = "+.4f" if sign else ".4f"
    mean = format(found.mean, form)
    error = f" ± {format(found.error, form.lstrip('+'))}" if found.error else ""
    return Cell(mean + error, found.mean)
