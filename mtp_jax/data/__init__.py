"""Documents -> tokens -> rows -> batches. `open_corpus` is the way in."""

from mtp_jax.data.corpus import Corpus, Part, open_corpus
from mtp_jax.data.pipeline import TrainBatches, ValidationBatches
from mtp_jax.data.rows import Rows, build_rows
from mtp_jax.data.sources import Document, Piece, register_source
from mtp_jax.data.split import split_groups
from mtp_jax.data.tokenizer import ByteTokenizer, Tokenizer, build_tokenizer, register_tokenizer

__all__ = ["ByteTokenizer", "Corpus", "Document", "Part", "Piece", "Rows", "Tokenizer", "TrainBatches",
           "ValidationBatches", "build_rows", "build_tokenizer", "open_corpus", "register_source", "register_tokenizer",
           "split_groups"]
