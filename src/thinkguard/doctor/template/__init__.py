"""The chat template: rendered in a sandbox, read by what it writes, and mended."""
