"""Does what the reader of a tutorial does: saves the files that it shows, and types its commands."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

from atlalign.cli import main
from atlalign.cli.programs import PROGRAMS

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"(?:# @package \S+\n)?# (\S+\.(?:py|yaml))\n")


def follow(name: str, *, skip: tuple[str, ...] = (), extra: tuple[str, ...] = ()) -> None:
    """Follow a tutorial in the current folder.

    Args:
        name: Of its page.
        skip: Words; commands with one of them are not run.
        extra: Arguments that are added to every training.
    """
    names: dict[str, object] = {"__name__": name}
    for language, block in _BLOCK.findall((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
        if named := _NAMED.match(block):
            path = Path(named[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
        elif language == "python":
            exec(compile(block, name, "exec"), names)
        elif language == "sh":
            for line in block.splitlines():
                if line and not line.startswith("#") and not set(skip) & set(line.split()):
                    typed(line, extra)


def typed(line: str, extra: tuple[str, ...] = ()) -> None:
    """Run a command of the shell; those of atlalign that need no process of their own run in this one."""
    words = shlex.split(line, comments=True)
    variables = dict(
        word.split("=", 1) for word in takewhile(lambda word: word.split("=")[0].isupper(), words)
    )
    command, *arguments = words[len(variables) :]
    if command in ("pip", "tensorboard"):
        return
    if command == "python" and arguments[0].endswith(".py"):
        runpy.run_path(arguments[0], run_name="__main__")
    elif command == "atlalign" and arguments[0] not in PROGRAMS:
        assert main(arguments) == 0, line
    elif command == "atlalign":
        added = extra if arguments[0] == "train" and "--cfg" not in arguments else ()
        program = [sys.executable, "-m", "atlalign", *arguments, *added]
        path = os.pathsep.join(
            filter(None, [variables.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH")])
        )
        environment = {**os.environ, **variables, "PYTHONPATH": path}
        done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    else:
        raise AssertionError(f"no command of a tutorial: {line}")
