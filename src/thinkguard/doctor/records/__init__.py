"""Raw records to turns: every shape in which training data and saved outputs come, and what each trainer reads of it."""
