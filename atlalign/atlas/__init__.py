"""Atlases, and the position of a section in one."""
