"""Synthesis of training samples from an atlas or from sections."""
