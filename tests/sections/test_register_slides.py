"""Slides given to `atlalign register`: a scanner's file is separated, and no other image of two sections passes."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.models import save_model
from atlalign.networks import LocalUNet
from atlalign.registration import Job, Options, atlas_recipe, register_section

SHAPE = (32, 48)
PIXEL_UM = 50.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    places = ("start", "downsample", "middle", "upsample", "end")
    network = LocalUNet(**{f"{place}_filters": (4,) for place in places})
    return save_model(network, tmp_path_factory.mktemp("model") / "local.pt")


@pytest.fixture(scope="module")
def section() -> np.ndarray:
    """A section of the phantom, bright on a dark ground."""
    atlas = phantom_atlas(image_shape=(160, 228), spacing_um=PIXEL_UM)
    return (atlas.section(6000)[0] * 200).numpy() + 10


def write_image(path: Path, *sections: np.ndarray, gap: int = 40) -> Path:
    padded = [np.pad(section, gap // 2, constant_values=10) for section in sections]
    image = np.concatenate(padded, axis=1).astype(np.uint8)
    tifffile.imwrite(
        path, image, resolution=(1e4 / PIXEL_UM,) * 2, resolutionunit="CENTIMETER", software="atlalign"
    )
    return path


def test_two_sections_in_one_image_are_named_with_the_command_that_separates_them(section, model, tmp_path):
    path = write_image(tmp_path / "two.tif", section, section[:, ::-1])
    recipe = atlas_recipe("phantom", model=model, image_shape=SHAPE)
    with pytest.raises(InputError, match=r"two\.tif: .* found 2.*atlalign sections .*two\.tif --out"):
        register_section(Job(path, 6000.0), recipe)
    recipe = atlas_recipe("phantom", model=model, image_shape=SHAPE, options=Options(one_section=True))
    register_section(Job(path, 6000.0), recipe)


def test_the_sections_of_a_scanners_file_are_registered_at_the_positions_of_their_list(
    section, model, tmp_path
):
    slide, out = write_image(tmp_path / "slide.qptiff", section, section, section), tmp_path / "out"
    command = ["register", str(slide), "--out", str(out), "--atlas", "phantom", "--model", str(model)]
    command += ["--image-shape", "32", "48"]
    assert main(["sections", str(slide), "--out", str(out / "slides")]) == 0
    listing = out / "slides" / "sections.csv"
    text = listing.read_text(encoding="utf-8").replace(".ome.tif,,", ".ome.tif,6000,")
    listing.write_text(text, encoding="utf-8")
    assert main(command) == 0
    with (out / "registrations.csv").open(encoding="utf-8") as file:
        assert [row["section"] for row in csv.DictReader(file)] == [
            f"slide_s00{number}" for number in (1, 2, 3)
        ]


def test_a_scanners_file_of_one_section_is_registered_itself(section, model, tmp_path):
    scan, out = write_image(tmp_path / "scan.qptiff", section), tmp_path / "out"
    command = ["register", str(scan), "--out", str(out), "--atlas", "phantom", "--model", str(model)]
    assert main([*command, "--image-shape", "32", "48", "--position", "6000"]) == 0
    assert (out / "scan" / "transform.json").is_file()
    assert not (out / "slides").exists()


def test_a_damaged_slide_does_not_end_the_batch(section, model, tmp_path, capsys):
    scan, out = write_image(tmp_path / "scan.qptiff", section), tmp_path / "out"
    (tmp_path / "bad.svs").write_bytes(b"II*\0 no image")
    command = ["register", str(tmp_path / "bad.svs"), str(scan), "--out", str(out), "--atlas", "phantom"]
    assert main([*command, "--model", str(model), "--image-shape", "32", "48", "--position", "6000"]) == 1
    assert "bad.svs" in capsys.readouterr().err
    assert (out / "scan" / "transform.json").is_file()


def _empty(kind: str) -> np.ndarray:
    """Return a slide of 18 × 26 mm without a section, bright with a little noise."""
    random = np.random.default_rng(0)
    image = 230 + random.normal(0, 1.5, (360, 520))
    y, x = np.indices(image.shape)
    if kind == "noise":
        return random.uniform(0, 255, image.shape)
    if kind == "label":
        image[20:340, 20:140] = 190
    elif kind == "coverslip":
        image[:, 60:62] = 150
    elif kind == "dust":
        for top, left, radius in random.uniform((10, 10, 1), (350, 510, 3), (60, 3)):
            image[np.hypot(y - top, x - left) < radius] = 60
    return image


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "nothing but background"),
        ("noise", "nothing but background"),
        ("label", "1 rectangular piece, such as a label"),
        ("coverslip", "no tissue"),
        ("dust", "small pieces, such as dust"),
    ],
)
def test_an_image_without_a_section_says_what_it_shows(kind, said, model, tmp_path):
    path = tmp_path / f"{kind}.tif"
    tifffile.imwrite(path, _empty(kind).clip(0, 255).astype(np.uint8))
    recipe = atlas_recipe("phantom", model=model, image_shape=(160, 228))
    with pytest.raises(InputError, match=rf"{kind}\.tif: expected a section, found .*{said}"):
        register_section(Job(path, 6000.0), recipe)


def test_stacked_sections_are_noticed_whether_or_not_they_are_anchored(test_data, model, tmp_path):
    from atlalign.atlas.planes import Anchoring
    from atlalign.io.images import read_image

    names = ("641_2002_2568_NM01_s049.png", "641_2002_2568_NM01_s109.png")
    both = np.concatenate([read_image(test_data / "sections" / name).pixels[::3, ::3] for name in names])
    path = tmp_path / "two sections.tif"
    tifffile.imwrite(path, both)
    anchoring = Anchoring(np.array([[0, 0, 0], [11400, 0, 0], [0, 0, -8000.0]]), both.shape[:2])
    recipe = atlas_recipe("phantom", model=model, image_shape=(160, 228))
    for job in (Job(path, 6000.0), Job(path, 6000.0, anchoring=anchoring)):
        with pytest.raises(
            InputError, match=r"found 2.*atlalign sections '.*two sections\.tif' --pixel-size"
        ):
            register_section(job, recipe)
