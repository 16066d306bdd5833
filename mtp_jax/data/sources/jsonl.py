"""Documents of JSONL files."""
