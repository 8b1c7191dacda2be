"""The mathematics of recurrences: each family's equations, and what is measured of every one alike."""

from gradscope.families.stack import analyse, certify

__all__ = ["analyse", "certify"]
