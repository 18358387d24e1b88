"""Registering sections with a trained network: where they lie, the maps to files, batches, and what others read."""
