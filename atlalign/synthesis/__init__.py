"""What makes training samples from an atlas or from sections."""
