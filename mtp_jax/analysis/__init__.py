"""What is computed over finished or running runs: plots, fits, probes."""
