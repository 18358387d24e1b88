"""Kills, two runs at once, and disks that refuse: the contents in the end are those of a run that nobody disturbed."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import h5py
import imagecodecs
import numpy as np
import torch

ROOT = Path(__file__).parents[2]
RIGHT, SENTENCE, TRACEBACK, WRONG = "right", "one sentence", "traceback", "wrong, with pass"
_SECONDS = 600
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_TINY = ("data.n_sections=4", "data.fields_per_section=4", "data.batch_size=4", "data.image_shape=[32,48]")


class Program(NamedTuple):
    """A command, and what of its results must be the same whatever happened to it.

    Attributes:
        command: The command that writes into a folder.
        contents: Returns the comparable results in that folder by name.
    """

    command: Callable[[Path], list[str]]
    contents: Callable[[Path], dict[str, object]]


def programs(folder: Path) -> dict[str, Program]:
    """Return the programs that are disturbed; their inputs are written into `folder`."""
    listing = _sections(folder)
    register = [
        "-m",
        "atlalign",
        "register",
        str(listing),
        "--atlas",
        "phantom",
        "--device",
        "cpu",
        "--workers",
        "2",
    ]
    generate = ["generate.py", "data.image_shape=[48,64]", "atlas.spacing_um=1100", "deformation=smooth"]
    generate += ["source.n_sections=12", "per_original=6", "workers=2"]
    train = [
        "train.py",
        "model=local",
        "trainer.max_epochs=6",
        "trainer.accelerator=cpu",
        "ckpt_path=auto",
        *_TINY,
    ]
    train += [f"data.folder={folder}", "callbacks.last.every_n_minutes=0.01"]
    return {
        "register": Program(lambda out: [*register, "--out", str(out / "out")], _of_register),
        "generate": Program(lambda out: [*generate, f"out={out / 'out.h5'}"], _of_generate),
        "train": Program(lambda out: [*train, f"hydra.run.dir={out / 'run'}"], _of_train),
    }


def _sections(folder: Path, number: int = 6) -> Path:
    from atlalign.atlas.atlas import phantom_atlas

    atlas = phantom_atlas(image_shape=(192, 288), spacing_um=1200)
    rows = ["filename,p"]
    for i, position in enumerate(np.linspace(3000, 10000, number).round().astype(int)):
        image = (atlas.section(int(position))[0] * 255).byte().numpy()
        (folder / f"s{i}.png").write_bytes(imagecodecs.png_encode(image))
        rows.append(f"s{i}.png,{position}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


# --- results ----------------------------------------------------------------------------------------------------------


def _of_register(folder: Path) -> dict[str, object]:
    out = folder / "out"
    contents: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if _is_result(path)
    }
    with (out / "registrations.csv").open(encoding="utf-8") as file:
        rows = [
            {name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]
    return {**contents, "table": rows, **_left_over(out)}


def _is_result(path: Path) -> bool:
    """Return whether a file is the same in any folder and at any time; the page shows what other files hold."""
    varying = ("transform.json", "registrations.csv", "calls.json", "index.html")
    return path.is_file() and path.name not in varying


def _of_generate(folder: Path) -> dict[str, object]:
    with h5py.File(folder / "out.h5") as file:
        arrays: dict[str, object] = {name: file[name][:].tobytes() for name in file}
    return {**arrays, **_left_over(folder)}


def _of_train(folder: Path) -> dict[str, object]:
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint["state_dict"].items()}
    return {**weights, "step": checkpoint["global_step"], **_left_over(folder)}


def _left_over(folder: Path) -> dict[str, object]:
    hidden = (path.name for path in folder.rglob(".*") if path.name.startswith((".unfinished", ".out", ".s")))
    return {"left over": sorted(hidden)}


# --- disturbances -----------------------------------------------------------------------------------------------------


def start(program: Program, folder: Path, limit_bytes: int = 0) -> "subprocess.Popen[str]":
    """Start a program; with a limit on the size of each file that it writes, if one is given."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *program.command(folder)],
        cwd=ROOT, env=_ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=limit if limit_bytes else None,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return the exit status and what was printed."""
    try:
        printed, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, "no end"
    return process.returncode, printed


def compare(program: Program, folder: Path, whole: dict[str, object]) -> tuple[str, str]:
    """Return the verdict on the results in a folder, and why."""
    try:
        found = program.contents(folder)
    except OSError as error:
        return TRACEBACK, f"no results: {error}"
    different = sorted(name for name in found | whole if found.get(name) != whole.get(name))
    return (WRONG, f"differ: {', '.join(different)}") if different else (RIGHT, "")


def kill_and_resume(
    program: Program, folder: Path, whole: dict[str, object], after_s: float
) -> tuple[str, str]:
    """Kill a run and all of its processes after some time, give the same command again, and compare."""
    process = start(program, folder)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, printed = finish(start(program, folder))
    if status and "already exists" not in printed:  # the kill came after the end
        return TRACEBACK, printed[-2000:]
    return compare(program, folder, whole)


def two_at_once(program: Program, folder: Path, whole: dict[str, object], later_s: float) -> tuple[str, str]:
    """Start a second run into the same folder a little later, then a third, and compare."""
    first = start(program, folder)
    time.sleep(later_s)
    second = start(program, folder)
    answers = [finish(process) for process in (first, second)]
    for status, printed in answers:
        if "Traceback" in printed or (status and "error: " not in printed):
            return TRACEBACK, printed[-2000:]
    if all(status for status, _ in answers):
        return TRACEBACK, "both failed: " + answers[1][1][-1000:]
    finish(start(program, folder))
    return compare(program, folder, whole)


def without_space(program: Program, folder: Path, whole: dict[str, object], share: float) -> tuple[str, str]:
    """Run on a disk of too few bytes, or with a limit on files' sizes, then where there is room, and compare."""
    size = int(share * 2**20)
    with _small_disk(folder, size) as is_small:
        status, printed = finish(start(program, folder, 0 if is_small else size))
        if "Traceback" in printed:
            return TRACEBACK, printed[-2000:]
        if status and "error: " not in printed:
            return TRACEBACK, f"status {status} without a sentence: {printed[-1000:]}"
        kept = folder.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
    status, printed = finish(start(program, kept))
    if status and "already exists" not in printed:
        return TRACEBACK, printed[-2000:]
    return compare(program, kept, whole)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a small disk on `folder`; yield False where the system does not let us."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    is_mounted = (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=False)


def disturb(
    name: str, how: str, number: int, folder: Path, report: Callable[[str, str, str], None], seed: int = 0
) -> None:
    """Disturb a program so many times at random moments, and report each verdict."""
    folder.mkdir()
    program = programs(folder)[name]
    begun = time.monotonic()
    status, printed = finish(start(program, folder / "whole"))
    assert status == 0, (status, printed)
    lasts_s = time.monotonic() - begun
    whole = program.contents(folder / "whole")
    draw = random.Random(f"{seed} {name} {how}")
    for i in range(number):
        place = folder / f"run{i}"
        if how == "killed":
            verdict, said = kill_and_resume(program, place, whole, draw.uniform(0.3, 1) * lasts_s)
        elif how == "two at once":
            verdict, said = two_at_once(program, place, whole, draw.uniform(0, 0.5))
        else:
            verdict, said = without_space(program, place, whole, draw.uniform(0.02, 1.5))
        report(f"{name}, {how}", verdict, said)
        shutil.rmtree(place, ignore_errors=True)
