"""From text to packed rows: readers, tokenizer, corpus folders, packing, batches."""
