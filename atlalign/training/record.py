"""The record of a run in run.json: its command, code, versions and data."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import atlalign
from atlalign.errors import InputError, describe
from atlalign.io.files import written_whole
from atlalign.versions import versions


def describe_run() -> dict[str, Any]:
    """Return the record of a run that is about to start.

    `command`, run in `folder`, repeats the run; it is None if the run was not started from the command line. `git`
    lists the checkouts of the package and of `folder`, if they are checkouts, with their commit and whether tracked
    files have changed since.
    """
    folders = {_checkout(path) for path in (Path(atlalign.__file__).parent, Path.cwd())} - {None}
    return {
        "command": _command(),
        "folder": str(Path.cwd()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": [_state(folder) for folder in sorted(filter(None, folders))],
        "versions": versions(),
        "machine": platform.platform(),
    }


def write_run_record(
    folder: Path, record: Mapping[str, Any], data: Mapping[str, str], *, resumed: bool
) -> None:
    """Write `folder`/run.json: the record with GPUs and hashes of the data; a resumed run appends its own record.

    Args:
        folder: The run's folder.
        record: The result of `describe_run`.
        data: Hashes by the name of the data.
        resumed: Whether this run resumes the run in the folder.
    """
    path = folder / "run.json"
    # Querying the names allocates memory on a GPU, so only a process that trains does it.
    content: dict[str, Any] = {**record, "gpus": gpu_names(), "data": dict(data), "resumed": []}
    if resumed and path.exists():
        former = _read_record(path)
        earlier = former.pop("resumed")
        del content["resumed"]
        content = {**former, "resumed": [*earlier, content]}
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        former = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: expected the record of a run, got {describe(error)}: delete the file"
        ) from error
    match former:
        case {"resumed": [*_]}:
            return dict(former)
    raise InputError(f"{path}: expected the record of a run with a list `resumed`: delete the file")


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs; the query may allocate memory on the first GPU."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _command() -> str | None:
    """Return the command line of a Hydra job; for a job of a multirun, the one that runs this job alone."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    paths = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if os.environ.get("PYTHONPATH") else []
    name = [] if hydra.job.config_name == "train" else ["--config-name", str(hydra.job.config_name)]
    places = [part for folder in folders for part in ("--config-dir", folder)]
    # The folder is not part of the command, because it already holds a run.
    overrides = [
        text
        for text in hydra.overrides.task
        if text.split("=")[0] not in ("run_dir", "ckpt_path", "+ckpt_path")
    ]
    return shlex.join([*paths, "python", "-m", "atlalign", str(hydra.job.name), *places, *name, *overrides])


def _checkout(folder: Path) -> str | None:
    return _git(folder, "rev-parse", "--show-toplevel")


def _state(folder: str) -> dict[str, Any]:
    changed = _git(Path(folder), "status", "--porcelain", "--untracked-files=no")
    return {"folder": folder, "commit": _git(Path(folder), "rev-parse", "HEAD"), "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None without git, a checkout or a commit."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
