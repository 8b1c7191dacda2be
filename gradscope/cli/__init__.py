"""The entry point of the `gradscope` command.

This file needs nothing beyond the base install, so it can name missing packages. Each command has its own file.
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
"""Extras of packages that are not in the base install."""

HELP = """Gradient diagnostics for PyTorch RNNs.

Your own training needs one line, and no change of the loop:

\b
    scope = gradscope.attach(model, logdir="runs/exp1")
    ...                                      # train as before
    scope.close()
    run = gradscope.load("runs/exp1")        # all records, as pandas tables
    run.findings()                           # faults, reasons, and remedies
    run.report().save("report.html")         # the same with all figures

\b
Without any change to a script: gradscope run train.py
For an example, start with: gradscope demo

`report`, `check`, `compare` and `view` take a run folder, or a folder with many runs below it.

Exit status: 0 success; 1 findings (check); 2 bad usage or input, with one line on stderr. `run` exits like the script.
"""


def main() -> int:
    """Run the command line.

    Returns:
        The exit status: 0 for success, 1 for findings, 2 for bad usage or bad input, with the reason in one line on
        stderr; for `run` the script's.
    """
    try:
        result = _run(sys.argv[1:] or ["--help"])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _refuse(f"{package} is not installed; install it with: pip install 'gradscope-rnn[{EXTRAS[package]}]'")
    except GradscopeError as error:
        return _refuse(str(error))
    return result() if callable(result) else result  # a script runs here, where nothing catches its exceptions


def commands() -> click.Group:
    """Return all commands, as one click group."""
    import click

    from gradscope.cli.check import check
    from gradscope.cli.compare import compare
    from gradscope.cli.demo import demo
    from gradscope.cli.report import report
    from gradscope.cli.run import run
    from gradscope.cli.view import view

    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    listed = [run, report, compare, view, demo, check]
    for command in listed:  # click's mark of preserved line breaks is one character; raw docstrings have two
        command.help = (command.help or "").replace("\\b\n", "\b\n")
    group = click.Group("gradscope", help=HELP, commands=listed, context_settings=settings)
    group.list_commands = lambda ctx: [command.name or "" for command in listed]  # in the usual order of use
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
