"""Wrong results of real sections, each repaired in the page by at most five actions.

A section warped by a known field has a known truth: the registration of the section itself, then that field.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atlalign.atlas.planes import Anchoring
from atlalign.cli import main
from atlalign.registration.displacement import Displacement
from atlalign.registration.record import FORWARD, read_record, write_record
from atlalign.registration.transform import SectionTransform
from atlalign.review.plane_settings import PlaneSettings
from tests.browser import running_browser
from tests.review.conftest import served
from tests.review.test_page import Page

SECTIONS = (4, 6, 8, 10, 12, 14)
WARP_UM = 250.0
SIZE = (670, 1024)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from running_browser(tmp_path_factory.mktemp("profile"))


def warp_px(y, x):
    """Return a smooth known displacement in pixels: section(p) of the warped image is that of p + this."""
    amplitude = WARP_UM / 13
    return (
        amplitude * np.sin(2 * np.pi * y / 500) * np.cos(2 * np.pi * x / 900),
        amplitude * np.cos(2 * np.pi * x / 700),
    )


def unwarped(points):
    """Return where points (N, 2) of the section lie in the warped image."""
    found = points.copy()
    for _ in range(30):
        dx, dy = warp_px(found[:, 1], found[:, 0])
        found = points - np.stack([dx, dy], axis=1)
    return found


@pytest.fixture(scope="module")
def cases(test_data, tmp_path_factory) -> Path:
    """Six sections and their warped copies, registered; of the latter also from wrong planes."""
    from scipy.ndimage import map_coordinates

    folder = tmp_path_factory.mktemp("cases")
    listed = json.loads((test_data / "sections" / "sections.json").read_text())
    rows, wrong = [], []
    for kind, number in zip(("plane", "plane", "tilt", "tilt", "local", "local"), SECTIONS, strict=True):
        entry = listed["slices"][number]
        pixels = np.asarray(Image.open(test_data / "sections" / Path(entry["filename"]).name).convert("RGB"))
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(float)
        dx, dy = warp_px(y, x)
        warped = [
            map_coordinates(pixels[..., c], [y + dy, x + dx], order=1, mode="nearest") for c in range(3)
        ]
        name = f"{kind}{number}"
        Image.fromarray(pixels).save(folder / f"true_{name}.png")
        Image.fromarray(np.stack(warped, axis=-1)).save(folder / f"{name}.png")
        anchoring = Anchoring(np.array(entry["anchoring"]).reshape(3, 3), SIZE)
        settings = PlaneSettings.of(anchoring)
        off = {
            "plane": {"position_um": settings.position_um + 500},
            "tilt": {"tilt_dv_deg": settings.tilt_dv_deg + 6},
        }
        moved = PlaneSettings(**(settings.to_json() | off.get(kind, {}))).anchoring(anchoring)
        size = {"height": SIZE[0], "width": SIZE[1]}
        rows += [
            {"filename": f"{prefix}{name}.png", "anchoring": anchoring.to_json(), "nr": len(rows) + k, **size}
            for k, prefix in enumerate(("true_", ""), start=1)
        ]
        wrong.append({"filename": f"{name}.png", "anchoring": moved.to_json(), "nr": number, **size})
    for out, entries in (("right", rows), ("wrong", wrong)):
        (folder / f"{out}.json").write_text(json.dumps({"name": "", "target": "", "slices": entries}))
        atlas = ["--atlas", str(test_data / "allen_ccf_25um.h5"), "--workers", "1"]
        assert main(["register", str(folder / f"{out}.json"), *atlas, "--out", str(folder / out)]) == 0
    return folder


def error_um(folder: Path, truth: Path) -> float:
    """Return the mean distance of a transform of a warped section from the truth, on the tissue."""
    found, true = SectionTransform.load(folder), SectionTransform.load(truth)
    grid = true.forward.grid
    points = grid.to_mm(np.argwhere(tissue(truth, grid.shape))[:, ::-1].astype(float))
    in_plane = found.plane.from_atlas(true.plane.to_atlas(points))[0]
    apart = found.to_section(in_plane) - unwarped(true.to_section(points))
    return float(np.linalg.norm(apart * np.array(true.section.pixel_um), axis=1).mean())


def tissue(folder: Path, shape) -> np.ndarray:
    from atlalign.io.images import read_labels

    labels = read_labels(folder / "reference_labels.tif")
    rows, columns = (
        np.linspace(0, old - 1, new).round().astype(int) for old, new in zip(labels.shape, shape, strict=True)
    )
    return labels[rows[:, None], columns] > 0


def apart_um(folder: Path, truth: Path) -> float:
    """Return how far the plane of results is from the true one, on the tissue."""
    found, true = SectionTransform.load(folder), SectionTransform.load(truth)
    points = true.forward.grid.to_mm(
        np.argwhere(tissue(truth, true.forward.grid.shape))[:, ::-1].astype(float)
    )
    return float(np.abs(found.plane.from_atlas(true.plane.to_atlas(points))[1]).mean())


def bend(folder: Path, at_mm, um: float) -> None:
    """Let the forward field of results err locally."""
    transform = SectionTransform.load(folder)
    grid = transform.forward.grid
    y, x = np.mgrid[: grid.shape[0], : grid.shape[1]]
    points = grid.to_mm(np.stack([x, y], -1).reshape(-1, 2).astype(float)).reshape(*grid.shape, 2)
    bump = um / 1000 * np.exp(-(((points - at_mm) / 1.2) ** 2).sum(-1))
    mm = transform.forward.mm.clone()
    mm[1] += torch.from_numpy(bump).float()
    record = read_record(folder)
    Displacement(grid, mm).write(folder / FORWARD)
    record["files"] = {name: state for name, state in record["files"].items() if name != FORWARD}
    write_record(folder, record)


def applied(page: Page) -> None:
    page.saved()
    former = page.run("return review.app.open.record")
    page.click("#apply")
    page.wait(f"review.app.open.record !== '{former}' && review.view.lines", 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plane4", "plane6", "tilt8", "tilt10"])
def test_a_wrong_plane_is_repaired_by_its_slider(cases, driver, name, tmp_path):
    out = Path(shutil.copytree(cases / "wrong", tmp_path / "out"))
    true = cases / "right" / f"true_{name}"
    undisturbed = error_um(cases / "right" / name, true)
    assert apart_um(out / name, true) > 100
    with served(out) as address:
        page = Page(driver, address)
        page.open(name)
        slider, off = ("position_um", 500) if "plane" in name else ("tilt_dv_deg", 6)
        wanted = page.run("return review.app.open.plane[arguments[0]]", slider) - off
        page.slide(slider, wanted)  # one
        page.wait("review.app.open.correction.moves_plane")
        applied(page)  # two
    print(
        name, "error", undisturbed, "->", error_um(out / name, true), "plane off", apart_um(out / name, true)
    )
    assert apart_um(out / name, true) < 15
    assert error_um(out / name, true) < 1.2 * undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local12", "local14"])
def test_a_local_error_is_repaired_by_points(cases, driver, name, tmp_path):
    out = Path(shutil.copytree(cases / "wrong", tmp_path / "out"))
    true = SectionTransform.load(cases / "right" / f"true_{name}")
    undisturbed = error_um(out / name, cases / "right" / f"true_{name}")
    labelled = np.argwhere(tissue(cases / "right" / f"true_{name}", true.forward.grid.shape))[:, ::-1]
    middle = true.forward.grid.to_mm(np.quantile(labelled, (0.5,), axis=0) * (0.75, 1))[0]
    bend(out / name, middle, 400)
    disturbed = error_um(out / name, cases / "right" / f"true_{name}")
    assert disturbed > 1.1 * undisturbed
    with served(out) as address:
        page = Page(driver, address)
        page.open(name)
        start = page.outline_near(
            (SectionTransform.load(out / name).to_section(middle[None])[0] + 0.5).tolist()
        )
        ml_dv = page.run(
            "const l = review.view.lines, k = l.closest(arguments[0], 1);"
            "return [l.reference[2 * k], l.reference[2 * k + 1]]",
            start,
        )
        place_mm = (np.array(ml_dv) - true.plane.matrix[[2, 1], 2]) / 1000
        end = unwarped(true.to_section(place_mm[None]))[0] + 0.5
        page.drag(start, end.tolist())  # one
        page.saved()
        applied(page)  # two
    repaired = error_um(out / name, cases / "right" / f"true_{name}")
    print(name, undisturbed, disturbed, repaired)
    assert repaired < 1.2 * undisturbed
