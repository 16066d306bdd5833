"""Where documents come from, one file a kind; `register_source` adds one."""

from mtp_jax.data.sources.base import SOURCES, Document, Piece, find, register_source
from mtp_jax.data.sources.files import files, stdlib

__all__ = ["SOURCES", "Document", "Piece", "files", "find", "register_source", "stdlib"]
