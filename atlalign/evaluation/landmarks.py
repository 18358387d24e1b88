"""Landmarks of a data set: points known in both images of a sample, read from a table."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.data import schema
from atlalign.data.dataset import RegistrationDataset
from atlalign.errors import InputError
from atlalign.io.cells import number, whole_number
from atlalign.io.tables import read_table

_COLUMNS = ("reference_x", "reference_y", "moving_x", "moving_y")


class Landmarks(NamedTuple):
    """Points known in both images, by sample index or by image_id.

    Each array in `points` is (N, 4): x and y in the reference, x and y in the moving image, in pixels.
    """

    key: str
    points: dict[int, Tensor]

    def of(self, sample: int, image_id: int) -> tuple[Tensor, Tensor] | None:
        """Return the points (1, N, 2) in the reference and in the moving image, or None if the sample has none."""
        found = self.points.get(sample if self.key == "sample" else image_id)
        return None if found is None else (found[None, :, :2], found[None, :, 2:])


def landmarks_of(
    path: str | Path, dataset: RegistrationDataset, samples: NDArray[np.int64], *, split: str
) -> Landmarks:
    """Return the landmarks of a data set, in pixels of its working size.

    Args:
        path: A table that `read_landmarks` accepts, in pixels of the images in the data set's file.
        dataset: All samples of the file.
        samples: The indexes of the measured samples.
        split: The name of the measured split.

    Raises:
        InputError: If the table is invalid, names samples that do not exist, identifies several samples by one
            image_id, or has landmarks in none of the measured samples.
    """
    landmarks = read_landmarks(path, _scale(dataset))
    ids = np.arange(len(dataset)) if landmarks.key == "sample" else dataset.image_ids.numpy()
    unknown = sorted(set(landmarks.points) - set(ids.tolist()))
    if unknown:
        raise InputError(f"landmarks: {dataset.path} has no {landmarks.key} {unknown[0]}")
    named = ids[np.isin(ids, list(landmarks.points))]
    if len(np.unique(named)) < len(named):
        raise InputError(
            "landmarks: expected one sample for each image_id, got several with different deformations: identify "
            "samples by a column 'sample' instead"
        )
    if not np.isin(ids[samples], named).any():
        raise InputError(f"landmarks: expected landmarks in the samples of split={split}, got none")
    return landmarks


def _scale(dataset: RegistrationDataset) -> tuple[float, float]:
    """Return the factors along x and y from the file's images to the working size."""
    file_shape, shape = schema.summarize(dataset.path).image_shape, dataset.atlas.image_shape
    along_y, along_x = ((new - 1) / (old - 1) for old, new in zip(file_shape, shape, strict=True))
    return along_x, along_y


def read_landmarks(path: str | Path, scale: tuple[float, float] = (1.0, 1.0)) -> Landmarks:
    """Return the landmarks of a table.

    Args:
        path: A CSV file that `read_table` accepts, with the columns sample or image_id, reference_x, reference_y,
            moving_x and moving_y.
        scale: The factors by which x and y are multiplied.

    Raises:
        InputError: If the file is not such a table, or a value is not a number.
    """
    try:
        return _read(Path(path).expanduser(), scale)
    except InputError as error:
        raise InputError(f"landmarks: {error}") from error


def _read(path: Path, scale: tuple[float, float]) -> Landmarks:
    table = read_table(path)
    key = "image_id" if "image_id" in table.names and "sample" not in table.names else "sample"
    points = defaultdict(list)
    for line, cells in table.records((key, *_COLUMNS), hint=": image_id may replace sample"):
        where = f"{path}, line {line}"
        values = [float(number(cells[name], f"{where}, {name}")) for name in _COLUMNS]
        points[whole_number(cells[key], f"{where}, {key}")].append(values)
    size = torch.tensor([*scale, *scale])
    return Landmarks(key, {owner: torch.tensor(rows) * size for owner, rows in points.items()})
