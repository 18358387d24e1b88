"""Files and folders are written atomically, locked by one process at a time, and identified by content."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.io import files
from atlalign.io.files import (
    LockedError,
    WriteError,
    file_name,
    fingerprint_of,
    folder_written_whole,
    lock,
    storable,
    written_whole,
)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        assert unfinished.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "half"
    with written_whole(path):
        pass
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def fail_halfway(path: Path, error: type[BaseException]) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_keeps_the_existing_file(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error):
        fail_halfway(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_system_errors_become_readable(tmp_path):
    with (
        pytest.raises(InputError, match="cannot be written: Is a directory"),
        written_whole(tmp_path) as file,
    ):
        file.write_text("")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"x\.txt cannot be written: "),
        written_whole(tmp_path / "file" / "x.txt"),
    ):
        pass


def write_folder(path: Path, content: str, error: BaseException | None = None) -> None:
    with folder_written_whole(path, replace=True) as unfinished:
        (unfinished / "part").mkdir()
        (unfinished / "part" / "file.txt").write_text(content)
        if error:
            raise error


def test_a_folder_appears_when_it_is_whole_and_replaces_the_former(tmp_path):
    path = tmp_path / "new" / "folder"
    write_folder(path, "old")
    for error in (RuntimeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_folder(path, "half", error)
        assert (path / "part" / "file.txt").read_text() == "old"
    (path / "more.txt").touch()
    write_folder(path, "new")
    assert [file.relative_to(path.parent).as_posix() for file in sorted(path.parent.rglob("*.txt"))] == [
        "folder/part/file.txt"
    ]
    assert (path / "part" / "file.txt").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "own.txt").touch()
    with pytest.raises(WriteError, match="out cannot be written"), folder_written_whole(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "own.txt"]


def test_a_file_refused_in_an_unfinished_folder_is_named_by_its_final_place(tmp_path):
    def write() -> None:
        with folder_written_whole(tmp_path / "out") as folder:
            (folder / "taken").touch()
            with written_whole(folder / "taken" / "a.csv"):
                pass

    with pytest.raises(WriteError) as error:
        write()
    assert str(tmp_path / "out" / "taken" / "a.csv") in str(error.value)
    assert "unfinished" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_folder_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_folder(elsewhere, "theirs")
    (tmp_path / "link").symlink_to(elsewhere)
    write_folder(tmp_path / "link", "ours")
    assert (elsewhere / "part" / "file.txt").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "link"}


def test_data_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Each file and each folder with new names in it is synced before the one that names it."""
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert not (tmp_path / "out").exists() or synced[-1] == tmp_path.name  # no result yet
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with written_whole(tmp_path / "file.txt") as unfinished:
        unfinished.write_text("content")
    assert [synced[0].startswith(".unfinished"), *synced[1:]] == [True, tmp_path.name]
    synced.clear()
    write_folder(tmp_path / "out", "content")
    assert synced[:2] == ["part", "file.txt"]
    assert synced[2].startswith(".unfinished")
    assert synced[3:] == [tmp_path.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_late_disk_error_leaves_nothing(number, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError) as caught, written_whole(tmp_path / "file.txt") as unfinished:
        unfinished.write_text("content")
    assert caught.value.errno == number
    with pytest.raises(WriteError, match=f"out cannot be written: {os.strerror(number)}"):
        write_folder(tmp_path / "out", "content")
    assert not list(tmp_path.iterdir())


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    here, there = files._machine(), "deadbeef"
    ended, running = ended_process(), os.getppid()
    names = [
        f".unfinished-{machine}-{number}-0-a" for machine in (here, there) for number in (ended, running)
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    (tmp_path / ".unfinished").touch()  # anyone's
    with written_whole(tmp_path / "file.txt") as unfinished:
        unfinished.touch()
    left = {path.name for path in tmp_path.iterdir()} - {"file.txt"}
    assert left == {*names[1:], ".unfinished"}
    os.utime(tmp_path / names[2], (0, 0))
    files._remove_leftovers.cache_clear()
    files._remove_leftovers(tmp_path)
    assert not (tmp_path / names[2]).exists()
    assert (tmp_path / names[3]).exists()


@pytest.mark.parametrize("letter", ["a", "µ", "脳"])
def test_a_long_name_is_written(letter, tmp_path):
    """Names have 255 bytes at most, temporary ones too."""
    path = tmp_path / f"{letter * (250 // len(letter.encode()))}.txt"
    with written_whole(path) as unfinished:
        unfinished.write_text("content")
    with lock(path):
        assert [path.name] == [found.name for found in tmp_path.glob("[!.]*")]
    assert path.read_text() == "content"


def test_each_text_gets_its_own_file_name(tmp_path):
    texts = [
        "a" * 245,
        "a" * 246,
        "µ" * 150,
        "µ" * 151,
        "m_\udcfc",
        "m_\udcfd",
        "\ud800",
        "..",
        ".",
        "",
        "a b",
    ]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert len(name.encode()) <= 200
        assert not name.startswith(".")
        (tmp_path / name).touch()
    assert (file_name("m_\udcfc"), file_name("a b.png")) == ("m_%FC", "a b.png")
    assert storable("m_\udcfc µ") == "m_%FC µ"


# --- locks ------------------------------------------------------------------------------------------------------------


def hold(path: Path) -> None:
    with lock(path):
        pass


def test_a_lock_has_one_holder_who_is_named(tmp_path):
    path = tmp_path / "new" / "out.h5"
    with lock(path):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            hold(path)
        hold(path.with_name("other.h5"))
    hold(path)
    assert not list(path.parent.iterdir())


def test_whoever_waits_for_a_lock_gets_it(tmp_path):
    order = []

    def waits() -> None:
        with lock(tmp_path / "out", wait=True):
            order.append("second")

    thread = threading.Thread(target=waits)
    with lock(tmp_path / "out"):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def killed_holder(path: Path, host: str = "", lease_s: float = 60) -> None:
    """Let a process end that holds a lock, as a killed one does."""
    code = f"""
import os, socket, sys
socket.gethostname = lambda name={host or socket.gethostname()!r}: name
from pathlib import Path
from atlalign.io import files
files._LEASE_S = {lease_s}
with files.lock(Path(sys.argv[1])):
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert len(list(path.parent.iterdir())) == 2


def test_lock_of_a_killed_process_is_released(tmp_path):
    killed_holder(tmp_path / "out")
    start = time.monotonic()
    hold(tmp_path / "out")
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_that_of_another_machine_ends_a_while_after_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LEASE_S", 0.5)
    killed_holder(tmp_path / "out", host="other", lease_s=0.5)
    start = time.monotonic()
    hold(tmp_path / "out")
    assert time.monotonic() - start > 0.5


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_lock_holds_where_the_file_system_has_none(number, tmp_path, monkeypatch):
    def refuse(*_: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    monkeypatch.setattr(files, "_LEASE_S", 0.5)
    with lock(tmp_path / "out"), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        hold(tmp_path / "out")
    hold(tmp_path / "out")


def test_a_folder_that_takes_no_lock_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file is not a folder"):
        hold(tmp_path / "file" / "out")


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder that takes no files, even from root"
)
def test_a_lock_that_cannot_be_created_is_not_held_by_another():
    with pytest.raises(WriteError, match="out cannot be written"):
        hold(Path("/proc/out"))


# --- content ----------------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_types_and_shapes():
    values = np.arange(6, dtype=np.int32)
    others = (values.reshape(2, 3), values.view(np.uint32), values[::-1], (0, 1, 2, 3, 4, 5))
    assert len({fingerprint_of(value) for value in (values, *others)}) == 5
    assert fingerprint_of(values.copy(), None, (1.5, "a")) == fingerprint_of(values, None, (1.5, "a"))
    assert fingerprint_of(values, None) != fingerprint_of(None, values)
    strided = np.arange(12, dtype=np.int32)[::2] // 2
    assert fingerprint_of(strided) == fingerprint_of(values)
