"""The tokenizer: a checkpoint folder as its users load it, and what it does to the markers."""
