"""Localization: finding the plane of the atlas that a section shows."""

from atlalign.localization.located import Located
from atlalign.localization.locating import locate
from atlalign.localization.locator import SHIPPED_LOCATOR, Locator
from atlalign.localization.nearby import Nearby, NearbySearch
from atlalign.localization.page import write_page
from atlalign.localization.recorded import Recorded
from atlalign.localization.results import write_located

__all__ = [
    "SHIPPED_LOCATOR",
    "Located",
    "Locator",
    "Nearby",
    "NearbySearch",
    "Recorded",
    "locate",
    "write_located",
    "write_page",
]
