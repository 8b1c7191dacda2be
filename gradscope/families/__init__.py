"""The mathematics of recurrences: the equations of each family, and the measurements common to all."""

from gradscope.families.generic import analyse_recurrence
from gradscope.families.origin import find_origin, find_origins
from gradscope.families.positions import analyse_positions
from gradscope.families.positions_origin import find_position_origin
from gradscope.families.saved import analyse_saved
from gradscope.families.stack import analyse, certify
from gradscope.families.work import Work

__all__ = [
    "Work",
    "analyse",
    "analyse_saved",
    "analyse_positions",
    "analyse_recurrence",
    "certify",
    "find_origin",
    "find_origins",
    "find_position_origin",
]
