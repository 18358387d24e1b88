"""Landmarks of a data set: points that are known in both images of a sample, read from a table."""

import csv
import math
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

_COLUMNS = ("reference_x", "reference_y", "moving_x", "moving_y")


class Landmarks(NamedTuple):
    """Points that are known in both images, by the number of a sample or by an image_id.

    `points` are (N, 4) each: x and y in the reference, x and y in the moving image, in pixels.
    """

    key: str
    points: dict[int, Tensor]

    def of(self, sample: int, image_id: int) -> tuple[Tensor, Tensor] | None:
        """Return the points (1, N, 2) in the reference and in the moving image, None if the sample has none."""
        found = self.points.get(sample if self.key == "sample" else image_id)
        return None if found is None else (found[None, :, :2], found[None, :, 2:])


def landmarks_of(
    path: str | Path, dataset: RegistrationDataset, samples: NDArray[np.int64], *, split: str
) -> Landmarks:
    """Return the landmarks of a data set, in pixels of its working size.

    Args:
        path: A table as `read_landmarks` takes it, in pixels of the images as they are in the data set's file.
        dataset: All samples of the file.
        samples: The numbers of those that are measured.
        split: What they are called.

    Raises:
        InputError: If the table is none, names samples that are not there, one image_id for several samples, or none
            of those that are measured.
    """
    landmarks = read_landmarks(path, _scale(dataset))
    ids = np.arange(len(dataset)) if landmarks.key == "sample" else dataset.image_ids.numpy()
    unknown = sorted(set(landmarks.points) - set(ids.tolist()))
    if unknown:
        raise InputError(f"landmarks: {dataset.path} has no {landmarks.key} {unknown[0]}")
    named = ids[np.isin(ids, list(landmarks.points))]
    if len(np.unique(named)) < len(named):
        raise InputError(
            "landmarks: an image_id stands for several samples, which are deformed each in its own way: name them by "
            "the column sample"
        )
    if not np.isin(ids[samples], named).any():
        raise InputError(f"landmarks: none of them lies in the samples of split={split}")
    return landmarks


def _scale(dataset: RegistrationDataset) -> tuple[float, float]:
    """Return by how much x and y grow from the file's images to the working size."""
    file_shape, shape = schema.summarize(dataset.path).image_shape, dataset.atlas.image_shape
    along_y, along_x = ((new - 1) / (old - 1) for old, new in zip(file_shape, shape, strict=True))
    return along_x, along_y


def read_landmarks(path: str | Path, scale: tuple[float, float] = (1.0, 1.0)) -> Landmarks:
    """Return the landmarks in a CSV file.

    Args:
        path: A table with the columns sample or image_id, reference_x, reference_y, moving_x, moving_y.
        scale: What x and y are multiplied by.

    Raises:
        InputError: If the file cannot be read, a column is missing, or a value is no number.
    """
    path = Path(path).expanduser()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"landmarks: {path} cannot be read: {error}") from error
    key = next((name for name in ("sample", "image_id") if name in columns), None)
    missing = [name for name in _COLUMNS if name not in columns]
    if key is None or missing:
        raise InputError(
            f"landmarks: {path}: expected the columns sample (or image_id), {', '.join(_COLUMNS)}; "
            f"found {', '.join(columns) or 'none'}"
        )
    points = defaultdict(list)
    for line, row in enumerate(rows, start=2):
        try:
            number, values = int(row[key]), [float(row[name]) for name in _COLUMNS]
        except (TypeError, ValueError) as error:
            raise InputError(f"landmarks: {path}, line {line}: expected numbers, {error}") from error
        if not all(map(math.isfinite, values)):
            raise InputError(f"landmarks: {path}, line {line}: expected finite numbers, found {values}")
        points[number].append(values)
    size = torch.tensor([*scale, *scale])
    return Landmarks(key, {number: torch.tensor(values) * size for number, values in points.items()})
