"""Measuring a model: minimal pairs and likelihood bounds."""
