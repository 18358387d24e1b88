"""Judgements of the network that locates sections: the upright direction, and whether pieces form one section."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.planes import Matrix
from atlalign.models import load_model
from atlalign.registration.section import Section
from atlalign.recognition.answers import Proposal, answers_to, upright_frame
from atlalign.recognition.views import view_matrix

SHIPPED_LOCATOR = Path(__file__).parents[1] / "weights" / "locator.safetensors"
"""The network that comes with the package."""
_TURNS = tuple(range(0, 360, 30))
_BRIGHT = 99  # percentile of the tissue
# Of whole sections the least agreement was 0.98 of 1, and the largest error 0.77 mm. Sagittal ones come near that.
_AGREE, _SURE_MM = 0.93, 0.8


class BrainJudge:
    """Judges coronal sections of the mouse brain: images (h, w), bright on a dark background, with their masks."""

    def __init__(self) -> None:
        self._network: Any = load_model(SHIPPED_LOCATOR)

    def turn(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float | None:
        """Return the counter-clockwise turn in degrees that makes a section upright.

        It is None if the answers to turned views disagree, or the network is uncertain about all of them.
        """
        found = self._answers(image, mask)
        turns = np.deg2rad([_turn(answer) for answer in found])
        weights = np.array([answer.error_mm for answer in found]) ** -2.0
        mean = complex((weights * np.exp(1j * turns)).sum() / weights.sum())
        is_sure = abs(mean) >= _AGREE and _least_error_mm(found) <= _SURE_MM
        return float(np.degrees(np.angle(mean))) if is_sure else None

    def strangeness(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float:
        """Return the network's expected error in mm for the tissue as one section."""
        return _least_error_mm(self._answers(image, mask))

    @torch.inference_mode()
    def _answers(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> list[Proposal]:
        y, x = np.nonzero(mask)
        points = np.stack([x, y], axis=1).astype(float)
        centre = points.mean(axis=0)
        rms = float(np.sqrt(np.square(points - centre).sum(axis=1).mean()))
        views = [view_matrix(centre, rms, turn) for turn in _TURNS]
        return answers_to(self._network, _shown(image, mask), views)


class _Image(NamedTuple):
    """A grey image (h, w) with the map to its own pixels."""

    grey: Tensor
    to_grey: Matrix = np.eye(2, 3)


def _shown(image: NDArray[Any], mask: NDArray[np.bool_]) -> _Image:
    bright = max(float(np.percentile(image[mask], _BRIGHT)), 1e-6)
    grey = np.where(mask, image / bright, 0).clip(0, 1).astype(np.float32)
    return _Image(torch.from_numpy(grey))


def _least_error_mm(found: list[Proposal]) -> float:
    return min(answer.error_mm for answer in found)


def _turn(answer: Proposal) -> float:
    """Return the counter-clockwise turn of an image at which the direction that is down on its plane points down."""
    x, y = upright_frame(answer.matrix)[:, 1] @ answer.matrix[:, :2]
    return float(np.degrees(np.arctan2(y, x))) - 90
