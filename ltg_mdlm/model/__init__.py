"""The denoiser: the transformer, and the losses that are computed from its features."""
