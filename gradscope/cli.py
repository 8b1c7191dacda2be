"""The `gradscope` command.

This is only its door. It needs nothing beyond the base install, and so can say what is missing; each command lives in
the room it serves and is imported from there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gradscope import GradscopeError, __version__

if TYPE_CHECKING:
    import click

EXTRAS = {"click": "cli", "rich": "cli", "sklearn": "demo"}
"""Which extra brings a package that the base install does without."""

HELP = """Gradient diagnostics for PyTorch RNNs.

In your own training it is one line, and the loop is not touched:

\b
    scope = gradscope.attach(model, logdir="runs/exp1")
    ...                                      # train as ever
    scope.close()
    run = gradscope.load("runs/exp1")        # everything seen, as pandas tables
    run.frame("layers")                      # how far back each layer's gradient reaches

To see what it tells you, start with: gradscope demo
"""


def main() -> int:
    """Run the command line.

    Returns:
        The exit status: 0 for success, 2 for bad usage or bad input, with the reason in one line on stderr.
    """
    try:
        return _run(sys.argv[1:] or ["--help"])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _refuse(f"{package} is not installed; get it with: pip install 'gradscope-rnn[{EXTRAS[package]}]'")
    except GradscopeError as error:
        return _refuse(str(error))


def commands() -> click.Group:
    """All commands, as one click group."""
    import click

    from gradscope.demo.command import demo

    settings = {"help_option_names": ["-h", "--help"]}
    group = click.Group("gradscope", help=HELP, commands=[demo], context_settings=settings)
    return click.version_option(__version__, message="gradscope %(version)s")(group)


def _run(arguments: list[str]) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
