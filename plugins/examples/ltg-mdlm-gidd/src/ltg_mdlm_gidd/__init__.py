"""Generalized interpolating discrete diffusion for ltg-mdlm (von Rütte et al. 2025, arXiv 2503.04482)."""
