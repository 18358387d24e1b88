"""The plane that a section shows, searched near one that a person has set."""

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
from atlalign.localization.proposals import Proposal
from atlalign.localization.search import Search
from atlalign.localization.views import seen_tissue
from atlalign.localization.volume import COLUMNS_PX, AtlasVolume, width_um
from atlalign.models import load_model
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.placement import Section, read_section

_ERROR_MM = 0.8  # of a plane that a person sets by eye
_STEPS = np.arange(-5.0, 6.0)  # half a millimetre of a mouse's brain
_ROWS_PX = 160
_CLEARLY = 0.01  # of likeness: a smaller gain is noise


class Nearby(NamedTuple):
    """What a search near a plane found.

    Attributes:
        anchoring: Where the section lies; the start's, if no plane nearby is clearly more like it.
        likeness: Of the registered section to this plane.
        likeness_before: To the plane at which the search began.
    """

    anchoring: Anchoring
    likeness: float
    likeness_before: float


class NearbySearch:
    """Searches an atlas near planes that a person has set; unlike `Locator`, it needs no network that proposes planes.

    Args:
        atlas: With region ids.
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
        """Return where a section lies near its anchoring.

        Args:
            job: The image, with the anchoring at which the search begins.
            options: How it is read, and which half it shows.

        Raises:
            InputError: If it has no anchoring, or the image cannot be read.
        """
        if job.anchoring is None:
            raise InputError(f"{job.path.name}: expected a plane near which to search, found none")
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
        """Return where a section lies near an anchoring; the section shows this side: whole, left or right."""
        search = self._search(section, start.on(section.shape), side, name)
        begin = Lie.of(search.proposal.matrix, search.frame)
        lie, curve = search.along(search.fitter.straightened(begin), _STEPS)
        lie, slopes_error = search.refined(lie)
        lie = search.settle(search.found(lie, curve, slopes_error)).lie
        before, after = (float(search.finer.likeness(one, one.plane[None])[0]) for one in (begin, lie))
        if after < before + _CLEARLY:
            return Nearby(start, before, before)
        return Nearby(anchoring_of(lie.matrix(search.frame), section.shape), after, before)

    def _search(self, section: Section, start: Anchoring, side: str, name: str) -> Search:
        matrix = matrix_of(start)
        across = int(np.abs(np.cross(matrix[:, 0], matrix[:, 1])).argmax())
        frame = Frame(self._volume, across, self._pixel_mm)
        tissue = seen_tissue(section, name)
        return Search(self._registration, frame, section, tissue, Proposal(matrix, side, _ERROR_MM))
