"""The audit: files judged by processes or on Ray Data, counts that merge, what they mean, and the mender."""
