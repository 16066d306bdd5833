"""Synthetic sources: texts made by a generator instead of read from files, one file a task.

Each is an ordinary source, `config.data.source=NAME`, with its settings in `config.data.options`.
"""

from mtp_jax.data.tasks import names, names_made, polynomial  # noqa: F401  (it registers)
