"""An atlas with the networks that locate sections in it, and the first pass over a single section."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from atlalign.atlas.atlas import Atlas
from atlalign.errors import InputError
from atlalign.io.images import one_channel, open_channels
from atlalign.localization.fit import Frame
from atlalign.localization.proposals import propose
from atlalign.localization.same_atlas import frame_offset_mm
from atlalign.localization.search import Found, Search
from atlalign.localization.views import SeenTissue, seen_tissue
from atlalign.localization.volume import COLUMNS_PX, AtlasVolume, width_um
from atlalign.models import load_model
from atlalign.networks.plane_locator import PlaneLocatorNet
from atlalign.recognition.answers import Proposal
from atlalign.recognition.judge import SHIPPED_LOCATOR
from atlalign.registration.jobs import Job
from atlalign.registration.one_section import check_is_one
from atlalign.registration.options import Options
from atlalign.registration.section import Section, read_section

_SIZES_DIFFER = 0.15  # from the atlas size in training, as a fraction of the length
_SECOND_TRY = 1.5  # another turn is tried if its expected error is at most this multiple of the best


_TRAIN = "train a locator for this atlas (atlalign train experiment=locator atlas.path=FILE) and give it as --locator"
_log = logging.getLogger(__name__)


class Locator:
    """Locates sections in an atlas.

    Args:
        atlas: The atlas with region ids.
        network: The network that proposes planes; None for the one that comes with the package.
        registration: The network that registers sections to planes; None for the one that comes with the package.

    Attributes:
        said: The network and the atlas that it was trained on, in words.
        doubt: The reason why all planes must be checked, if the network was trained on another atlas; otherwise empty.

    Raises:
        InputError: If the atlas has no region ids, or differs in its regions and size from the atlas that the network
            was trained on.
    """

    def __init__(
        self,
        atlas: Atlas,
        *,
        network: nn.Module | str | Path | None = None,
        registration: nn.Module | str | Path | None = None,
    ) -> None:
        loaded = network if isinstance(network, nn.Module) else load_model(network or SHIPPED_LOCATOR)
        if not isinstance(loaded, PlaneLocatorNet):
            raise InputError(
                f"expected a network that locates sections (PlaneLocatorNet), got {type(loaded).__name__}"
            )
        self.volume = AtlasVolume.of(atlas, voxel_um=width_um(atlas) / COLUMNS_PX)
        self.coarse_mm = 2 * width_um(atlas) / COLUMNS_PX / 1000
        self.said = _said(network, loaded)
        corner_mm = frame_offset_mm(self.volume, loaded.regions)
        self.doubt = "" if corner_mm is not None else _doubt(self.volume, loaded, atlas.name)
        self.network = loaded if corner_mm is None else loaded.in_frame(corner_mm.tolist())
        if self.doubt:
            _log.warning("%s", self.doubt)
        self.registration = registration if isinstance(registration, nn.Module) else load_model(registration)

    def frame(self, across: int) -> Frame:
        """Return coarse images of the planes across an axis."""
        return Frame(self.volume, across, self.coarse_mm)

    def look(self, job: Job) -> "Looked":
        """Return the tissue in an image, and the best plane for this section alone, found in large steps.

        Raises:
            InputError: If the image cannot be read, or does not show one section.
        """
        if job.problem:
            raise InputError(job.problem)
        options = Options(**job.options)
        image = open_channels(job.path, scene=options.scene, page=options.page, z=options.z)
        channel = one_channel(image, options.channel, job.path.name)
        section = read_section(channel, (160, COLUMNS_PX), background=options.background, name=job.path.name)
        check_is_one(section, options, job.path)
        tissue = seen_tissue(section, job.path.name)
        best, *others = propose(self.network, self.volume, section, tissue)
        tried = [best, *(other for other in others if other.error_mm <= _SECOND_TRY * best.error_mm)]
        looked = [self._looked(section, tissue, proposal) for proposal in tried]
        return max(looked, key=lambda one: one.found.curve.odds.max())

    def _looked(self, section: Section, tissue: SeenTissue, proposal: Proposal) -> "Looked":
        normal = np.cross(proposal.matrix[:, 0], proposal.matrix[:, 1])
        frame = self.frame(int(np.abs(normal).argmax()))
        search = Search(self.registration, frame, section, tissue, proposal)
        return Looked(section, search, search.look())


class Looked(NamedTuple):
    """The result of the first pass over a section."""

    section: Section
    search: Search
    found: Found


def _said(network: nn.Module | str | Path | None, loaded: PlaneLocatorNet) -> str:
    """Return the name of the network that locates sections, and the atlas that it was trained on, in words."""
    file = "the package's locator" if network is None else str(network)
    name = f"locator {type(loaded).__name__}" if isinstance(network, nn.Module) else file
    return f"{name}, trained on {loaded.cut} sections of {loaded.atlas or 'an unknown atlas'}"


def _doubt(volume: AtlasVolume, network: PlaneLocatorNet, name: str) -> str:
    """Return why the planes must be checked in an atlas other than the one that the network was trained on.

    Raises:
        InputError: If the atlas also differs in size.
    """
    size = volume.size_mm
    if max(abs(own / known - 1) for own, known in zip(size, network.extent_mm, strict=True)) > _SIZES_DIFFER:
        found, known = (
            " × ".join(f"{value:.1f}" for value in extent) for extent in (size, network.extent_mm)
        )
        raise InputError(
            f"atlas '{name}': expected about {known} mm (AP × DV × ML), for which the locator was trained, found "
            f"{found} mm: {_TRAIN}, or give positions"
        )
    if not network.regions:
        return f"the locator does not say on which atlas it was trained: check that it was atlas '{name}'"
    return f"the locator was trained on {network.atlas}, not on atlas '{name}': check each plane, or {_TRAIN}"
