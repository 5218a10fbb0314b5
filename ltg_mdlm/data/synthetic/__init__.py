"""The built-in corpus: generated child-directed English with minimal pairs."""
