"""One training job in several processes on this machine.

Lightning would start the processes by running the script's command line again. Under a Hydra multirun, that is the
command line of the whole sweep, and Lightning's environment variables would reach the next job. Here the processes of
each job start with the job's own configuration and end with it. If a cluster or torchrun has started the processes,
this module starts none.
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
    """Return whether this is the first, or the only, process that a cluster or torchrun has started."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def owns_folder() -> bool:
    """Return whether this process's run holds the lock of its folder.

    Only the first process takes the lock. The other processes connect to it afterwards: if another run already works in
    the folder, the first process ends before they connect.
    """
    if is_first_process():
        return True
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def n_processes_to_start(trainer: Any) -> int:
    """Return the number of processes that must be started for a Lightning trainer; 0 if it trains in this process."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or environment.creates_processes_externally:
        return 0
    if trainer.num_nodes > 1:
        raise InputError(
            f"trainer.num_nodes={trainer.num_nodes}: start processes on several machines with SLURM's srun or "
            "torchrun and trainer=cluster"
        )
    return int(trainer.num_devices)


def run_in_processes(function: Callable[..., object], arguments: Sequence[Any], n_processes: int) -> None:
    """Run `function(*arguments)` in new processes, which find their rank in the environment.

    When this process receives SIGINT or SIGTERM, it sends SIGTERM to the others and waits until they end; a second
    SIGINT kills them.

    Raises:
        Exception: The error of the first process that failed, without its causes; the other processes are terminated.
        SystemExit: If a process exited, for example with `atlalign.training.resume.Stopped`.
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
        # A file, since a pipe would block this process until somebody reads it. Only the first error is kept.
        with suppress(FileExistsError), error_file.open("xb") as file:
            file.write(content)
        raise SystemExit(1) from error
    # Threads of the process group must not outlive the interpreter: this sometimes aborts the process.
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _pickled(error: Exception, note: str) -> bytes:
    """Return the pickled error with a note; if pickling damages it, an error with the same message replaces it."""
    if (message := sentence(error)) and not isinstance(error, DivergedError):
        error = InputError(message)
    error.add_note(note)
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # unpickling a user's class may raise anything
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(note)
        content = pickle.dumps(plain)
    return content


@contextmanager
def _handing_on_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward stop signals to the processes and yield the list of signals received so far."""
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
    """Return a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
