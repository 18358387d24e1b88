"""Proposed planes of a section, from the network's answers to several views of it."""

import numpy as np
import torch

from atlalign.atlas.planes import Matrix, Point, homogeneous, invert_affine
from atlalign.localization.views import SeenTissue
from atlalign.localization.volume import AtlasVolume
from atlalign.networks.plane_locator import PlaneLocatorNet
from atlalign.recognition.answers import Proposal, answers_to, upright_frame
from atlalign.recognition.views import HALF_VIEW, view_matrix
from atlalign.registration.section import Section

_FIRST_TURNS = tuple(range(0, 360, 45))
_APART_DEG = 60.0  # answers whose planes differ by more are different answers
# Turn and size of the last views, which follow the first three.
_LAST_VIEWS = (
    (0.0, 1.0), (-12.0, 0.95), (12.0, 1.05), (-6.0, 1.1), (6.0, 0.9), (9.0, 1.0), (-9.0, 1.0), (0.0, 0.87), (0.0, 1.13)
)  # fmt: skip
_SCAN_PX = 96


@torch.inference_mode()
def propose(
    network: PlaneLocatorNet, volume: AtlasVolume, section: Section, tissue: SeenTissue
) -> list[Proposal]:
    """Return the proposed planes, the likeliest first: at most two, which differ in the turn of the image."""
    turns = [view_matrix(tissue.centre, tissue.rms, turn) for turn in _FIRST_TURNS]
    first = answers_to(network, section, turns)
    best = min(first, key=lambda answer: answer.error_mm)
    other = [answer for answer in first if abs(_turn(answer.matrix, best.matrix)) > _APART_DEG]
    found = [best, *sorted(other, key=lambda answer: answer.error_mm)[:1]]
    return [_settled(network, volume, section, tissue, proposal) for proposal in found]


def _settled(
    network: PlaneLocatorNet, volume: AtlasVolume, section: Section, tissue: SeenTissue, first: Proposal
) -> Proposal:
    """Return the answer to upright views that are centred like the atlas at the previous proposal."""
    proposal = first
    for views in (_LAST_VIEWS[:3], _LAST_VIEWS):
        frame = _upright_view(volume, proposal, tissue)
        seen = [_varied(frame, turn, size) for turn, size in views]
        answers = answers_to(network, section, seen)
        matrix = np.median([answer.matrix for answer in answers], axis=0)
        centre = (*tissue.centre, 1.0)
        spread = np.std([answer.matrix @ centre for answer in answers], axis=0)
        error = float(np.hypot(np.mean([answer.error_mm for answer in answers]), np.linalg.norm(spread)))
        sides = [answer.side for answer in answers]
        proposal = Proposal(matrix, max(sides, key=sides.count), error)
    return proposal


def _turn(matrix: Matrix, other: Matrix) -> float:
    """Return the angle in degrees between the image's rows in two answers."""
    first, second = matrix[:, 0], other[:, 0]
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    cosine = first @ second / max(lengths, 1e-9)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _upright_view(volume: AtlasVolume, proposal: Proposal, tissue: SeenTissue) -> Matrix:
    """Return the map (2, 3) of the view that is upright and shows tissue as the atlas does on the proposed plane."""
    frame = upright_frame(proposal.matrix)
    origin = proposal.matrix @ (*tissue.centre, 1.0)
    centre, rms = _tissue_on_plane(volume, proposal.side, origin, frame)
    # From pixels to mm of the frame.
    linear = frame.T @ proposal.matrix[:, :2]
    to_mm = np.column_stack([linear, frame.T @ (proposal.matrix[:, 2] - origin)])
    view = np.column_stack([np.eye(2) * HALF_VIEW * rms, centre])
    return np.asarray(invert_affine(to_mm) @ homogeneous(view))


def _tissue_on_plane(volume: AtlasVolume, side: str, origin: Point, frame: Matrix) -> tuple[Point, float]:
    """Return the centre of the atlas's tissue on a plane and its root mean square radius, in mm of the frame."""
    reach = 0.7 * max(volume.extent_mm)
    ticks = torch.linspace(-reach, reach, _SCAN_PX)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = torch.stack([x, y], -1)
    points = torch.from_numpy(origin).float() + grid @ torch.from_numpy(frame).float().T
    _, labels = volume.at(points)
    mask = labels > 0
    if side != "whole":
        right = points[..., 2] > volume.centre_mm[2]
        mask &= right if side == "right" else ~right
    if mask.sum() < 3:
        return np.zeros(2), reach / 3
    seen = grid[mask]
    centre = seen.mean(0)
    rms = float((seen - centre).square().sum(-1).mean().sqrt())
    return centre.double().numpy(), max(rms, 0.1)


def _varied(view: Matrix, degrees: float, size: float) -> Matrix:
    return np.asarray(view @ homogeneous(view_matrix(np.zeros(2), size / HALF_VIEW, degrees)))
