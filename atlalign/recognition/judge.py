"""Judgements of the network that locates sections: the upright direction, and whether pieces form one section."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.planes import Matrix
from atlalign.models import load_model
from atlalign.recognition.answers import Proposal, answers_to, upright_frame
from atlalign.recognition.views import view_matrix

SHIPPED_LOCATOR = Path(__file__).parents[1] / "weights" / "locator.safetensors"
"""The network that comes with the package."""
_TURNS = tuple(range(0, 360, 30))
_BRIGHT = 99  # percentile of the tissue
# Of whole sections the least agreement was 0.98 of 1, and the largest error 0.77 mm. Sagittal ones come near that.
_AGREE, _SURE_MM = 0.93, 0.8


class Judgement(NamedTuple):
    """The network's opinion of tissue as one section, from views of it at several turns.

    Attributes:
        side: The part of the brain that it shows: one of `SIDES`.
        turn: The counter-clockwise turn in degrees that makes it upright.
        agreement: How well the views agree on the turn, from 0 to 1.
        error_mm: The smallest error that the network expects in any view; large for tissue that is no section.
    """

    side: str
    turn: float
    agreement: float
    error_mm: float

    @property
    def is_sure(self) -> bool:
        """Whether the tissue is a section, or one half of it, beyond doubt."""
        return self.agreement >= _AGREE and self.error_mm <= _SURE_MM


class BrainJudge:
    """Judges coronal sections of the mouse brain: images (h, w), bright on a dark background, with their masks."""

    def __init__(self) -> None:
        self._network: Any = load_model(SHIPPED_LOCATOR)

    def judge(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> Judgement:
        """Return the opinion of the tissue in a mask as one section."""
        found = self._answers(image, mask)
        turns = np.deg2rad([_turn(answer) for answer in found])
        weights = np.array([answer.error_mm for answer in found]) ** -2.0
        mean = complex((weights * np.exp(1j * turns)).sum() / weights.sum())
        best = min(found, key=lambda answer: answer.error_mm)
        return Judgement(best.side, float(np.degrees(np.angle(mean))), abs(mean), best.error_mm)

    def turn(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float | None:
        """Return the counter-clockwise turn in degrees that makes a section upright; None if there is doubt."""
        found = self.judge(image, mask)
        return found.turn if found.is_sure else None

    def strangeness(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float:
        """Return the network's expected error in mm for the tissue as one section."""
        return self.judge(image, mask).error_mm

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


def _turn(answer: Proposal) -> float:
    """Return the counter-clockwise turn of an image at which the direction that is down on its plane points down."""
    x, y = upright_frame(answer.matrix)[:, 1] @ answer.matrix[:, :2]
    return float(np.degrees(np.arctan2(y, x))) - 90
