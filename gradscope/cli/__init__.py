"""The `gradscope` command.

This is only its door. It needs nothing beyond the base install, and so can say what is missing; each command has a file
of its own beside it, but for the demo, which is a room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from gradscope import GradscopeError, __version__

if TYPE_CHECKING:
    import click

EXTRAS = {
    **{"click": "cli", "rich": "cli", "sklearn": "demo"},
    **{"jinja2": "report", "markupsafe": "report", "matplotlib": "report", "seaborn": "report"},
    "duckdb": "fleet",
    **{"tensorboard": "tensorboard", "plotly": "tensorboard"},
}
"""Which extra brings a package that the base install does without."""

HELP = """Gradient diagnostics for PyTorch RNNs.

In your own training it is one line, and the loop is not touched:

\b
    scope = gradscope.attach(model, logdir="runs/exp1")
    ...                                      # train as ever
    scope.close()
    run = gradscope.load("runs/exp1")        # everything seen, as pandas tables
    run.findings()                           # what is wrong, why, and what to try
    run.report().save("report.html")         # the same with all figures

\b
Without any change to a script: gradscope run train.py
To see what it tells you, start with: gradscope demo

Where a run folder is expected, `report`, `check`, `compare` and `view` also take a folder with many runs below it.

Exit status: 0 success; 1 findings (check); 2 bad usage or input, with one line on stderr. `run` has that of the script.
"""


def main() -> int:
    """Run the command line.

    Returns:
        The exit status: 0 for success, 1 for findings, 2 for bad usage or bad input, with the reason in one line on
        stderr; for `run` that of the script.
    """
    try:
        found = _run(sys.argv[1:] or ["--help"])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _refuse(f"{package} is not installed; get it with: pip install 'gradscope-rnn[{EXTRAS[package]}]'")
    except GradscopeError as error:
        return _refuse(str(error))
    return found() if callable(found) else found  # a script is run out here, where nothing catches what it raises


def commands() -> click.Group:
    """All commands, as one click group."""
    import click

    from gradscope.cli.check import check
    from gradscope.cli.compare import compare
    from gradscope.cli.report import report
    from gradscope.cli.run import run
    from gradscope.cli.view import view
    from gradscope.demo.command import demo

    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    found = [run, report, compare, view, demo, check]
    for command in found:  # to click, what keeps its line breaks begins with one letter; in raw docstrings it is two
        command.help = (command.help or "").replace("\\b\n", "\b\n")
    group = click.Group("gradscope", help=HELP, commands=found, context_settings=settings)
    group.list_commands = lambda ctx: [command.name or "" for command in found]  # in the order in which they are used
    return click.version_option(__version__, message="gradscope %(version)s")(group)


def _run(arguments: list[str]) -> int | Callable[[], int]:
    group = commands()
    import click

    try:
        return group.main(arguments, prog_name="gradscope", standalone_mode=False) or 0
    except click.ClickException as error:
        return _refuse(error.format_message())
    except click.Abort:
        return _refuse("interrupted", status=130)


def _refuse(reason: str, status: int = 2) -> int:
    sys.stderr.write(f"gradscope: {' '.join(reason.split())}\n")
    return status
