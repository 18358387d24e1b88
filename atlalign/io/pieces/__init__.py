"""Pieces of tissue on a slide, grouped into sections.

An image of a slide may show one section or many, and each may have come apart: two hemispheres, a cerebellum beside its
brain stem, a torn corner. Neighbours may touch. The pieces are found on a small copy of the image, in four steps:

1. Tissue differs from the ground by a fraction of the typical difference and then, piece by piece, by a fraction of the
piece's own difference: haze between bright sections is not tissue. An opening removes thin lines: coverslip edges,
hairs, outlines of bubbles.
2. A piece with a narrow neck is cut there.
3. Pieces that are small, thin or rectangular are rejected: dust, bubbles, labels.
4. Two pieces are parts of one section if they *face* each other, at a small distance along a long front. The outlines
of whole sections are convex, and come close to each other only around one point.
"""

from atlalign.io.pieces.find import WORKING_UM, Found, find_sections
from atlalign.io.pieces.joining import front_length
from atlalign.io.pieces.piece import piece_of
from atlalign.io.pieces.rejects import LeftOut, Reason, rejected_in_words

__all__ = [
    "WORKING_UM",
    "Found",
    "LeftOut",
    "Reason",
    "find_sections",
    "front_length",
    "piece_of",
    "rejected_in_words",
]
