"""Training: the Lightning modules, callbacks, a run from configuration to result, resuming, and sweeps."""
