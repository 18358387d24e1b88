"""Localization: finding the plane of the atlas that a section shows."""

from atlalign.localization.inputs import find_images
from atlalign.localization.located import Located
from atlalign.localization.locating import locate
from atlalign.localization.locator import Locator
from atlalign.localization.nearby import Nearby, NearbySearch
from atlalign.localization.page import write_page
from atlalign.localization.recorded import Recorded
from atlalign.localization.results import write_located
from atlalign.localization.unplaced import LocatedJobs, locate_unplaced
from atlalign.recognition.judge import SHIPPED_LOCATOR

__all__ = [
    "SHIPPED_LOCATOR",
    "Located",
    "LocatedJobs",
    "Locator",
    "Nearby",
    "NearbySearch",
    "Recorded",
    "find_images",
    "locate",
    "locate_unplaced",
    "write_located",
    "write_page",
]
