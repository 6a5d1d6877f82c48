"""The loss mask: which tokens of a record are learned."""
