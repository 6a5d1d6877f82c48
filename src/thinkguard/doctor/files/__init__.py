"""Files to raw records: JSON, JSONL, Parquet and Arrow, as a stream of bounded memory."""
