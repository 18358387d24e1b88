"""Evaluation: measures of each section for a network and other methods, as tables and an HTML page."""
