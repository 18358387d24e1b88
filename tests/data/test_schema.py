"""Every problem of a file is named, in one list, through the library and through `atlalign validate`."""

import os

import h5py
import numpy as np
import pytest

from atlalign.cli import main
from atlalign.data import schema
from atlalign.errors import InputError
from tests.conftest import SHAPE, write_h5


def problems(path) -> str:
    with pytest.raises(InputError) as error:
        schema.validate(path)
    return str(error.value)


def test_a_valid_file_is_summarized(h5_file, capsys):
    assert schema.validate(h5_file) == (6, SHAPE)
    assert main(["validate", str(h5_file)]) == 0
    assert f"valid: 6 samples of {SHAPE[0]}×{SHAPE[1]} px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("replace", "expected"),
    [
        ({"p": None}, "p: missing, expected (n,) integer"),
        ({"extra": np.zeros(3)}, "extra: not part of the contract"),
        ({"img": np.zeros((6, *SHAPE, 1), np.uint8)}, "img: expected shape (n, H, W), found (6, 32, 48, 1)"),
        ({"deltas_xy": np.zeros((6, *SHAPE, 3), np.float16)}, "deltas_xy: expected shape (n, H, W, 2)"),
        ({"img": np.zeros((6, *SHAPE), np.float32)}, "img: expected dtype uint8, found float32"),
        ({"p": np.zeros(6)}, "p: expected dtype integer, found float64"),
        ({"dataset_id": np.zeros(5, int)}, "lengths differ: img 6, deltas_xy 6"),
        ({"inv_deltas_xy": np.zeros((6, 32, 40, 2), np.float16)}, "image sizes differ: img 32×48"),
        (
            {"p": np.array([0, 100, -1, 13200, 13201, 5])},
            "p: expected positions in [0, 13200] µm, found -1, 13201",
        ),
    ],
)
def test_each_problem_of_arrays(tmp_path, replace, expected):
    assert expected in problems(write_h5(tmp_path / "bad.h5", **replace))


@pytest.mark.parametrize("name", ["deltas_xy", "inv_deltas_xy"])
def test_non_finite_displacements_are_named_by_sample(tmp_path, name):
    field = np.zeros((6, *SHAPE, 2), np.float16)
    field[1, 3, 4, 0], field[4, -1, -1, 1] = np.nan, np.inf
    assert f"{name}: expected finite values, found NaN or infinity in samples 1, 4" in problems(
        write_h5(tmp_path / "bad.h5", **{name: field})
    )


def test_all_problems_come_in_one_list(tmp_path, capsys):
    path = write_h5(tmp_path / "bad.h5", p=None, extra=np.zeros(1), img=np.zeros((6, *SHAPE), np.int16))
    assert main(["validate", str(path)]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n  - ") == 3
    assert "Traceback" not in shown


def test_a_file_without_samples(tmp_path):
    arrays = {"img": np.zeros((0, *SHAPE), np.uint8)}
    arrays |= {name: np.zeros((0, *SHAPE, 2), np.float16) for name in ("deltas_xy", "inv_deltas_xy")}
    arrays |= {name: np.zeros(0, int) for name in ("p", "image_id", "dataset_id")}
    assert "the file holds no samples" in problems(write_h5(tmp_path / "empty.h5", **arrays))


def test_files_that_are_no_h5_files(tmp_path, h5_file):
    assert "no such file" in problems(tmp_path / "absent.h5")
    assert "found a folder" in problems(tmp_path)
    (tmp_path / "empty.h5").touch()
    assert "the file is empty" in problems(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("img\n" * 100)
    assert "not an h5 file" in problems(tmp_path / "text.h5")
    (tmp_path / "cut.h5").write_bytes(h5_file.read_bytes()[:-1000])
    assert "truncated" in problems(tmp_path / "cut.h5")


def test_a_group_in_place_of_an_array(tmp_path):
    path = write_h5(tmp_path / "group.h5", img=None)
    with h5py.File(path, "a") as file:
        file.create_group("img")
    assert "img: expected an array, found a group" in problems(path)


def test_contents_are_read_once_a_file(h5_file, monkeypatch):
    reads = []
    true_check = schema.content_problems
    monkeypatch.setattr(schema, "content_problems", lambda *a: reads.append(a) or true_check(*a))
    schema.check_once(h5_file)
    schema.check_once(h5_file)
    assert len(reads) == 1
    schema.check_once(h5_file, extent_um=600)  # another atlas: positions must be looked at again
    assert len(reads) == 2
    os.utime(h5_file, ns=(1, 1))
    schema.check_once(h5_file)
    assert len(reads) == 3


def test_a_bad_file_is_refused_each_time(tmp_path):
    path = write_h5(tmp_path / "bad.h5", p=np.full(6, 20000))
    for _ in range(2):
        with pytest.raises(InputError, match="found 20000"):
            schema.check_once(path)


def test_a_file_may_name_where_its_atlas_ends(tmp_path, capsys):
    path = write_h5(tmp_path / "long.h5", p=np.full(6, 15000))
    assert main(["validate", str(path)]) == 1
    with h5py.File(path, "a") as file:
        file.attrs["extent_um"] = 15000.0
    assert main(["validate", str(path)]) == 0
    schema.check_once(path)
    assert main(["validate", str(path), "--extent-um", "14999"]) == 1
    assert "[0, 14999] µm" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"\[0, 13200\]"):
        schema.check_once(path, 13200.0)


def test_create_makes_a_valid_file(tmp_path):
    with schema.create(tmp_path / "new.h5", 3, SHAPE, seed=1, config={"a": [1, 2]}) as file:
        file["img"][1] = 200
        file["deltas_xy"][2] = 1.5
    assert schema.validate(tmp_path / "new.h5") == (3, SHAPE)
    with h5py.File(tmp_path / "new.h5") as file:
        assert dict(file.attrs) == {"seed": 1, "config": '{"a": [1, 2]}'}
        assert (file["img"][1] == 200).all()
        assert file["deltas_xy"].chunks == (1, *SHAPE, 2)


@pytest.mark.parametrize(
    ("deltas_px", "inverse_px", "doubt"),
    [
        (5, -5, None),
        (0.3, 0, None),
        (5, 0, "inv_deltas_xy: expected the inverse of deltas_xy, found another field in samples 0, 1, 2, 3"),
        (5, 5, "inv_deltas_xy: expected the inverse of deltas_xy, found another field in samples 0, 1, 2, 3"),
        (10_000, -5, "deltas_xy: most points are taken from outside of the image in samples 0, 1, 2, 3"),
    ],
)
def test_fields_that_make_no_sense_are_doubted(tmp_path, caplog, deltas_px, inverse_px, doubt):
    deltas, inverse = (np.full((4, *SHAPE, 2), px, np.float16) for px in (deltas_px, inverse_px))
    # As extrapolated outside of the points' convex hull, which is no reason to doubt.
    inverse[:, :4] += 119
    path = write_h5(tmp_path / "a.h5", n=4, deltas_xy=deltas, inv_deltas_xy=inverse)
    assert schema.validate(path).n_samples == 4
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {doubt}"] * (doubt is not None)


def test_one_image_alone_is_doubted(tmp_path, caplog):
    schema.validate(write_h5(tmp_path / "a.h5", image_id=np.full(6, 3)))
    assert "image_id: all samples are of image 3, so that none can validate" in caplog.text
