import csv
import json

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.io.images import read_image
from atlalign.io.pieces import find_sections
from atlalign.io.slides import open_slide
from atlalign.registration.jobs import find_jobs
from atlalign.sections.options import SectionsOptions
from atlalign.sections.scattered import with_cells_joined
from atlalign.sections.separate import separate

PIXEL_UM = 20.0


class Says:
    """Says the same of all sections."""

    def __init__(self, turn: float | None, strangeness: float = 2.0) -> None:
        self.turn = lambda image, mask: turn
        self.strangeness = lambda image, mask: strangeness


GROUND, TISSUE = 230, 120
CENTRES = ((7, 5), (19, 5), (7, 13), (19, 13))  # mm


def section(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A section around 0, in mm: an ellipse with a notch above, a dark pair below, and a darker spot at its left."""
    tissue = np.where((x / 4.5) ** 2 + (y / 3) ** 2 < 1, TISSUE, GROUND)
    tissue[(np.abs(x) < 0.3) & (y < -1)] = GROUND
    tissue[np.hypot(np.abs(x) - 1.8, y - 1.2) < 0.8] = 70
    tissue[np.hypot(x + 3, y) < 0.4] = 20
    return tissue


def write_slide(path, turns=(0, 0, 0, 0), channels: int = 1, centres=CENTRES):
    """Write a slide of 26 × 18 mm; each section is turned clockwise, so that `turns` make it upright."""
    y, x = np.indices((900, 1300)) * PIXEL_UM / 1000
    image = np.full(x.shape, GROUND, float)
    for (left, top), turn in zip(centres, turns, strict=False):
        angle = np.deg2rad(turn)
        dx, dy = x - left, y - top
        own = section(np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy)
        image = np.minimum(image, own)
    image = (image + np.random.default_rng(0).normal(0, 1, image.shape)).astype(np.uint8)
    pixels = np.stack([image // (k + 1) for k in range(channels)])
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": PIXEL_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL_UM,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": [f"dye {k}" for k in range(channels)]},
    }
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=metadata, ome=True)
    return path


@pytest.fixture(autouse=True)
def _no_sheets(monkeypatch, request):
    """Draw contact sheets only where they are looked at: they take most of the time."""
    if "contact_sheet" not in request.node.name:
        monkeypatch.setattr("atlalign.sections.separate._Folder._write_sheets", lambda *_: None)


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "mouse.ome.tif")


def rows(out) -> list[dict[str, str]]:
    with (out / "sections.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def edit(out, change) -> None:
    """Write the list again as `change` leaves its rows."""
    found = rows(out)
    header = list(found[0])
    changed = change(found) or found
    with (out / "sections.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*header, *(name for name in changed[0] if name not in header)])
        writer.writeheader()
        writer.writerows(changed)


def names(out) -> list[str]:
    return [row["filename"] for row in rows(out)]


def pixels(out, name: str) -> np.ndarray:
    return read_image(out / name).pixels


def written_again(out, slide) -> set[str]:
    """Separate again; return the names of the images that were written."""
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tif")}
    separate([slide], out)
    return {path.name for path in out.glob("*.tif") if before.get(path) != path.stat().st_mtime_ns}


def centre_of(out, name: str) -> tuple[float, float]:
    """The middle of a section's outline on the slide, in mm."""
    features = json.loads((out / "sections.geojson").read_text(encoding="utf-8"))["features"]
    (own,) = (feature for feature in features if feature["properties"]["filename"] == name)
    points = np.concatenate([np.array(polygon[0]) for polygon in own["geometry"]["coordinates"]])
    return tuple((points.min(axis=0) + points.max(axis=0)) / 2 * PIXEL_UM / 1000)


# --- the first run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("rows", (0, 1, 2, 3)),
        ("columns", (0, 2, 1, 3)),
        ("serpentine", (0, 1, 3, 2)),
        ("serpentine-columns", (0, 2, 3, 1)),
    ],
)
def test_sections_are_numbered_in_the_order_that_is_asked_for(slide, tmp_path, order, expected):
    out = tmp_path / "out"
    separate([slide], out, SectionsOptions(order=order))
    assert names(out) == [f"mouse_s{number:03d}.ome.tif" for number in (1, 2, 3, 4)]
    for name, place in zip(names(out), expected, strict=True):
        assert centre_of(out, name) == pytest.approx(CENTRES[place], abs=0.2)


