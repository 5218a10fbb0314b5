"""Tasks, the evaluation suite, statistics, comparison, contamination, fine-tuning, quality of samples."""
