"""What makes batches from an h5 data set."""
