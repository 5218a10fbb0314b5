"""Checkpoints of the published code bases become run folders: reading them, accounting for every tensor, writing."""
