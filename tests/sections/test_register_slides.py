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
