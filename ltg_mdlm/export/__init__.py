"""Trained models as folders that Hugging Face `transformers` loads."""
