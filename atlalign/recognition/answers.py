"""The network's answers to views of a section."""

from dataclasses import dataclass

import numpy as np
import torch

from atlalign.atlas.planes import Matrix, homogeneous, invert_affine
from atlalign.networks.plane_locator import PlaneLocatorNet
from atlalign.recognition.views import Grey, cut_views

SIDES = ("whole", "left", "right")
"""The parts of the brain that a section may show, by the index of the network's answer."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A proposed plane of a section.

    Attributes:
        matrix: (3, 3), maps (x, y, 1) in pixels of the image to (AP, DV, ML) in mm.
        side: Whether it shows a whole section or one half: one of `SIDES`.
        error_mm: The network's expected error, combined with the spread of its answers.
    """

    matrix: Matrix
    side: str
    error_mm: float


@torch.inference_mode()
def answers_to(network: PlaneLocatorNet, section: Grey, matrices: list[Matrix]) -> list[Proposal]:
    """Return the network's answer to each view."""
    weight = next(network.parameters())
    views = cut_views(section, matrices, network.view_px).to(weight)
    located = network(views.contiguous(memory_format=torch.channels_last))
    found = []
    for matrix, planes, logits, log_error in zip(matrices, *located, strict=True):
        to_view = invert_affine(matrix)
        centre, right, down = planes.double().cpu().numpy()
        to_mm = np.column_stack([right, down, centre]) @ homogeneous(to_view)
        found.append(Proposal(to_mm, SIDES[int(logits.argmax())], float(log_error.exp())))
    return found


def upright_frame(matrix: Matrix) -> Matrix:
    """Return the directions (3, 2), right and down, of an upright view on a plane.

    They are the atlas's own axes projected onto the plane: ML and DV for a coronal plane, ML and AP for a horizontal
    one, AP and DV for a sagittal one.
    """
    normal = np.cross(matrix[:, 0], matrix[:, 1])
    normal = normal / np.linalg.norm(normal)
    right_axis, down_axis = {0: (2, 1), 1: (2, 0), 2: (0, 1)}[int(np.abs(normal).argmax())]
    right = np.eye(3)[right_axis] - normal[right_axis] * normal
    right = right / np.linalg.norm(right)
    down = np.eye(3)[down_axis] - normal[down_axis] * normal
    down = down - (down @ right) * right
    return np.column_stack([right, down / np.linalg.norm(down)])
