"""Fine-tuning a trained model on (Super)GLUE-style classification, as the BabyLM evaluation suite of 2025 does.

The recipe is the suite's: its pairs of texts, its head on the first position, AdamW, linear warm-up and cosine, the
best epoch by the validation metric of the task.  Different are: the first step learns (theirs has learning rate 0);
rows are padded to those of similar length in the same step, which changes no loss; matrix products are in bf16 where
that is native; and random numbers, so that equal seeds do not give equal figures.
"""
