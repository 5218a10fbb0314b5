"""Measuring a trained model: scores of texts, the tasks that ask for them, comparisons, likelihood bounds."""
