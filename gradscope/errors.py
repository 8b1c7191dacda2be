"""What can go wrong, as one tree.

GradscopeError
├── AttachError       attach(): the model, a pattern or an argument is unusable
├── RecordError       the run folder cannot be written, or is being written by another scope
├── LoadError         a folder cannot be read as a run
└── AnalysisError     a failure inside gradscope, raised only with strict=True

GradscopeWarning      the same failures without strict: recorded in `notes`, warned about once
"""

from __future__ import annotations


class GradscopeError(Exception):
    """Root of everything that gradscope raises on purpose."""


class AttachError(GradscopeError):
    """`attach` was given something it cannot work with; the message says what to do."""


class RecordError(GradscopeError):
    """A run folder cannot be written."""


class LoadError(GradscopeError):
    """A folder cannot be read as a run."""


class AnalysisError(GradscopeError):
    """A failure inside gradscope itself, raised only with `strict=True`; `__cause__` holds the failure."""


class GradscopeWarning(UserWarning):
    """Something could not be observed; `notes` has the details."""
