"""Merge a global and a local network into one."""

import argparse

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `merge`."""
    command = commands.add_parser(
        "merge",
        help="merge a global and a local network into one",
        description="Merge two networks into one that registers globally, then locally.",
    )
    command.add_argument(
        "global_path", metavar="GLOBAL", help="model file or checkpoint of the global network"
    )
    command.add_argument("local_path", metavar="LOCAL", help="model file or checkpoint of the local network")
    command.add_argument("--out", metavar="PATH", required=True, help="the model file to write")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.models import common_origin, merge_global_local, read_origin, save_model

    merged = merge_global_local(options.global_path, options.local_path)
    origin = common_origin(read_origin(options.global_path), read_origin(options.local_path))
    save_model(merged, options.out, origin=origin)
    say(f"{options.out}: {type(merged).__name__}")
