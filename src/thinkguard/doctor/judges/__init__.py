"""The judges: what is wrong with one record, be it training data, a saved output or a tokenised row."""
