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
from atlalign.io.pieces import several_sections
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


@pytest.mark.parametrize("gap_um", [500, 2000, 5000])
def test_parts_of_one_section_are_one_section_at_any_distance(section, gap_um):
    gap = np.full((section.shape[0], round(gap_um / PIXEL_UM)), 10.0)
    middle = section.shape[1] // 2
    for at in (middle, round(0.7 * section.shape[1])):
        apart = np.concatenate([section[:, :at], gap, section[:, at:]], axis=1)
        apart = np.pad(apart, 20, constant_values=10)
        for pixel_um in (PIXEL_UM, None):
            assert several_sections(apart, is_color=False, pixel_um=pixel_um) == 1


def test_real_sections_are_one_each_whatever_their_stain(test_data):
    from atlalign.io.images import read_image

    folders = {"sections": "*_s[01][0-5]4.png", "ish": "*_s0[0-3]?1.jpg", "rat": "section.tif"}
    paths = [
        path for folder, pattern in folders.items() for path in sorted((test_data / folder).glob(pattern))
    ]
    assert len(paths) > 7
    for path in paths:
        pixels = read_image(path).pixels
        pixels = pixels[::2, ::2]
        assert several_sections(pixels, is_color=pixels.ndim == 3) == 1, path.name


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
