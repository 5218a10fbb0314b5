"""Text to corpus folders to packed rows; records and minimal pairs."""
