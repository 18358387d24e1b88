"""Sections of the phantom are located from inaccurate proposals; images without a section are rejected."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import atlalign.localization.locator as module
from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import Anchoring, homogeneous
from atlalign.atlas.section_lists import find_list, read_list
from atlalign.atlas.targets import Target
from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.localization import Located, Locator, locate, locating, write_located
from atlalign.localization.fit import Frame, Lie
from atlalign.localization.located import anchoring_of, judged
from atlalign.localization.same_atlas import large_regions
from atlalign.localization.search import Curve, Found, Search
from atlalign.localization.views import seen_tissue
from atlalign.localization.volume import AtlasVolume
from atlalign.models import save_model
from atlalign.networks import PlaneLocatorNet
from atlalign.recognition.answers import Proposal
from atlalign.registration.jobs import Job, find_jobs
from atlalign.registration.section import Section

EXTENT = (13.2, 8.0, 11.4)
PIXEL_MM = 0.1
MARGIN_PX = 20
TILT = (0.06, -0.04)


@pytest.fixture(scope="module")
def atlas():
    return phantom_atlas(image_shape=(160, 228), spacing_um=100)


def tiny_network(atlas) -> PlaneLocatorNet:
    network = PlaneLocatorNet(EXTENT, view_px=32, widths=(4, 4, 4, 4), hidden=4)
    network.trained_on(atlas.name, EXTENT, large_regions(AtlasVolume.of(atlas)))
    return network.eval()


@pytest.fixture(scope="module")
def locator(atlas):
    return Locator(atlas, network=tiny_network(atlas))


def draw(locator: Locator, position_mm: float) -> tuple[torch.Tensor, np.ndarray]:
    """Return a leaning section of the atlas, and the matrix from its pixels to mm."""
    frame = Frame(locator.volume, 0, PIXEL_MM)
    plane = np.array([position_mm, *TILT])
    image = torch.nn.functional.pad(frame.templates(plane[None])[0, 0], [MARGIN_PX] * 4)
    down, right = (float(ticks[0]) - MARGIN_PX * PIXEL_MM for ticks in frame.ticks)
    to_mm = np.array([[PIXEL_MM, 0, right], [0, PIXEL_MM, down]])
    lie = Lie(plane, np.linalg.inv(homogeneous(to_mm))[:2])
    return image, lie.matrix(frame)


@pytest.fixture
def series(locator, tmp_path, monkeypatch):
    """Write sections 0.5 mm apart; what the network proposes of each is 0.35 mm off."""
    known = {}
    for number in (3, 5, 6, 9):
        image, matrix = draw(locator, 4.0 + 0.5 * number)
        path = tmp_path / f"brain_s{number:03d}.png"
        Image.fromarray((image * 255).round().byte().numpy()).save(path)
        known[number] = path, matrix

    offsets = dict(zip(known, (0.35, -0.35, 0.35, -0.35), strict=True))
    order = iter(())

    def in_turn(network, volume, section, tissue):
        number = next(order)
        matrix = known[number][1].copy()
        matrix[0, 2] += offsets[number]
        return [Proposal(matrix, "whole", 0.5)]

    def begin(numbers):
        nonlocal order
        order = iter(numbers)
        return [Job(known[number][0]) for number in numbers]

    monkeypatch.setattr(module, "propose", in_turn)
    return known, begin


def errors_um(found: list[Located], known) -> list[float]:
    middles = []
    for one in found:
        matrix = next(matrix for path, matrix in known.values() if path == one.job.path)
        height, width = one.anchoring.size
        middles.append(one.position_um - 1000 * (matrix @ ((width - 1) / 2, (height - 1) / 2, 1.0))[0])
    return middles


def test_a_section_is_found_where_it_was_cut(series, locator):
    known, begin = series
    found = locate(begin([5, 9]), locator, independent=True)
    assert np.abs(errors_um(found, known)).max() < 100
    for one in found:
        assert one.side == "whole"
        # Along ML, then DV; the phantom shows little of them.
        assert one.tilt_deg == pytest.approx(np.rad2deg(np.arctan(TILT[::-1])), abs=4)


def test_a_series_has_one_angle_and_equal_steps(series, locator):
    known, begin = series
    found = locate(begin([6, 3, 9, 5]), locator)
    assert [one.number for one in found] == [6, 3, 9, 5]
    assert np.abs(errors_um(found, known)).max() < 100
    assert len({one.tilt_deg for one in found}) == 1
    steps = np.polyfit([one.number for one in found], [one.placed_um for one in found], 1)
    assert steps[0] == pytest.approx(500, abs=30)


def test_sections_out_of_order_are_located_alone(series, locator):
    known, begin = series
    jobs = [
        job._replace(section_number=number)
        for job, number in zip(begin([3, 5, 6, 9]), (2, 4, 1, 3), strict=True)
    ]
    found = locate(jobs, locator)
    assert np.abs(errors_um(found, known)).max() < 100
    assert {one.flag for one in found} == {"look"}
    assert all("--independent" in one.reason for one in found)


def test_new_sections_follow_the_ones_that_were_located_before(series, locator):
    """Kept planes are kept to the number; a new section lies on their line, at their angle, wherever it fits best."""
    _, begin = series
    first = locate(begin([3, 6, 9]), locator)
    jobs = [one.job for one in first]
    moved = [_moved(one, 100.0) for one in first]  # as a person corrected them
    progressed = []

    def progress(new):
        progressed.extend(new)
        return new

    (new,) = begin([5])
    again = locate([*jobs, new], locator, known=dict(enumerate(moved)), progress=progress)
    assert progressed == [new]
    assert again[:3] == moved
    assert again[3].tilt_deg == pytest.approx(first[0].tilt_deg, abs=0.01)
    line = np.polyfit([one.number for one in moved], [_middle_um(one) for one in moved], 1)
    assert _middle_um(again[3]) == pytest.approx(np.polyval(line, 5), abs=60)


def _moved(located: Located, distance_um: float) -> Located:
    share_to_um = located.anchoring.share_to_um.copy()
    share_to_um[0, 2] += distance_um
    return replace(located, anchoring=Anchoring.of_points_um(share_to_um, located.anchoring.size))


def _middle_um(located: Located) -> float:
    return located.anchoring.plane((5700.0, 4000.0)).matrix[0, 2]


def test_one_that_is_no_section_is_reported_beside_others(series, locator, atlas, tmp_path):
    _, begin = series
    blank = tmp_path / "brain_s004.png"
    Image.new("L", (90, 70)).save(blank)
    jobs = begin([3, 5, 6])
    found = locate([*jobs, Job(blank), Job(tmp_path / "brain_s010.png", problem="no such file")], locator)
    assert [one.flag == "fail" for one in found] == [False, False, False, True, True]
    assert found[3].anchoring is None
    assert "brain_s004.png" in found[3].reason
    assert found[4].reason == "no such file"
    table = write_located(tmp_path / "located.json", found, Target.of(atlas))
    rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    assert [row["flag"] == "fail" for row in rows] == [False, False, False, True, True]
    assert rows[3]["position_um"] == ""
    listed = read_list(tmp_path / "located.json")
    assert [section.path.name for section in listed] == [job.path.name for job in jobs]
    for section, one in zip(listed, found[:3], strict=True):
        assert section.position_um == pytest.approx(one.position_um, abs=0.1)
    assert find_list(tmp_path) == tmp_path / "located.json"


def test_numbers_that_repeat_are_named(series, locator, tmp_path):
    _, begin = series
    other = Job(tmp_path / "other_s3.png")
    with pytest.raises(InputError, match=r"found 3 in .*brain_s003\.png"):
        locate([*begin([3]), other], locator)
    # In a folder of its own it is another brain.
    apart = Job(tmp_path / "sub" / "other_s3.png", problem="not there")
    assert len(locate([*begin([3]), apart], locator)) == 2
    # The sections of other brains are located all the same.
    own = begin([5])[0]
    found = locate([own, *(Job(tmp_path / name / "x_s3.png", brain="two") for name in "ab")], locator)
    assert [one.flag == "fail" for one in found] == [False, True, True]
    assert "found 3 in x_s3.png and x_s3.png" in found[2].reason


@pytest.mark.parametrize("axis", [0, 1])
def test_two_sections_in_one_image_are_no_section(axis, locator, tmp_path, test_data, monkeypatch):
    def refused(*_):
        raise InputError("went on")

    folder = test_data / "sections"
    paths = [folder / f"641_2002_2568_NM01_s{number}.png" for number in ("049", "109")]
    pixels = [np.asarray(Image.open(path).convert("L").resize((256, 168))) for path in paths]
    job = Job(tmp_path / "two.png", options={"one_section": False})
    Image.fromarray(np.concatenate(pixels, axis=axis)).save(job.path)
    (found,) = locate([job], locator)
    assert (found.flag, found.anchoring) == ("fail", None)
    assert "two.png: expected one section, found 2" in found.reason
    assert f"atlalign sections {job.path} --pixel-size-um UM --out FOLDER" in found.reason
    monkeypatch.setattr(module, "seen_tissue", refused)
    (found,) = locate([job._replace(options={"one_section": True})], locator)
    assert found.reason == "went on"


def test_what_fits_nowhere_has_no_place(series, locator, monkeypatch):
    known, begin = series
    jobs = begin([3])
    monkeypatch.setattr(module, "propose", lambda *_: [Proposal(known[3][1], "whole", 5.0)])
    (found,) = locate(jobs, locator)
    assert (found.flag, found.anchoring) == ("fail", None)
    assert "it fits no plane" in found.reason
    assert found.placed_job().problem == found.reason


def test_what_is_little_like_its_plane_is_to_be_looked_at(locator):
    known = Located(Job(Path("x.png")), "", 1, likeness=0.3, error_um=50.0)
    assert judged(known).flag == "look"
    assert "0.30" in judged(known).reason
    among_others = replace(known, neighbours=4, alone_um=5000.0, placed_um=5100.0)
    assert judged(among_others).flag == "pass"
    assert judged(replace(among_others, alone_um=5300.0)).flag == "look"
    assert "strain 95" in judged(replace(known, likeness=0.9, strain=95.0)).reason
    assert judged(replace(known, likeness=0.9)).flag == "pass"
    unsure = judged(replace(known, likeness=0.9, error_um=400.0, other_um=7000.0))
    assert ("7000 µm" in unsure.reason, "±400 µm" in unsure.reason) == (True, True)


def test_a_section_must_be_bent_more_to_resemble_another_plane(locator):
    image, matrix = draw(locator, 6.0)
    section = Section(image, (1, 1), tuple(image.shape), None, "dark")
    search = Search(
        locator.registration, locator.frame(0), section, seen_tissue(section), Proposal(matrix, "whole", 0.5)
    )
    lie = Lie.of(matrix, search.frame)
    away = lie.on(lie.plane + np.array([1.5, 0, 0]))
    assert search.finer.strain(lie) < 0.6 * search.finer.strain(away)


def test_a_half_is_compared_with_that_half(atlas, locator):
    image, matrix = draw(locator, 6.0)
    image[:, image.shape[1] // 2 :] = 0
    section = Section(image, (1, 1), tuple(image.shape), None, "dark")
    proposal = Proposal(matrix, "left", 0.5)
    search = Search(locator.registration, locator.frame(0), section, seen_tissue(section), proposal)
    found = search.look()
    assert (
        abs(search.height(found.lie.plane, found.pivot) - (matrix @ (*search.tissue.centre, 1.0))[0]) < 0.15
    )
    height, width = image.shape
    located = Located(Job(Path("x.png")), "", 1, side="left", anchoring=anchoring_of(matrix, (height, width)))
    assert located.placed_job().options == {"hemisphere": "left"}


def test_another_atlas_needs_another_network(atlas):
    with pytest.raises(InputError, match="phantom"):
        Locator(atlas, network=PlaneLocatorNet((24.0, 10.0, 16.0), widths=(4, 4, 4, 4, 4), hidden=4))
    with pytest.raises(InputError, match="PlaneLocatorNet"):
        Locator(atlas, network=torch.nn.Identity())


def test_an_atlas_of_the_same_size_that_is_another_one_is_noticed(series, locator, atlas, caplog):
    """Region ids are exchanged, as in the atlas of another species."""
    _, begin = series
    exchanged = atlas.annotation.max() + atlas.annotation.min() - atlas.annotation
    other = replace(atlas, annotation=torch.where(atlas.annotation > 0, exchanged + 1, 0), name="rat")
    with caplog.at_level("WARNING"):
        strange = Locator(other, network=locator.network)
    assert ("rat" in caplog.text, "phantom" in caplog.text, "--locator" in caplog.text) == (True,) * 3
    assert locator.doubt == ""
    for found in locate(begin([5, 9]), strange, independent=True):
        assert (found.flag, "rat" in found.reason) == ("look", True)
    for found in locate(begin([3, 5, 9]), strange):
        assert (found.flag, "rat" in found.reason) == ("look", True)
    unnamed = PlaneLocatorNet(EXTENT, view_px=32, widths=(4, 4, 4, 4), hidden=4)
    assert "does not say" in Locator(atlas, network=unnamed).doubt


def test_planes_in_a_cut_copy_of_the_atlas_are_in_its_frame(locator, atlas):
    cut = replace(atlas, template=atlas.template[15:-10], annotation=atlas.annotation[15:-10], name="cut")
    in_cut = Locator(cut, network=locator.network)
    assert in_cut.doubt == ""
    view = torch.rand(1, 1, 32, 32)
    whole, shifted = (one.network(view).planes[0] for one in (locator, in_cut))
    assert (shifted - whole)[0].tolist() == pytest.approx([-1.5, 0, 0], abs=0.02)
    assert (shifted - whole)[1:].abs().max() == 0


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_locator(atlas, tmp_path):
    return save_model(tiny_network(atlas), tmp_path / "tiny.safetensors")


def test_the_command_writes_anchorings_and_a_table(series, tiny_locator, tmp_path, capsys, monkeypatch):
    known, begin = series
    begin(sorted(known))
    out = tmp_path / "out" / "located.json"
    options = ["--atlas", "phantom", "--locator", str(tiny_locator), "--out", str(out)]
    out.parent.mkdir()
    assert main(["locate", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 sections located" in printed
    assert f"located by {tiny_locator}, trained on coronal sections of phantom" in printed
    content = json.loads(out.read_text())
    assert [entry["nr"] for entry in content["slices"]] == [3, 5, 6, 9]
    assert (content["target"], content["voxels"]["size_um"][0]) == ("phantom_100um", 100)
    assert [section.problem for section in read_list(out)] == [""] * 4
    assert out.with_suffix(".csv").exists()
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/webp") >= 8
    assert page.count("<svg") >= 5
    assert 'src="http' not in page
    assert main(["locate", str(tmp_path), *options]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["locate", str(tmp_path), *options[:-1], str(tmp_path / "located.csv")]) == 1
    assert ".json" in capsys.readouterr().err
    assert main(["locate", str(tmp_path), *options, "--overwrite", "--section-spacing-um", "0"]) == 1
    assert "--section-spacing-um" in capsys.readouterr().err
    assert main(["locate", str(tmp_path), *options, "--overwrite", "--z", "brightest"]) == 1
    assert "z: expected the number of a plane, max or best, got brightest" in capsys.readouterr().err


def test_lists_need_no_positions(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (9, 9)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text("filename,brain,hemisphere,p\na.png,one,left,\nb.png,two,,4000\n")
    first, second = find_jobs([tmp_path / "list.csv"])
    assert (first.position_um, first.problem, first.brain) == (None, "", "one")
    assert first.options == {"hemisphere": "left"}
    assert second.position_um == 4000
    (tmp_path / "list.csv").write_text("filename\na.png\nb.png\n")
    assert [job.position_um for job in find_jobs([tmp_path])] == [None, None]


@pytest.mark.parametrize(("likeness", "expected_mm"), [(0.9, 0.3), (0.2, 0.5)])
def test_little_likeness_makes_a_position_less_sure(likeness, expected_mm):
    positions = np.linspace(-2, 2, 401)
    curve = Curve(positions, -0.5 * np.square(positions / 0.3), np.full(401, likeness))
    proposal = Proposal(np.eye(3), "whole", 0.4 / 0.7)
    found = Found(Lie(np.zeros(3), np.eye(3)[:2]), "whole", np.zeros(2), curve, np.zeros(2), proposal)
    assert locating._position_error_mm(found) == pytest.approx(expected_mm, rel=0.01)
