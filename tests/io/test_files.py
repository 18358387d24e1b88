"""A file is there whole or not at all, and is known by its content."""

from pathlib import Path

import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.io.files import fingerprint_of, written_whole


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
def test_an_error_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error):
        fail_halfway(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_is_a_sentence(tmp_path):
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


def test_a_fingerprint_of_arrays_tells_types_and_shapes():
    values = np.arange(6, dtype=np.int32)
    others = (values.reshape(2, 3), values.view(np.uint32), values[::-1], (0, 1, 2, 3, 4, 5))
    assert len({fingerprint_of(value) for value in (values, *others)}) == 5
    assert fingerprint_of(values.copy(), None, (1.5, "a")) == fingerprint_of(values, None, (1.5, "a"))
    assert fingerprint_of(values, None) != fingerprint_of(None, values)
    strided = np.arange(12, dtype=np.int32)[::2] // 2
    assert fingerprint_of(strided) == fingerprint_of(values)
