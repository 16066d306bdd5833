"""Starting runs: on one machine, on Cloud TPU, on GKE, on SLURM. Nothing here imports mtp_jax or jax."""
