"""Export, import, upload, and the model card."""
