"""Search for the plane of a section near a plane that the user has set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.io.images import one_channel, open_channels
from atlalign.localization.fit import Frame, Lie
from atlalign.localization.located import anchoring_of, matrix_of
from atlalign.localization.search import Search
from atlalign.localization.views import seen_tissue
from atlalign.localization.volume import COLUMNS_PX, AtlasVolume, width_um
from atlalign.models import load_model
from atlalign.recognition.answers import Proposal
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.section import Section, read_section

_ERROR_MM = 0.8  # of a plane that the user sets by eye
_STEPS = np.arange(-5.0, 6.0)  # half a millimetre in a mouse brain
_ROWS_PX = 160
_CLEARLY = 0.01  # of likeness: a smaller gain is noise


class Nearby(NamedTuple):
    """The result of a search near a plane.

    Attributes:
        anchoring: The section's anchoring; the initial one if no plane nearby fits clearly better.
        likeness: The likeness of the registered section to this plane.
        likeness_before: The likeness to the initial plane.
    """

    anchoring: Anchoring
    likeness: float
    likeness_before: float


class NearbySearch:
    """Searches an atlas near planes that the user has set; unlike `Locator`, it needs no network for proposals.

    Args:
        atlas: The atlas with region ids.
        registration: The network that registers sections to planes; None for the one that comes with the package.

    Raises:
        InputError: If the atlas has no region ids.
    """

    def __init__(self, atlas: Atlas, registration: nn.Module | str | Path | None = None) -> None:
        voxel_um = width_um(atlas) / COLUMNS_PX
        self._volume = AtlasVolume.of(atlas, voxel_um=voxel_um)
        self._pixel_mm = 2 * voxel_um / 1000
        self._registration = registration if isinstance(registration, nn.Module) else load_model(registration)

    def near(self, job: Job, options: Options) -> Nearby:
        """Return the plane of a section near its anchoring.

        Args:
            job: The image, with the initial anchoring.
            options: How the image is read, and which half it shows.

        Raises:
            InputError: If it has no anchoring, or the image cannot be read.
        """
        if job.anchoring is None:
            raise InputError(f"{job.path.name}: expected a plane to search from, found none")
        image = open_channels(job.path, scene=options.scene, page=options.page, z=options.z)
        channel = one_channel(image, options.channel, job.path.name)
        section = read_section(
            channel,
            (_ROWS_PX, COLUMNS_PX),
            background=options.background,
            name=job.path.name,
            ignored=job.ignored,
        )
        return self.near_plane(section, job.anchoring, options.hemisphere or "whole", job.path.name)

    def near_plane(
        self, section: Section, start: Anchoring, side: str = "whole", name: str = "section"
    ) -> Nearby:
        """Return the plane of a section near an anchoring; `side` is the part that it shows: whole, left or right."""
        search = self._search(section, start.on(section.shape), side, name)
        begin = Lie.of(search.proposal.matrix, search.frame)
        moved, _ = search.along(begin, _STEPS)
        refined, _ = search.refined(moved)
        # Half a section says little about its place in the plane, so refining may do more harm than good.
        before, *after = (
            float(search.finer.likeness(one, one.plane[None])[0]) for one in (begin, moved, refined)
        )
        likeness, lie = max(zip(after, (moved, refined), strict=True), key=lambda found: found[0])
        if likeness < before + _CLEARLY:
            return Nearby(start, before, before)
        return Nearby(anchoring_of(lie.matrix(search.frame), section.shape), likeness, before)

    def _search(self, section: Section, start: Anchoring, side: str, name: str) -> Search:
        matrix = matrix_of(start)
        across = int(np.abs(np.cross(matrix[:, 0], matrix[:, 1])).argmax())
        frame = Frame(self._volume, across, self._pixel_mm)
        tissue = seen_tissue(section, name)
        return Search(self._registration, frame, section, tissue, Proposal(matrix, side, _ERROR_MM))
