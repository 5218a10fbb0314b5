"""Adaptive masking for ltg-mdlm (Edman and Fraser 2025, arXiv 2510.20475)."""
