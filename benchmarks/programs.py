"""Rows for whole programs: `atlalign register`, start-up times, and the memory of training."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from atlalign import models
from atlalign.atlas.phantom import phantom_volume
from atlalign.cli import main as atlalign
from atlalign.networks import LocalUNet, Registration
from benchmarks.loading import data_module
from benchmarks.measure import (
    Measured,
    NotMeasuredError,
    Size,
    Turns,
    in_turns,
    scratch,
    seconds,
    turn_numbers,
)
from benchmarks.networks import random_batch, stepper

_ROOT = Path(__file__).parent.parent


# --- atlalign register ------------------------------------------------------------------------------------------------


def registering(size: Size) -> Measured:
    """Compare a batch of sections, from images to folders of results, with the passes of the shipped network alone."""
    return _against_network([], size)


def registering_large(size: Size) -> Measured:
    """Compare the same for a local network with images four times as large."""
    with scratch() as folder:
        return _against_network(["--model", str(_save_network(folder / "local.pt", size))], size)


def _against_network(options: list[str], size: Size) -> Measured:
    turns = Turns([], [])
    with scratch() as folder:
        arguments = ["register", *_sections(folder / "sections", size), *options, "--device", "cpu"]
        for turn in turn_numbers(size):
            command = [*arguments, "--out", str(folder / f"out{turn}")]
            with _watched() as passes:
                turns.ours.append(seconds(lambda: _run_cli(command)))  # noqa: B023
            if not passes:
                raise RuntimeError(f"atlalign {' '.join(command)} ran no network, so there is no reference")
            with torch.inference_mode():
                turns.other.append(seconds(lambda: [network(*pair) for network, *pair in passes]))
    networks = {id(network) for network, *_ in passes}
    note = f"{min(turns.ours):.3g} and {min(turns.other):.3g} s; passes: {len(passes)}, networks: {len(networks)}"
    return Measured(turns.times_as_long(), turns, note)


def _run_cli(arguments: list[str]) -> None:
    status = atlalign(arguments)
    if status:
        raise RuntimeError(f"atlalign {' '.join(arguments)} exited with status {status}")


def _save_network(path: Path, size: Size) -> Path:
    network = LocalUNet()
    with torch.no_grad():
        # Displacements as large as those of a trained network, because otherwise there would be no inverse.
        network.to_dvf.weight.mul_(0.01)
    return models.save_model(network, path, origin=models.ModelOrigin(image_shape=size.shape))


def _sections(folder: Path, size: Size) -> list[str]:
    """Return the sections and their reference: real ones if the environment has them."""
    real = os.environ.get("ATLALIGN_TEST_DATA")
    if real:
        return [f"{real}/sections", "--atlas", f"{real}/allen_ccf_25um.h5"]
    write_sections(folder, size)
    return [str(folder), "--atlas", "phantom"]


def write_sections(folder: Path, size: Size) -> None:
    """Write sections of another phantom, dark on a bright slide, and the list of their positions."""
    import SimpleITK

    folder.mkdir()
    images, _ = phantom_volume(shape=(size.sections + 4, *size.section_shape), seed=1)
    positions = [round((index + 0.5) / len(images) * 13200) for index in range(len(images))]
    lines = ["filename,p"]
    for number, (image, position) in enumerate([*zip(images, positions, strict=True)][2:-2]):
        lines.append(f"{number:03}.png,{position}")
        colored = SimpleITK.GetImageFromArray(np.stack([255 - image] * 3, -1), isVector=True)
        SimpleITK.WriteImage(colored, str(folder / f"{number:03}.png"))
    (folder / "sections.csv").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def _watched() -> Iterator[list[tuple[Any, ...]]]:
    """Collect each pass of a network with its images, and silence the output.

    PyTorch itself reports the passes, so no name inside the package, which may change, is patched.
    """
    passes: list[tuple[Any, ...]] = []
    running: list[nn.Module] = []

    def enter(module: nn.Module, images: tuple[Any, ...]) -> None:
        running.append(module)

    def leave(module: nn.Module, images: tuple[Any, ...], output: Any) -> None:
        running.pop()
        if not running and isinstance(output, Registration):  # nested parts of a network also report passes
            passes.append((module, *images))

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            yield passes
        finally:
            for hook in hooks:
                hook.remove()


# --- start-up
# ----------------------------------------------------------------------------------------------------------


def starting_cli(size: Size) -> Measured:
    """Compare `atlalign --help` with a bare interpreter."""
    script = Path(sys.executable).with_name("atlalign")
    return _longer([sys.executable, str(script), "--help"], [sys.executable, "-c", ""], size)


def starting_training(size: Size) -> Measured:
    """Compare `python train.py --help` with an interpreter that imports torch."""
    script = _ROOT / "train.py"
    return _longer([sys.executable, str(script), "--help"], [sys.executable, "-c", "import torch"], size)


def _longer(ours: Sequence[str], other: Sequence[str], size: Size) -> Measured:
    def run(command: Sequence[str]) -> None:
        subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)

    turns = in_turns(lambda: run(ours), lambda: run(other), size, block_s=0)
    return Measured(turns.longer_by(), turns, " and ".join(f"{min(times):.2f} s" for times in turns))


# --- memory -----------------------------------------------------------------------------------------------------------

_IMPORTS = """
import hydra, matplotlib.pyplot, pytorch_lightning, tensorboard, torch, atlalign.training.callbacks
import atlalign.data.datamodule, atlalign.plots, atlalign.training.module, atlalign.training.run
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")][0])
"""


def memory(size: Size) -> Measured:
    """Compare the peak memory of a training run, including its two workers, with the memory that it cannot avoid.

    That is the resident size after the imports, the atlas, and the tensors that a step keeps for its gradients. Memory
    shared by processes is counted once.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        raise NotMeasuredError("needs Linux, where /proc reports shared memory")
    with scratch() as folder:
        data = data_module(folder, size)
        volume = np.random.default_rng(0).integers(256, size=(size.planes, *size.shape), dtype=np.uint8)
        np.save(folder / "atlas.npy", volume)
        step = kept_bytes(size)
        command = [
            sys.executable, str(_ROOT / "train.py"), "data=h5", f"data.path={data.path}", "atlas=file",
            f"atlas.path={folder / 'atlas.npy'}", f"atlas.spacing_um={13200 / size.planes:g}",
            f"data.image_shape=[{size.shape[0]},{size.shape[1]}]",
            "data.num_workers=2", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1",
            f"hydra.run.dir={folder / 'run'}",
        ]  # fmt: skip
        peak = _peak_bytes(command)
    imports = 1024 * int(subprocess.check_output([sys.executable, "-c", _IMPORTS], cwd=_ROOT))
    parts = {"imports": imports, "atlas": volume.nbytes, "kept by a step": step}
    note = f"{peak / 1e6:.0f} MB; " + ", ".join(f"{name} {part / 1e6:.0f}" for name, part in parts.items())
    turns = Turns([float(peak)], [float(sum(parts.values()))])
    return Measured(turns.times_as_long(), turns, note)


def kept_bytes(size: Size) -> int:
    """Return the bytes of the tensors that a training step keeps for its gradients, each counted once.

    The network is that of conf/model/local.yaml, which predicts both fields.
    """
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # kept alive, because another tensor could get its address
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network = LocalUNet(compute_inv=True).to(memory_format=torch.channels_last)
        stepper(network, random_batch(4, size.shape))()
    return sum(kept.values())


def _peak_bytes(command: Sequence[str]) -> int:
    """Run a command and return the peak memory of all its processes together."""
    peak = 0
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_proportional_bytes, _family(process.pid))))
            sleep(0.05)
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())
    return peak


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *chain.from_iterable(map(_family, children))]


def _proportional_bytes(pid: int) -> int:
    """Return the memory of a process, with shared memory divided among the processes that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
