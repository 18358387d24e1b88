"""Sections of a slide: found, put in order, turned upright, and written as single images."""
