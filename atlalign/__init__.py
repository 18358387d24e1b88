"""Supervised registration of 2D brain sections to an atlas."""

__version__ = "0.1.0"