def test_images_have_the_slides_channels_type_and_pixel_size(tmp_path):
    out, slide = tmp_path / "out", write_slide(tmp_path / "two.ome.tif", channels=2)
    separate([slide], out)
    (scene,) = open_slide(out / "two_s001.ome.tif").scenes
    assert [channel.name for channel in scene.channels] == ["dye 0", "dye 1"]
    assert scene.dtype == np.uint8
    assert scene.pixel_um == pytest.approx((PIXEL_UM, PIXEL_UM))
    first, second = (scene.read(channel=k) for k in range(2))
    np.testing.assert_array_equal(second, first // 2)
    assert rows(out)[0]["pixel_size_um"] == "20"


def test_an_upright_section_is_cut_out_without_interpolation(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    cut, whole = pixels(out, "mouse_s001.ome.tif"), read_image(slide).pixels
    left, top = (round(1000 * edge / PIXEL_UM) for edge in (CENTRES[0][0] - 4.5, CENTRES[0][1] - 3.0))
    corner = whole[top + 50 : top + 250, left + 50 : left + 350]
    found = np.lib.stride_tricks.sliding_window_view(cut, corner.shape)[::1, ::1]
    assert (found[:80, :80] == corner).all(axis=(2, 3)).any()


@pytest.mark.parametrize("turn", [30, -70])
def test_turned_sections_become_upright(tmp_path, turn):
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", [turn] * 2, centres=((7, 9), (19, 9)))
    separate([slide], out)
    for name in names(out):
        tissue = pixels(out, name) < 180
        assert abs(np.ptp(np.nonzero(tissue.any(axis=0))[0]) * PIXEL_UM / 1000 - 9) < 0.3
        spot = np.argwhere(pixels(out, name) < 45).mean(axis=0) - np.argwhere(tissue).mean(axis=0)
        assert spot * PIXEL_UM / 1000 == pytest.approx((0, -3), abs=0.25)


def test_sections_stand_upright_where_it_is_known_which_end_is_up(tmp_path):
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", [150], centres=((13, 9),))
    separate([slide], out, judge=Says(150.4))
    (row,) = (row for row in rows(out) if row["keep"] == "yes")
    assert (row["turned"], row["note"]) == ("150", "")
    spot = np.argwhere(pixels(out, row["filename"]) < 45).mean(axis=0)
    assert spot[1] < pixels(out, row["filename"]).shape[1] / 3  # at its left, as in an upright section


def test_a_section_that_no_network_knows_is_turned_by_its_symmetry_and_says_so(tmp_path):
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", [150], centres=((13, 9),))
    separate([slide], out, judge=Says(None))
    row = rows(out)[0]
    assert float(row["turned"]) == pytest.approx(-30, abs=5)
    assert "up" in row["note"]


def test_sections_lie_as_on_the_slide_if_asked(tmp_path):
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", [30], centres=((13, 9),))
    separate([slide], out, SectionsOptions(upright="no"), judge=Says(30.0))
    assert (rows(out)[0]["turned"], rows(out)[0]["note"]) == ("0", "")


def test_pieces_that_are_one_section_to_a_judge_are_joined_if_they_are_near(tmp_path):
    centres = ((6, 5), (16, 5), (16, 13))  # 1 mm, 2 mm apart
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", centres=centres)
    separate([slide], out, judge=Says(0.0, strangeness=0.5))
    assert names(out) == ["mouse_s001.ome.tif", "mouse_s002.ome.tif"]
    spots, _ = ndimage.label(pixels(out, "mouse_s001.ome.tif") < 45)
    assert spots.max() >= 2
    separate([slide], out, SectionsOptions(overwrite=True), judge=Says(0.0, strangeness=0.9))
    assert len(names(out)) == 3


def test_neighbours_in_the_box_of_a_section_are_painted_over(tmp_path):
    centres = ((7, 7), (15.2, 10.5))
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", centres=centres)
    separate([slide], out)
    areas = [(pixels(out, name) < 180).sum() * (PIXEL_UM / 1000) ** 2 for name in names(out)]
    assert areas == pytest.approx([np.pi * 4.5 * 3 - 0.6 * 2] * 2, rel=0.03)


def test_the_list_and_the_contact_sheet_name_all_sections(slide, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sections", str(slide), "--out", str(out)]) == 0
    assert "4 sections (4 written, 0 unchanged)" in capsys.readouterr().out
    assert [row["slide"] for row in rows(out)] == ["mouse.ome.tif"] * 4
    assert {row["turn"] for row in rows(out)} == {""}  # register looks for the turn, as up may be down
    assert read_image(out / "mouse_sections.png").pixels.shape[2] == 3


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_slide_without_a_pixel_size_asks_for_it_and_leaves_nothing(tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", np.full((500, 900), 200, np.uint8))
    with pytest.raises(InputError, match="--pixel-size-um"):
        _raise(separate([tmp_path / "plain.tif"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def _raise(result) -> None:
    for error in result.errors:
        raise InputError(error)


def test_an_empty_slide_is_named_and_the_next_one_is_separated(slide, tmp_path):
    empty = write_slide(tmp_path / "empty.tif", centres=())
    out = tmp_path / "out"
    result = separate([empty, slide], out)
    (error,) = result.errors
    assert error.startswith("empty.tif: expected sections")
    assert len(names(out)) == 4
    assert not list(out.glob("empty*"))


def test_a_damaged_slide_leaves_nothing(slide, tmp_path):
    slide.write_bytes(slide.read_bytes()[:400_000])
    out = tmp_path / "out"
    assert main(["sections", str(slide), "--out", str(out)]) == 1
    assert not list(out.glob("*.tif"))


def test_another_slide_of_the_same_name_is_refused(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    write_slide(slide, centres=CENTRES[:2], channels=2)
    (error,) = separate([slide], out).errors
    assert "--overwrite" in error
    separate([slide], out, SectionsOptions(overwrite=True))
    assert len(names(out)) == 2


# --- changes ----------------------------------------------------------------------------------------------------------


def test_running_again_without_changes_writes_nothing(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    before = (out / "sections.csv").read_bytes()
    assert written_again(out, slide) == set()
    assert (out / "sections.csv").read_bytes() == before


def test_a_deleted_row_drops_its_section_and_moved_rows_change_the_order(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    edit(out, lambda rows: [rows[3], rows[0], rows[2]])
    assert written_again(out, slide) == set()
    assert names(out) == ["mouse_s004.ome.tif", "mouse_s001.ome.tif", "mouse_s003.ome.tif"]
    assert not (out / "mouse_s002.ome.tif").exists()


def with_a_label(path):
    """A slide with two sections, a small piece of tissue and a paper label."""
    write_slide(path, centres=((9, 9), (20, 5)))
    with tifffile.TiffFile(path) as file:
        image, description = file.asarray(), file.pages[0].description
    image[580:880, 880:1270] //= 2  # 6 × 7.8 mm
    image[100:130, 100:130] = 60  # 0.6 mm
    tifffile.imwrite(path, image, photometric="minisblack", description=description.encode())
    return path


def test_pieces_that_were_left_out_stand_in_the_list_and_can_be_taken_in(tmp_path):
    out, slide = tmp_path / "out", with_a_label(tmp_path / "mouse.ome.tif")
    separate([slide], out)
    assert [(row["keep"], row["section_number"]) for row in rows(out)] == [
        *(("yes", "1"), ("yes", "2")),
        *(("no", ""), ("no", "")),
    ]
    label, small = rows(out)[2:]
    assert ("rectangular" in label["note"], "small" in small["note"]) == (True, True)
    edit(out, lambda rows: rows[3].update(keep="yes"))
    assert written_again(out, slide) == {"mouse_s004.ome.tif"}
    assert (pixels(out, "mouse_s004.ome.tif") < 100).sum() == pytest.approx(900, rel=0.1)
    assert [row["section_number"] for row in rows(out)] == ["1", "2", "", "3"]
    edit(out, lambda rows: rows[3].update(keep="no"))
    assert written_again(out, slide) == set()
    assert not (out / "mouse_s004.ome.tif").exists()


def test_a_piece_that_was_left_out_merges_with_its_section(tmp_path):
    out, slide = tmp_path / "out", with_a_label(tmp_path / "mouse.ome.tif")
    separate([slide], out)
    edit(out, lambda rows: rows[3].update(merge="1"))
    assert written_again(out, slide) == {"mouse_s001.ome.tif"}
    assert [(row["filename"], row["keep"]) for row in rows(out)] == [
        ("mouse_s001.ome.tif", "yes"),
        ("mouse_s002.ome.tif", "yes"),
        ("mouse_s003.ome.tif", "no"),
    ]
    assert (pixels(out, "mouse_s001.ome.tif")[:100, :100] < 100).any()


def test_a_dropped_section_keeps_its_place_and_comes_back(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    before = pixels(out, "mouse_s002.ome.tif")
    edit(out, lambda rows: rows[1].update(keep="No"))
    assert written_again(out, slide) == set()
    assert not (out / "mouse_s002.ome.tif").exists()
    assert [(row["keep"], row["section_number"]) for row in rows(out)] == [
        *(("yes", "1"), ("no", "2"), ("yes", "3"), ("yes", "4")),
    ]
    assert [job.section_number for job in find_jobs([out / "sections.csv"])] == [1, 3, 4]
    edit(out, lambda rows: rows[1].update(keep="yes"))
    assert written_again(out, slide) == {"mouse_s002.ome.tif"}
    np.testing.assert_array_equal(pixels(out, "mouse_s002.ome.tif"), before)


def test_a_turn_is_counter_clockwise_and_done_once(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    before = pixels(out, "mouse_s002.ome.tif")
    edit(out, lambda rows: rows[1].update(turn="90"))
    assert written_again(out, slide) == {"mouse_s002.ome.tif"}
    after = pixels(out, "mouse_s002.ome.tif")
    spot = [
        np.argwhere(image < 45).mean(axis=0) - (np.array(image.shape) - 1) / 2 for image in (before, after)
    ]
    assert spot[1] == pytest.approx((-spot[0][1], spot[0][0]), abs=3)  # the left goes down
    assert rows(out)[1]["turn"] == "0"
    assert written_again(out, slide) == set()


def test_the_turn_in_the_list_is_that_from_the_slide_and_can_be_set(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out, judge=Says(20.0))
    assert [row["turned"] for row in rows(out)] == ["20"] * 4
    assert written_again(out, slide) == set()
    edit(out, lambda rows: rows[1].update(turned="-90"))
    assert written_again(out, slide) == {"mouse_s002.ome.tif"}
    assert [(row["turned"], row["turn"]) for row in rows(out)][:2] == [("20", ""), ("-90", "0")]
    spot = np.argwhere(pixels(out, "mouse_s002.ome.tif") < 45).mean(axis=0)
    assert spot[0] < pixels(out, "mouse_s002.ome.tif").shape[0] / 3  # clockwise: the left goes up


def test_a_person_who_turns_a_section_settles_what_was_doubtful(tmp_path):
    out, slide = tmp_path / "out", write_slide(tmp_path / "mouse.tif", [30], centres=((13, 9),))
    separate([slide], out)
    assert rows(out)[0]["note"]
    edit(out, lambda rows: rows[0].update(turn="180"))
    separate([slide], out)
    assert (rows(out)[0]["note"], rows(out)[0]["turned"]) == ("", "-150")


def test_merged_and_split_sections_are_turned_anew(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out, judge=Says(10.0))
    edit(out, lambda rows: rows[0].update(merge="2") or rows[2].update(split="350 500 350 800"))
    separate([slide], out, judge=Says(40.0))
    assert [row["turned"] for row in rows(out)] == ["40", "40", "40", "10"]


def test_mirrored_sections_are_mirrored_after_their_turn(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    before = pixels(out, "mouse_s001.ome.tif")
    edit(out, lambda rows: rows[0].update(mirrored="yes"))
    assert written_again(out, slide) == {"mouse_s001.ome.tif"}
    after = pixels(out, "mouse_s001.ome.tif")
    assert np.argwhere(after < 45).mean() > 0
    assert (
        np.abs(after[:, ::-1].astype(int)[5:-5, 5:-5] - before[5:-5, 5:-5]).max() <= 1
        or after.shape != before.shape
    )
    edit(out, lambda rows: rows[0].update(mirrored="yes"))
    separate([slide], out)
    np.testing.assert_array_equal(pixels(out, "mouse_s001.ome.tif"), before)


def test_merged_sections_are_one(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    edit(out, lambda rows: rows[2].update(merge="4"))
    assert written_again(out, slide) == {"mouse_s003.ome.tif"}
    assert names(out) == [f"mouse_s{number:03d}.ome.tif" for number in (1, 2, 3)]
    assert not (out / "mouse_s004.ome.tif").exists()
    tissue = (pixels(out, "mouse_s003.ome.tif") < 180).any(axis=0)
    assert np.ptp(np.nonzero(tissue)[0]) * PIXEL_UM / 1000 == pytest.approx(12 + 9, abs=0.2)
    assert [row["one_section"] for row in rows(out)] == ["", "", "yes"]


def test_a_line_splits_a_section(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    x = 1000 * CENTRES[1][0] / PIXEL_UM
    edit(out, lambda rows: rows[1].update(split=f"{x:.0f}, 100; {x:.0f}, 400"))
    assert written_again(out, slide) == {"mouse_s002a.ome.tif", "mouse_s002b.ome.tif"}
    assert names(out)[1:3] == ["mouse_s002a.ome.tif", "mouse_s002b.ome.tif"]
    dark = [(pixels(out, name) < 45).any() for name in names(out)[1:3]]
    assert dark == [True, False]
    areas = [(pixels(out, name) < 180).sum() for name in names(out)[1:3]]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


def test_other_columns_are_kept_and_spreadsheets_may_write_the_list(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    edit(out, lambda rows: [{**row, "p": 6000 + k, "mine": "é"} for k, row in enumerate(rows)])
    text = (out / "sections.csv").read_text(encoding="utf-8")
    (out / "sections.csv").write_text(text.replace(",", ";"), encoding="utf-8-sig")
    assert written_again(out, slide) == set()
    assert [(row["p"], row["mine"]) for row in rows(out)] == [(f"{6000 + k}", "é") for k in range(4)]


@pytest.mark.parametrize(
    ("column", "cell", "named"),
    [
        ("filename", "other.tif", "other.tif"),
        ("filename", "mouse_s001.ome.tif", "mouse_s001"),
        ("keep", "perhaps", "keep"),
        ("turned", "up", "turned"),
        ("turn", "left", "turn"),
        ("mirrored", "maybe", "mirrored"),
        ("merge", "9", "merge"),
        ("split", "1 2 3", "split"),
        ("split", "0 0 1 0", "split"),
    ],
)
def test_an_impossible_change_is_named_and_changes_nothing(slide, tmp_path, column, cell, named):
    out = tmp_path / "out"
    separate([slide], out)
    edit(out, lambda rows: rows[2].update({column: cell}))
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=rf"line 4.*{named}"):
        separate([slide], out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_run_is_finished_and_applies_no_change_twice(slide, tmp_path, monkeypatch):
    out = tmp_path / "out"
    separate([slide], out)
    edit(out, lambda rows: rows[0].update(turn="90") or rows[1].update(turn="90"))
    from atlalign.sections import separate as module

    real, calls = module.write_section, []

    def once(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        real(*arguments, **options)

    monkeypatch.setattr(module, "write_section", once)
    with pytest.raises(KeyboardInterrupt):
        separate([slide], out)
    monkeypatch.undo()
    assert written_again(out, slide) == {"mouse_s002.ome.tif"}
    features = json.loads((out / "sections.geojson").read_text(encoding="utf-8"))["features"]
    assert [feature["properties"]["turn"] for feature in features] == [90, 90, 0, 0]
    assert [row["turn"] for row in rows(out)] == ["0", "0", "", ""]


def test_changes_of_a_slide_that_is_not_given_are_refused(slide, tmp_path):
    out = tmp_path / "out"
    separate([slide], out)
    other = write_slide(tmp_path / "other.tif", centres=CENTRES[:1])
    edit(out, lambda rows: rows[0].update(turn="90"))
    with pytest.raises(InputError, match=r"mouse\.ome\.tif"):
        separate([other], out)
    result = separate([slide, other], out)
    assert [s.filename for s in result.sections][-1] == "other_s001.ome.tif"


def test_scattered_cells_are_joined_to_the_sections_that_are_recognised(test_data):
    halves = []
    for name in ("71661863_s0161.jpg", "71661867_s0177.jpg"):
        image = read_image(test_data / "ish" / name).pixels.max(axis=2)
        image = np.pad(image, ((0, 900), (0, 1100)))[:900, :1100]
        halves.append(image.reshape(450, 2, 550, 2).mean(axis=(1, 3)).astype(np.uint8))
    found = find_sections(np.concatenate(halves, axis=1), is_color=False, pixel_um=20)
    assert not found.is_solid
    labels = with_cells_joined(found).labels
    cells = found.strength > 3
    middle = labels.shape[1] // 2
    for side in (np.s_[:, :middle], np.s_[:, middle:]):
        shares = np.bincount(labels[side][cells[side]], minlength=3) / cells[side].sum()
        assert max(shares[1:]) > 0.9
    assert labels.max() == 2
