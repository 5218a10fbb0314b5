"""The dual objective for ltg-mdlm (Samuel and Charpentier 2025, arXiv 2512.14549)."""
