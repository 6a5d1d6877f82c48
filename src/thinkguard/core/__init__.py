"""The compiled core and what stands on it: formats compiled against vocabularies, sequences walked through them, traces."""
