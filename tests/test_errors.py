"""Values that are not numbers, or not allowed ones, give a sentence with the name of the setting."""

import errno
import math
import os
import threading

import numpy as np
import pytest

from atlalign.errors import (
    LARGEST_BYTES,
    OF_NETWORK,
    InputError,
    check_finite_numbers,
    check_numbers,
    check_size,
    checked_shape,
    readable_errors,
    reason_of,
    sentence,
    system_refusal,
    warnings_from_threads,
)


@pytest.mark.parametrize(
    ("value", "least", "sentence"),
    [
        ("1", 0.0, "a.b: expected a number, got 1"),
        (True, 0, "a.b: expected a whole number, got True"),
        (1.5, 0, "a.b: expected a whole number, got 1.5"),
        (0, 1, "a.b: expected at least 1, got 0"),
        (np.float32(-0.5), 0.0, "a.b: expected at least 0, got -0.5"),
        (math.inf, 0.0, "a.b: expected a finite number, got inf"),
        (-math.inf, -math.inf, "a.b: expected a finite number, got -inf"),
        (math.nan, -math.inf, "a.b: expected a number, got nan"),
    ],
)
def test_invalid_numbers_are_reported(value, least, sentence):
    with pytest.raises(InputError) as error:
        check_finite_numbers({"a.b": value, "other": "x"}, {"a.b": least})
    assert str(error.value) == sentence


def test_only_finite_numbers_are_asked_to_be_finite():
    check_numbers({"a": math.inf, "b": np.int64(2)}, {"a": 0.0, "b": 2})
    check_finite_numbers({"a": -1e300, "b": 10**400}, {"a": -math.inf, "b": 0})


def test_the_largest_array_is_allowed_and_a_larger_one_names_its_size_and_the_limit():
    check_size("a.png", (LARGEST_BYTES // 8, 2), 4)
    with pytest.raises(InputError) as error:
        check_size("a.png", np.array([100_000, 100_000], np.uint32))  # whose product overflows
    assert str(error.value).startswith("a.png: expected at most 8 GiB")
    assert "100000×100000" in str(error.value)
    with pytest.raises(InputError, match="size: expected at most 8 GiB"):
        check_size("size", (10**400, 1), 0.5)


def test_a_grid_that_no_network_can_hold_is_refused():
    with pytest.raises(InputError, match=r"data.image_shape: expected at most 8 GiB in memory"):
        checked_shape("data.image_shape", [20_000, 15_000], bytes_a_pixel=OF_NETWORK)


def test_the_grid_of_a_large_slide_can_have_a_field_though_no_network_can_hold_it():
    assert checked_shape("new_shape", [20_000, 15_000]) == (20_000, 15_000)
    with pytest.raises(InputError, match=r"new_shape: expected at most 8 GiB in memory"):
        checked_shape("new_shape", [100_000, 100_000])


def test_a_refusal_of_the_system_names_the_place_and_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.h5"))
    assert system_refusal(full).startswith(f"{tmp_path / 'a.h5'} cannot be used: No space left on device: ")
    assert system_refusal(full, tmp_path / "b.h5", action="written").startswith(
        f"{tmp_path / 'b.h5'} cannot be written: "
    )
    below = NotADirectoryError(errno.ENOTDIR, "Not a directory", str(tmp_path / "file" / "a.h5"))
    assert system_refusal(below).endswith(f"{tmp_path / 'file'} is not a folder")
    assert system_refusal(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert "No space left" in (sentence(full) or "")


def test_a_folder_that_cannot_be_created_ends_a_program_with_a_sentence(capsys):
    # Hydra raises this for a hydra.run.dir that cannot be created.
    refused = FileNotFoundError(2, "No such file or directory", "/proc/x")
    with pytest.raises(SystemExit), readable_errors():
        raise refused
    said = capsys.readouterr().err
    assert said.startswith("error: /proc/x cannot be used: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "is_full"), [(errno.ENOSPC, True), (errno.EACCES, False)])
def test_only_a_full_disk_asks_for_room(number, is_full):
    said = sentence(OSError(number, os.strerror(number), "a.csv"))
    assert said is not None
    assert said.startswith("a.csv cannot be used: ")
    assert ("another place" in said) == is_full


def test_a_thread_that_the_disk_refuses_gives_one_line(capsys):
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with warnings_from_threads():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert os.strerror(errno.ENOSPC) in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (RuntimeError("  \n"), "RuntimeError"),
        (EOFError(), "EOFError"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_an_error_without_a_message_is_named_by_its_kind(error, expected):
    assert reason_of(error) == expected
