"""Landmarks are read from the files of spreadsheets and programs; errors name the faulty cell."""

import pytest

from atlalign.errors import InputError
from atlalign.evaluation.landmarks import read_landmarks

TABLE = "sample,reference_x,reference_y,moving_x,moving_y\n7,10.5,11,13,8\n7,20,12,-0.25,10\n1,15,15,18,14\n"


def in_german(table: str) -> str:
    return table.replace(",", ";").replace(".", ",")


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        in_german(TABLE),
        TABLE.replace(",", "\t"),
        "\ufeff" + TABLE,
        TABLE.title().replace(",", ", "),
        TABLE.replace("\n7", "\n7.0") + ",,,,\n\n",
        TABLE.replace("sample", "note,sample").replace("\n", "\nx,")[:-2],
    ],
)
def test_all_dialects_give_the_same_landmarks(tmp_path, table):
    (tmp_path / "t.csv").write_text(table)
    found = read_landmarks(tmp_path / "t.csv", scale=(2, 4))
    assert found.key == "sample"
    assert {sample: points.tolist() for sample, points in found.points.items()} == {
        7: [[21, 44, 26, 32], [40, 48, -0.5, 40]],
        1: [[30, 60, 36, 56]],
    }


def test_landmarks_belong_to_a_sample_or_a_section(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE.replace("sample", "Image_ID"))
    found = read_landmarks(tmp_path / "t.csv")
    assert found.key == "image_id"
    assert found.of(7, 3) is None
    reference, moving = found.of(3, 7)
    assert reference.tolist() == [[[10.5, 11], [20, 12]]]
    assert moving.tolist() == [[[13, 8], [-0.25, 10]]]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (TABLE.replace("10.5", "10,5"), "line 2: expected 5 cells, found 6"),
        (
            in_german(TABLE).replace("10,5", "1.010,5"),
            "line 2, reference_x: expected a number, found '1.010,5'",
        ),
        (TABLE.replace("\n1,", "\n1.5,"), "line 4, sample: expected a whole number, found '1.5'"),
        (TABLE.replace("\n1,", "\n,"), "line 4, sample: expected a number, found none"),
        (TABLE.replace("18", "inf"), "line 4, moving_x: expected a number, found 'inf'"),
        (TABLE.replace("moving_x", "moving_y"), "expected each column once"),
    ],
)
def test_table_errors_are_reported(tmp_path, table, sentence):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(InputError, match=rf"^landmarks: .*t\.csv.*{sentence}"):
        read_landmarks(tmp_path / "t.csv")
