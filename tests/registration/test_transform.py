"""Transforms against SimpleITK's own resampling and points, and against hand-computable maps."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from atlalign.atlas.planes import Plane
from atlalign.errors import InputError
from atlalign.geometry import invert, smooth_field
from atlalign.io.images import read_image
from atlalign.io.tiff_writer import write_tiff
from atlalign.registration import record as module
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.record import read_record
from atlalign.registration.transform import SectionTransform

WORK = Grid((24, 40), (100.0, 120.0))
SECTION = Grid((90, 70), (40.0, 50.0))


def field(grid: Grid, seed: int, shift_mm: tuple[float, float] = (0.0, 0.0)) -> Displacement:
    """Return a smooth map, moved by some mm and unequal in x and y."""
    drawn = smooth_field(1, grid.shape, generator=torch.Generator().manual_seed(seed)).dvf[0]
    mm = drawn * torch.tensor([0.1, 0.2]).view(2, 1, 1) + torch.tensor(shift_mm).view(2, 1, 1)
    return Displacement(grid, mm.float())


@pytest.fixture
def transform() -> SectionTransform:
    coarse = SECTION.with_shape((30, 24))
    return SectionTransform(
        field(WORK, 1, (-0.4, 0.3)), field(coarse, 2, (0.5, -0.2)), SECTION, Plane.at(5000, (12.5, 12.5))
    )


def resampled(image: np.ndarray, source: Grid, target: Grid, path: Path, interpolator: int) -> np.ndarray:
    """Return what SimpleITK makes of an image with a transform file alone."""
    moving = SimpleITK.GetImageFromArray(image, isVector=image.ndim == 3)
    moving.SetSpacing([size / 1000 for size in source.pixel_um])
    reference = SimpleITK.Image(target.shape[1], target.shape[0], SimpleITK.sitkUInt8)
    reference.SetSpacing([size / 1000 for size in target.pixel_um])
    displacement = SimpleITK.DisplacementFieldTransform(
        SimpleITK.Cast(SimpleITK.ReadImage(str(path)), SimpleITK.sitkVectorFloat64)
    )
    return SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, reference, displacement, interpolator, 7))


@pytest.mark.parametrize("tile", [16, 512])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_registered_image_matches_simpleitk(transform, tmp_path, monkeypatch, tile, channels, dtype):
    monkeypatch.setattr("atlalign.registration.bands._TILE_PX", tile)
    image = np.random.default_rng(0).uniform(10, 250, (*SECTION.shape, *channels)).astype(dtype)
    transform.save(tmp_path, {})
    ours = np.concatenate(list(transform.register(image, fill=7)))
    theirs = resampled(image, SECTION, transform.reference, tmp_path / module.FORWARD, SimpleITK.sitkLinear)
    assert ours.dtype == dtype
    assert ours.shape == (*transform.reference.shape, *channels)
    difference = np.abs(ours.astype(np.float64) - theirs)
    # Single and double precision round a few values to different integers, and a few points to different sides of
    # the border.
    assert np.quantile(difference, 0.999) <= (1 if np.dtype(dtype).kind == "u" else 1e-2)
    assert (difference > 2).mean() < 1e-3
    assert 0.05 < (ours == 7).mean() < 0.6


def test_labels_in_section_space_match_simpleitk(transform, tmp_path):
    labels = np.random.default_rng(0).choice([0, 7, 997, 614454277], (47, 79)).astype(np.uint32)
    transform.save(tmp_path, {})
    ours = np.concatenate(list(transform.label(labels)))
    theirs = resampled(
        labels, WORK.with_shape((47, 79)), SECTION, tmp_path / module.INVERSE, SimpleITK.sitkNearestNeighbor
    )
    theirs[theirs == 7] = 0
    assert (np.where(ours == 7, 0, ours) == theirs).mean() > 0.999
    assert set(np.unique(ours)) == {0, 7, 997, 614454277}


@pytest.mark.parametrize("width", [78, 79])
@pytest.mark.parametrize("tile", [16, 512])
def test_labels_come_with_the_side_of_the_midline_that_their_pixels_lie_on(
    transform, monkeypatch, tile, width
):
    monkeypatch.setattr("atlalign.registration.bands._TILE_PX", tile)
    labels = np.random.default_rng(0).choice([0, 7, 997], (47, width))
    bands = list(transform.label_by_side(labels))
    assert (np.concatenate([ids for ids, _ in bands]) == np.concatenate(list(transform.label(labels)))).all()
    y, x = np.mgrid[: SECTION.shape[0], : SECTION.shape[1]]
    points_mm = transform.to_reference(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float))
    is_left = points_mm[:, 0].reshape(SECTION.shape) < 39 * 0.1 / 2
    assert transform.midline_mm == pytest.approx(39 * 0.1 / 2)
    assert 0.1 < is_left.mean() < 0.9
    assert (np.concatenate([left for _, left in bands]) == is_left).mean() > 0.9995


def test_points_go_the_other_way_than_images_as_in_simpleitk(transform, tmp_path):
    transform.save(tmp_path, {})
    pixels = np.random.default_rng(0).uniform(0, 1, (50, 2)) * [69, 89]
    for name, grid, mapped in [
        (module.INVERSE, SECTION, transform.to_reference(pixels)),
        (module.FORWARD, WORK, None),
    ]:
        read = SimpleITK.DisplacementFieldTransform(
            SimpleITK.Cast(SimpleITK.ReadImage(str(tmp_path / name)), SimpleITK.sitkVectorFloat64)
        )
        if mapped is None:
            pixels = np.random.default_rng(1).uniform(0, 1, (50, 2)) * [39, 23]
            mapped = SECTION.to_mm(transform.to_section(WORK.to_mm(pixels)))
        theirs = np.array([read.TransformPoint(point) for point in grid.to_mm(pixels).tolist()])
        assert np.abs(mapped - theirs).max() < 1e-5


def test_a_bright_spot_lands_where_its_point_lands(transform):
    """Image and point, through the forward field and its own inverse: the direction and order of both."""
    forward = transform.forward
    pixels = forward.mm / torch.tensor(WORK.pixel_um).view(2, 1, 1) * 1000
    inverse = invert(pixels[None])[0] * torch.tensor(WORK.pixel_um).view(2, 1, 1) / 1000
    same = SectionTransform(forward, Displacement(WORK, inverse), WORK, None)
    image = np.zeros(WORK.shape, np.float32)
    image[9:12, 12:15] = 1
    registered = np.concatenate(list(same.register(image)))
    y, x = np.nonzero(registered > 0.5)
    spot = same.reference.to_mm(np.array([[x.mean(), y.mean()]]))
    assert np.abs(spot - same.to_reference(np.array([[13.0, 10.0]]))).max() < 0.05
    assert np.abs(same.to_section(spot) - (13, 10)).max() < 0.5


def test_transform_is_read_back(transform, tmp_path):
    transform.save(tmp_path, {"model": "m.pt"})
    loaded = SectionTransform.load(tmp_path)
    assert torch.equal(loaded.forward.mm, transform.forward.mm)
    assert torch.equal(loaded.inverse.mm, transform.inverse.mm)
    assert loaded.section == SECTION
    assert loaded.forward.grid.shape == WORK.shape
    assert loaded.forward.grid.pixel_um == pytest.approx(WORK.pixel_um, rel=1e-6)
    assert (loaded.plane.matrix == transform.plane.matrix).all()
    assert module.read_record(tmp_path)["model"] == "m.pt"


def test_record_has_each_list_of_numbers_on_one_line(transform, tmp_path):
    record = {
        "markers": [[1.5, -2e-7], [3, None]],
        "said": ["[\n 1,  2 ]", "x"],
        "nested": {"empty": [], "mixed": [1, {"a": [0]}]},
    }
    transform.save(tmp_path, record)
    read = read_record(tmp_path)
    assert {name: read[name] for name in record} == record
    lines = (tmp_path / "transform.json").read_text().splitlines()
    assert [line.strip() for line in lines if "1.5" in line] == ["[1.5, -2e-07],"]
    assert '"shape": [90, 70],' in [line.strip() for line in lines]
    assert len(lines) < 45  # with five for each of the two fields' files


def _set_section(folder: Path, **values: list[float]) -> None:
    record = module.read_record(folder)
    record["section"] |= values
    module.write_record(folder, record)


def _set_plane(folder: Path, plane: object) -> None:
    module.write_record(folder, module.read_record(folder) | {"plane": plane})


def _swap_fields(folder: Path) -> None:
    forward, inverse = ((folder / name).read_bytes() for name in (module.FORWARD, module.INVERSE))
    (folder / module.FORWARD).write_bytes(inverse)
    (folder / module.INVERSE).write_bytes(forward)


def _change_a_digit(folder: Path) -> None:
    record = folder / module.RECORD
    record.write_text(record.read_text().replace('"shape": [90, 70]', '"shape": [91, 70]'))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / module.RECORD).unlink(), "transform.json"),
        (lambda f: (f / module.RECORD).write_text("{"), "transform.json: .*cannot be read"),
        (lambda f: (f / module.RECORD).write_text('{"format": 99}'), "format 1, found 99"),
        (lambda f: (f / module.RECORD).write_text('{"format": 1}'), "transform.json: .*changed"),
        (lambda f: module.write_record(f, {"format": 1}), "transform.json, section: "),
        (_change_a_digit, "transform.json: .*changed"),
        (lambda f: _set_section(f, pixel_um=[0, 12]), "section: .*'pixel_um': \\[0, 12\\]"),
        (lambda f: _set_section(f, pixel_um=[float("nan"), 12]), "section: .*nan, 12"),
        (lambda f: _set_section(f, shape=[0, 60]), "section: .*'shape': \\[0, 60\\]"),
        (lambda f: _set_section(f, shape=[90.5, 60]), "section: .*90.5"),
        (lambda f: _set_plane(f, [[0, 0, float("nan")], [0, 1000, 0], [1000, 0, 0]]), "plane: .*nan"),
        (lambda f: _set_plane(f, [[0, 0, 5000], [0, 0, 0], [1000, 0, 0]]), "plane: .*invertible"),
        (lambda f: _set_plane(f, "x"), "plane: .*found x"),
        (lambda f: (f / module.FORWARD).unlink(), "forward.nii.gz: "),
        (
            lambda f: (f / module.INVERSE).write_bytes((f / module.INVERSE).read_bytes()[:200]),
            "inverse.nii.gz: .*changed",
        ),
        (_swap_fields, "forward.nii.gz: .*changed"),
    ],
)
def test_a_damaged_transform_is_named(transform, tmp_path, damage, sentence):
    transform.save(tmp_path, {})
    damage(tmp_path)
    with pytest.raises(InputError, match=sentence):
        SectionTransform.load(tmp_path)


def test_folder_of_all_sections_is_distinguished_from_one_section(transform, tmp_path):
    (tmp_path / "a").mkdir()
    transform.save(tmp_path / "a", {})
    with pytest.raises(InputError, match="expected the folder of one section"):
        SectionTransform.load(tmp_path)


def test_a_grid_keeps_its_corners():
    fine = Grid((3, 5), (100.0, 200.0)).finer(50)
    assert fine == Grid((9, 9), (50.0, 50.0))
    assert (fine.to_mm(np.array([[8.0, 8.0]])) == [[0.4, 0.4]]).all()
    assert fine.to_pixels(fine.to_mm(np.array([[3.0, 7.0]]))) == pytest.approx(np.array([[3, 7]]))


def test_a_tiff_says_how_large_its_pixels_are(tmp_path):
    image = np.arange(600 * 700 * 3, dtype=np.uint8).reshape(600, 700, 3)
    bands = (image[:256], image[256:512], image[512:])
    write_tiff(tmp_path / "a.tif", bands, shape=image.shape, dtype=image.dtype, pixel_um=(1.25, 2.5))
    read = read_image(tmp_path / "a.tif")
    assert (read.pixels == image).all()
    assert read.pixel_um == pytest.approx((1.25, 2.5), rel=1e-6)
    itk = SimpleITK.ReadImage(str(tmp_path / "a.tif"))
    assert itk.GetSpacing() == pytest.approx((0.00125, 0.0025), rel=1e-5)
    assert (SimpleITK.GetArrayFromImage(itk) == image).all()
