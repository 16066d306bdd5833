"""Where documents come from, one file a kind; `register_source` adds one."""

from mtp_jax.data.sources import array_record, jsonl, parquet, tfds  # noqa: F401  (they register)
from mtp_jax.data.sources.base import SOURCES, Document, NotText, Piece, find, register_source
from mtp_jax.data.sources.files import files, stdlib
from mtp_jax.data.sources.local_copy import local_copy
from mtp_jax.data.tasks import options, star_graph  # noqa: F401  (the package registers the synthetic sources)

__all__ = ["SOURCES", "Document", "NotText", "Piece", "files", "find", "local_copy", "register_source", "stdlib"]
