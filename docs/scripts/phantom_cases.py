"""Sections of the phantom as microscopes and knives make them: stains, damage, and mistakes of lists."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlalign import DisplacementField
from atlalign.atlas.atlas import phantom_atlas

SHAPE = (400, 570)  # pixels of 20 µm
Floats = NDArray[np.float32]


class Section(NamedTuple):
    """A section of an animal that is not the atlas.

    Attributes:
        brightness: (H, W) in [0, 1], 0 where there is no tissue.
        labels: (H, W), the regions' ids.
        position_um: Its true position.
    """

    brightness: Floats
    labels: NDArray[np.int64]
    position_um: int

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """Where tissue is."""
        return self.brightness > 0.05


class Case(NamedTuple):
    """A section as it is given to `atlalign register`.

    Attributes:
        title: What is special.
        image: uint8 (H, W) or (H, W, 3).
        cells: The cells of its row in the list, by column.
    """

    title: str
    image: NDArray[np.uint8]
    cells: dict[str, str]


def section_at(position_um: int) -> Section:
    """Return a section of another animal than the atlas, bent as sections are."""
    animal = phantom_atlas(image_shape=SHAPE, seed=7)
    plain = animal.section(position_um)[0].numpy()
    bend = DisplacementField.generate(
        SHAPE, "smooth", seed=position_um, mean_fraction=0, largest_fraction=0.015
    )
    assert animal.annotation is not None
    labels = animal.annotation[round(position_um / 100)].numpy()
    return Section(bend.warp(plain), bend.warp_annotation(labels), position_um)


def bright_field(section: Section) -> NDArray[np.uint8]:
    """Return a brown immunostain: dark tissue on a bright slide."""
    stained = 235 - 170 * section.brightness + _noise(2)
    return _bytes(np.stack([stained, 0.85 * stained + 20, 0.7 * stained + 30], axis=-1))


def nissl(section: Section) -> NDArray[np.uint8]:
    """Return a contrast that differs from region to region, violet on white."""
    of_region = np.random.default_rng(3).uniform(0.25, 0.9, 256)
    depth = np.where(section.tissue, of_region[section.labels % 256] * (0.8 + 0.2 * section.brightness), 0)
    return _bytes(245 - depth[..., None] * np.array([150, 190, 90]) + _noise(3)[..., None])


def fluorescence(section: Section) -> NDArray[np.uint8]:
    """Return bright tissue on a dark ground with haze and uneven light."""
    light = np.linspace(0.6, 1.1, SHAPE[1], dtype=np.float32)
    return _bytes(14 + 190 * section.brightness * light + _noise(3))


def expression(section: Section, regions: tuple[int, ...], density: float) -> NDArray[np.uint8]:
    """Return cells of some regions alone, bright dots on black."""
    random = np.random.default_rng(1)
    y, x = np.nonzero(np.isin(section.labels, regions) & (random.random(SHAPE) < density))
    dots = np.zeros(SHAPE, np.float32)
    dots[y, x] = 230
    return _bytes(dots + np.roll(dots, 1, 0) + np.roll(dots, 1, 1))


def torn(section: Section, gap_px: int = 20) -> Section:
    """Return the section torn in two, the parts 0.4 mm apart."""
    row = SHAPE[0] * 2 // 3
    pieces = section.brightness.copy()
    pieces[row + gap_px :] = section.brightness[row:-gap_px]
    pieces[row : row + gap_px] = 0
    return section._replace(brightness=pieces)


def holed(section: Section) -> Section:
    """Return the section with three holes."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    holes = [(150, 180, 34), (260, 400, 28), (120, 380, 22)]
    kept = np.all([(y - row) ** 2 + (x - column) ** 2 > radius**2 for row, column, radius in holes], axis=0)
    return section._replace(brightness=section.brightness * kept)


def half(section: Section) -> Section:
    """Return the left half."""
    kept = np.arange(SHAPE[1]) < SHAPE[1] // 2
    return section._replace(brightness=section.brightness * kept)


def _turned(image: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    corner = tuple(int(value) for value in image[0, 0])
    return np.asarray(
        Image.fromarray(image).rotate(
            degrees, expand=True, fillcolor=corner, resample=Image.Resampling.BICUBIC
        )
    )


def _noise(deviation: float) -> Floats:
    return np.random.default_rng(0).normal(0, deviation, SHAPE).astype(np.float32)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return values.round().clip(0, 255).astype(np.uint8)


def cases() -> list[Case]:
    """Return all cases, those that go well first."""
    front, middle, back = (section_at(position) for position in (5000, 6000, 8000))

    def case(title: str, image: NDArray[np.uint8], section: Section, **cells: str) -> Case:
        return Case(title, image, {"p": str(section.position_um), **cells})

    return [
        case("immunostain", bright_field(middle), middle),
        case("Nissl", nissl(back), back),
        case("fluorescence", fluorescence(front), front),
        case("turned by 130°", _turned(bright_field(back), 130), back),
        case("left half", bright_field(half(middle)), middle, hemisphere="left"),
        case("holes", bright_field(holed(middle)), middle),
        case("torn, 0.4 mm apart", bright_field(torn(back)), back),
        case("list 1 mm off", bright_field(back), back, p="9000"),
        case("pixel size 30 % too large", fluorescence(middle), middle, pixel_size_um="26"),
        case("expression alone", expression(back, (4, 13, 15), 0.03), back, background="dark"),
        case(
            "a handful of cells",
            expression(back, (15,), 0.01),
            back,
            background="dark",
            pixel_size_um="20",
            one_section="yes",
        ),
        case("mirrored, which cannot be seen", fluorescence(back)[:, ::-1], back),
    ]


def write_cases(folder: Path, write: Callable[[], list[Case]] = cases) -> dict[str, str]:
    """Write the images and their list, and return the titles by the names of sections."""
    folder.mkdir(parents=True, exist_ok=True)
    titles, rows = {}, []
    for number, case in enumerate(write(), start=1):
        name = f"case_{number:02d}"
        Image.fromarray(case.image).save(folder / f"{name}.png")
        titles[name] = case.title
        rows.append({"filename": f"{name}.png", **case.cells})
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
    (folder / "sections.csv").write_text("\n".join(lines), encoding="utf-8")
    return titles
