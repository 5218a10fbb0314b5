"""What a run keeps on disk: run folder, checkpoints, tensors, metrics."""
