"""Pieces of tissue on a slide, and which of them belong to one section.

An image of a slide may show one section or many, and each may have come apart: two hemispheres, a cerebellum beside its
brain stem, a torn corner. Neighbours may touch. The pieces are found on a small copy of the image, in four steps:

1. Tissue is what differs from the ground by a share of the typical difference, and then, piece by piece, by a share of
   that piece's own: haze between bright sections is no tissue. An opening removes thin lines: coverslip edges, hairs,
   outlines of bubbles.
2. A piece with a narrow neck is cut there.
3. Pieces that are small, thin or rectangular are left out: dust, bubbles, labels.
4. Two pieces are parts of one section if they *face* each other, at a small distance along a long front. The outlines
   of whole sections are convex, and near each other only around one point.
"""

from atlalign.io.pieces.find import WORKING_UM, Found, find_sections, several_sections
from atlalign.io.pieces.rejects import LeftOut, Reason

__all__ = ["WORKING_UM", "Found", "LeftOut", "Reason", "find_sections", "several_sections"]
