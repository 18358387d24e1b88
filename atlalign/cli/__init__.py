"""The command line `atlalign`: one module per command; heavy imports happen in the command that needs them."""

import argparse
import sys
from collections.abc import Sequence

from atlalign import __version__
from atlalign.cli import (
    count,
    export,
    import_keras,
    locate,
    merge,
    register,
    review,
    runs,
    sections,
    transform,
    validate,
)
from atlalign.cli.programs import PROGRAMS, run_program
from atlalign.cli.threads import share_cores
from atlalign.console import make_warnings_printable, say
from atlalign.declarations import interface
from atlalign.errors import InputError, quiet_pipe

_COMMANDS = (
    sections,
    locate,
    register,
    review,
    transform,
    count,
    validate,
    import_keras,
    merge,
    export,
    runs,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1 after a user error, 130 after Ctrl-C.

    A closed pipe ends the process with status 141.
    """
    share_cores()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in PROGRAMS:
        return run_program(arguments[0], arguments[1:])
    make_warnings_printable()
    try:
        with quiet_pipe(), interface("flags"):
            options = _parser().parse_args(arguments)
            options.arguments = [*arguments[1:]]
            options.run(options)
    except InputError as error:
        say(f"error: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say("interrupted: finished results are kept", error=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlalign", description="Register brain sections to an atlas, and train registration networks."
    )
    parser.add_argument("--version", action="version", version=f"atlalign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    for name, program in PROGRAMS.items():
        commands.add_parser(
            name, help=f"{program.__doc__} (KEY=VALUE; see `atlalign {name} --help`)", add_help=False
        )
    return parser
