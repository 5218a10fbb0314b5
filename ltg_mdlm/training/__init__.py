"""Assembly of a run, the training loop, optimisers, validation, checks, benchmarks and sweeps."""
