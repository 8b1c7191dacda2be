"""What can go wrong, as one tree.

GradscopeError
├── AttachError           attach(): the model, a pattern or an argument is unusable
├── RecordError           the run folder cannot be written
│   └── FolderTakenError  it already has the steps, or is being written by another scope
├── LoadError             a folder cannot be read as a run
├── MissingPackageError   a package that an extra brings is not installed
└── AnalysisError         a failure inside gradscope, raised only with strict=True

GradscopeWarning          the same failures without strict: recorded in `notes`, warned about once
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class GradscopeError(Exception):
    """Root of everything that gradscope raises on purpose."""


class AttachError(GradscopeError):
    """`attach` was given something it cannot work with; the message says what to do."""


class RecordError(GradscopeError):
    """A run folder cannot be written."""


class FolderTakenError(RecordError):
    """A folder is another run's.

    Args:
        why: what is in the way.
        advice: what to do about it.
    """

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"{why}: {advice}")
        self.why = why


class LoadError(GradscopeError):
    """A folder cannot be read as a run."""


class MissingPackageError(GradscopeError, ModuleNotFoundError):
    """A package that the base install does without is needed; the message says how to get it."""


@contextmanager
def from_extra(extra: str) -> Generator[None]:
    """Import in here what an extra brings.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        told = f"{package} is not installed; get it with: pip install 'gradscope-rnn[{extra}]'"
        raise MissingPackageError(told, name=package) from None


class AnalysisError(GradscopeError):
    """A failure inside gradscope itself, raised only with `strict=True`; `__cause__` holds the failure."""


class GradscopeWarning(UserWarning):
    """Something could not be observed; `notes` has the details."""
