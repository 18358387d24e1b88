"""Check registered sections on a local page, and correct them."""

import argparse
import webbrowser
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from atlalign.cli import register
from atlalign.cli.calls import no_calls, read_calls, with_absolute_paths
from atlalign.console import say
from atlalign.errors import InputError

if TYPE_CHECKING:
    from atlalign.registration.recipe import Recipe
    from atlalign.review.registrar import Calls, Registrar


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `review`."""
    command = commands.add_parser(
        "review",
        help="check registered sections, and correct them",
        description="Open a page in the browser that shows the registered sections of a folder, to accept, reject or "
        "correct them. The page is served on this computer only. Over SSH, forward the port: "
        "ssh -L PORT:localhost:PORT HOST.",
    )
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, help="folder of results from `atlalign register`"
    )
    command.add_argument(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="folder of the images, if they were moved after registration",
    )
    command.add_argument("--port", type=int, default=0, help="port of the page (default: a free one)")
    command.add_argument(
        "--no-browser", action="store_true", help="print the address without opening a browser"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.review.folder import ReviewFolder
    from atlalign.review.server import Review, page_address, review_server

    folder = ReviewFolder(options.folder)
    server = review_server(Review(folder, registrar_of(options.folder, options.images)), options.port)
    address = page_address(server)
    say(f"review {options.folder} at {address}")
    say("press Ctrl-C to stop; every change is saved immediately")
    if not options.no_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def registrar_of(out: Path, images: Path | None = None) -> "Registrar":
    """Return the registrar of a folder of results, which repeats each section's registration by its latest call."""
    from atlalign.registration.batch import CALLS
    from atlalign.review.registrar import Calls, Registrar

    loader = cache(_loader)  # each call's recipe is loaded once
    known: tuple[tuple[int, ...] | None, Calls] = None, Calls()

    def read() -> Calls:
        """Return the calls so far; they are read again after `atlalign register` has added one."""
        nonlocal known
        state = _state(out / CALLS)
        if state != known[0]:
            known = state, _calls(out, images, loader)
        return known[1]

    return Registrar(out, read)


def _state(path: Path) -> tuple[int, ...]:
    """Return a value that changes when a file is written; empty for a missing file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _calls(
    out: Path, images: Path | None, loader: "Callable[[str, tuple[str, ...]], Callable[[], Recipe]]"
) -> "Calls":
    from atlalign.cli.slides import FOLDER
    from atlalign.io.files import file_name
    from atlalign.registration.jobs import find_jobs
    from atlalign.review.registrar import Asked, Calls
    from atlalign.sections.listing import LIST

    sections: dict[str, Asked] = {}
    problem = ""
    of_slides = [path for path in (out / FOLDER / LIST,) if path.is_file()]
    for call in read_calls(out):
        try:
            options = with_absolute_paths(_parsed(call.arguments), Path(call.folder))
            listed = options.reference is None
            jobs = find_jobs(
                options.inputs + (of_slides if options.position_um is None else []),
                images=images or options.images,
                position_um=options.position_um,
                listed=listed,
            )
        except InputError as error:
            problem = str(error)
            continue
        load = loader(call.folder, tuple(call.arguments))
        sections |= {file_name(job.name): Asked(job, load) for job in jobs}
    return Calls(sections, problem or ("" if sections else str(no_calls(out))))


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments of a call.

    Raises:
        InputError: If this version does not support them.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    register.add(parser.add_subparsers())
    try:
        return parser.parse_args(["register", *arguments])
    except (argparse.ArgumentError, SystemExit) as error:
        raise InputError(
            f"this version of atlalign does not support the call `register {' '.join(arguments)}`"
        ) from error


def _loader(folder: str, arguments: tuple[str, ...]) -> "Callable[[], Recipe]":
    """Return a function that loads the recipe of a call."""
    options = with_absolute_paths(_parsed(list(arguments)), Path(folder))
    return cache(lambda: register.recipe_of(options))
