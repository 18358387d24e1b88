"""Formats without domain: images, tables, and files that are there whole or not at all."""
