"""What a run was: its command, code, versions and data, in run.json."""

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
from atlalign.io.files import written_whole
from atlalign.versions import versions


def describe_run() -> dict[str, Any]:
    """Return what is known of a run before it begins.

    `command`, given in `folder`, repeats it; it is None where the run was not started from the command line. `git`
    holds for the checkouts of the package and of `folder`, as far as they are ones, commit and whether tracked files
    have changed since.
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


def write_record(folder: Path, record: Mapping[str, Any], data: Mapping[str, str], *, resumed: bool) -> None:
    """Write `folder`/run.json: the record with GPUs and hashes of the data; a resumed run adds to that of the first.

    Args:
        folder: The run's folder.
        record: As `describe_run` returns it.
        data: Hashes by what they are of.
        resumed: Whether the run in this folder goes on.
    """
    path = folder / "run.json"
    # Asking for their names takes memory on a GPU: only a process that trains does.
    content: dict[str, Any] = {**record, "gpus": gpu_names(), "data": dict(data), "resumed": []}
    if resumed and path.exists():
        former = json.loads(path.read_text())
        earlier = former.pop("resumed")
        del content["resumed"]
        content = {**former, "resumed": [*earlier, content]}
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs; asking for them may occupy the first one."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _command() -> str | None:
    """Return the command line of a Hydra job; of one of a multirun, that of this job alone."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    paths = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if os.environ.get("PYTHONPATH") else []
    name = [] if hydra.job.config_name == "train" else ["--config-name", str(hydra.job.config_name)]
    places = [part for folder in folders for part in ("--config-dir", folder)]
    # Where a run lies is not part of it, and there lies one already.
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
    """Return what git says; None where there is no git, no checkout or no commit."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
