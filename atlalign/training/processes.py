"""One training job in several processes of this machine.

Lightning would start them by running the script's command line once more, which under a Hydra multirun is that of the
whole sweep, and would leave its marks in this process' environment for the sweep's next job. Here each job's processes
are started with the job's own configuration, and are gone when it ends. Where a cluster or torchrun has started the
processes, none are started here.
"""

import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atlalign.errors import InputError, sentence
from atlalign.training.runs import DivergedError


def is_first_process() -> bool:
    """Return whether this process is the first, or the only one, of those that a cluster or torchrun has started."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def owns_folder() -> bool:
    """Return whether the run of this process holds the lock of its folder.

    Only the first process locks it. The others know that it did once they are connected to it: where another run is at
    work in the folder, the first process ends before that.
    """
    if is_first_process():
        return True
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def n_processes_to_start(trainer: Any) -> int:
    """Return how many processes a Lightning trainer would have to start for a run; 0 if it trains in this one."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or environment.creates_processes_externally:
        return 0
    if trainer.num_nodes > 1:
        raise InputError(
            f"trainer.num_nodes={trainer.num_nodes}: processes on several machines are started by SLURM's srun or by "
            "torchrun, see trainer=cluster"
        )
    return int(trainer.num_devices)


def run_in_processes(function: Callable[..., object], arguments: Sequence[Any], n_processes: int) -> None:
    """Run `function(*arguments)` in new processes, which know from the environment which one each is.

    When this process is asked to stop, by SIGINT or SIGTERM, it hands on a SIGTERM and waits for the others to end; a
    second SIGINT kills them.

    Raises:
        Exception: What was raised in the first process that failed, without its causes; the others are ended.
        SystemExit: If one ended the program, such as `atlalign.training.resume.Stopped`.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    with TemporaryDirectory() as folder:
        error_file = Path(folder) / "error"
        job = (function, tuple(arguments), n_processes, free_port(), error_file)
        started = start_processes(_run, job, n_processes, join=False)  # type: ignore[no-untyped-call]
        with _handing_on_signals(started.processes) as received:
            try:
                while not started.join():
                    pass
            except ProcessExitedException as ended:
                if error_file.exists():
                    raise pickle.loads(error_file.read_bytes()) from None
                if ended.exit_code > 0:
                    raise SystemExit(ended.exit_code) from None
                if not received:
                    raise
    if received:
        raise SystemExit(128 + received[0])


def _run(
    rank: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    n_processes: int,
    port: int,
    error_file: Path,
) -> None:
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": n_processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        function(*arguments)
    except Exception as error:
        content = _pickled(error, f"in process {rank}:\n{traceback.format_exc()}")
        # A file and no pipe, which would hold up this process until somebody reads; the first to fail is told of.
        with suppress(FileExistsError), error_file.open("xb") as file:
            file.write(content)
        raise SystemExit(1) from error
    # Threads of the group must not outlive the interpreter: now and then that aborts the process.
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _pickled(error: Exception, note: str) -> bytes:
    """Return the error with a note, or where it or its sentence would be lost on the way, one that says the same."""
    if (told := sentence(error)) and not isinstance(error, DivergedError):
        error = InputError(told)
    error.add_note(note)
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # a class may answer to being copied with anything
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(note)
        content = pickle.dumps(plain)
    return content


@contextmanager
def _handing_on_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Yield the list of the signals that came."""
    received: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        insisted = number == signal.SIGINT and bool(received)
        received.append(number)
        for process in processes:
            if process.is_alive():
                (process.kill if insisted else process.terminate)()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    former = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
