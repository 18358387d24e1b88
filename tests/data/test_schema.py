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


def test_files_that_are_not_h5(tmp_path, h5_file):
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
        (10_000, -5, "deltas_xy: most displacements point outside the image in samples 0, 1, 2, 3"),
    ],
)
def test_implausible_fields_give_a_warning(tmp_path, caplog, deltas_px, inverse_px, doubt):
    deltas, inverse = (np.full((4, *SHAPE, 2), px, np.float16) for px in (deltas_px, inverse_px))
    # As extrapolated outside of the points' convex hull, which is no reason to doubt.
    inverse[:, :4] += 119
    path = write_h5(tmp_path / "a.h5", n=4, deltas_xy=deltas, inv_deltas_xy=inverse)
    assert schema.validate(path).n_samples == 4
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {doubt}"] * (doubt is not None)


def test_single_image_gives_a_warning(tmp_path, caplog):
    schema.validate(write_h5(tmp_path / "a.h5", image_id=np.full(6, 3)))
    assert "image_id: all samples are of image 3" in caplog.text


@pytest.mark.parametrize("name", ["img", "deltas_xy", "inv_deltas_xy"])
def test_samples_that_cannot_be_read_are_named(name, tmp_path):
    path = tmp_path / "bad.h5"
    with schema.create(path, 4, SHAPE) as file:
        for array in ("img", "deltas_xy", "inv_deltas_xy"):
            file[array][:] = 1
        rest = (0,) * (file[name].ndim - 1)
        file[name].id.write_direct_chunk((2, *rest), b"no gzip at all")
    assert f"{name}: cannot be read, the file is damaged in sample 2" in problems(path)


def virtual(file: h5py.File, other: h5py.File) -> None:
    layout = h5py.VirtualLayout((6, *SHAPE), "u1")
    layout[:] = h5py.VirtualSource(other["img"])
    file.create_virtual_dataset("img", layout)


def external_link(file: h5py.File, other: h5py.File) -> None:
    file["img"] = h5py.ExternalLink(other.filename, "img")


def external_storage(file: h5py.File, other: h5py.File) -> None:
    file.create_dataset("img", (6, *SHAPE), "u1", external=[(f"{other.filename}.raw", 0, 6 * 32 * 48)])


@pytest.mark.parametrize("store", [virtual, external_link, external_storage], ids=lambda f: f.__name__)
def test_values_that_lie_in_another_file_are_refused(store, tmp_path):
    path = write_h5(tmp_path / "linked.h5", img=None)
    with h5py.File(write_h5(tmp_path / "other.h5")) as other, h5py.File(path, "a") as file:
        store(file, other)
    assert "expected values that lie in this file, found" in problems(path)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    path = write_h5(tmp_path / "linked.h5", img=None)
    with h5py.File(path, "a") as file:
        file["img"] = h5py.SoftLink("/nope")
    assert "img: expected an array, found a group" in problems(path)


def test_a_file_that_declares_terabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "huge.h5"
    schema.create(path, 10**7, (1000, 1000)).close()
    assert "img: expected 10,000,000,000,000 bytes" in problems(path)
    schema.create(tmp_path / "wide.h5", 1, (200_000, 200_000)).close()
    assert "img: expected at most 8 GiB in memory" in problems(tmp_path / "wide.h5")


@pytest.mark.parametrize(
    "value", ["abc", float("nan"), float("inf"), -1.0, 0.0, np.zeros(2), h5py.Empty("f")], ids=str
)
def test_extent_that_is_not_a_number_is_reported(value, tmp_path):
    path = write_h5(tmp_path / "named.h5")
    with h5py.File(path, "a") as file:
        file.attrs["extent_um"] = value
    for check in (schema.validate, schema.check_once):
        with pytest.raises(InputError, match=r"named.h5: attribute extent_um: expected"):
            check(path)


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_given_extent_must_be_a_number(value, h5_file, capsys):
    assert main(["validate", str(h5_file), f"--extent-um={value}"]) == 1
    assert capsys.readouterr().err.startswith("error: extent_um: expected ")


def test_ids_that_no_whole_number_of_the_program_holds_are_refused(tmp_path):
    ids = np.array([1, 2, 3, 4, 5, 2**63], np.uint64)
    assert f"image_id: expected at most {2**63 - 1}, found {2**63}" in problems(
        write_h5(tmp_path / "ids.h5", image_id=ids)
    )


def test_equal_samples_give_equal_bytes_and_nothing_is_lost(tmp_path):
    """LZF, whose hash table is not initialised, promises only the second."""
    values = np.random.default_rng(0).integers(0, 9, (2, *SHAPE)).astype(np.uint8)
    for name in ("one.h5", "other.h5"):
        with schema.create(tmp_path / name, 2, SHAPE) as file:
            file["img"][:] = values
            assert (file["img"].compression, file["img"].shuffle) == ("gzip", True)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as file:
        assert np.array_equal(file["img"], values)
