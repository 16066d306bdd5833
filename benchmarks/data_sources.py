"""How many tokens a second does each source give, and each tokenizer take, on one core?

    python -m benchmarks.data_sources

Writes the standard library's source in every format that mtp_jax reads (a temporary folder of some 100 MB), then reads
each with the byte tokenizer, where a token is a byte, and encodes the same documents with each tokenizer. One thread on
one core; the median of several passes. Prints one JSON line a case.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")  # one core is what is measured

from absl import app, flags  # noqa: E402

from mtp_jax.config import DataConfig  # noqa: E402
from mtp_jax.data import build_tokenizer  # noqa: E402
from mtp_jax.data.reading import Skipped, read_corpus  # noqa: E402

RUNS = flags.DEFINE_integer("runs", 5, "Passes; their median is reported.", lower_bound=1)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 4096, "Of the tokenizers that are trained.", lower_bound=300)


def write_formats(folder: pathlib.Path, texts: list[bytes]) -> dict[str, DataConfig]:
    """Writes the texts in every format; returns {case: the config that reads it}."""
    import numpy as np
    import pyarrow
    from array_record.python.array_record_module import ArrayRecordWriter
    from pyarrow import parquet

    (folder / "files").mkdir()
    for number, text in enumerate(texts):
        (folder / "files" / f"{number}.py").write_bytes(text)
    decoded = [text.decode() for text in texts]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in decoded).encode()
    (folder / "corpus.jsonl").write_bytes(lines)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines))
    parquet.write_table(pyarrow.table({"text": decoded}), folder / "corpus.parquet", row_group_size=100)
    ids = [np.frombuffer(text, np.uint8).astype(np.uint16).tobytes() for text in texts]
    for name, records in (("text", texts), ("uint16", ids)):
        writer = ArrayRecordWriter(str(folder / f"{name}.array_record"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    write_tfds(folder / "tfds", decoded)
    return {
        "stdlib": DataConfig(source="stdlib"),
        "files": DataConfig(source="files", path=str(folder / "files")),
        "jsonl": DataConfig(source="jsonl", path=str(folder / "corpus.jsonl")),
        "jsonl, gzip": DataConfig(source="jsonl", path=str(folder / "corpus.jsonl.gz")),
        "parquet": DataConfig(source="parquet", path=str(folder / "corpus.parquet")),
        "array_record, text": DataConfig(source="array_record", path=str(folder / "text.array_record")),
        "array_record, tokens": DataConfig(source="array_record", path=str(folder / "uint16.array_record"),
                                           field="uint16"),
        "tfds": DataConfig(source="tfds", path=str(folder / "tfds" / "corpus" / "1.0.0")),
    }


def write_tfds(folder: pathlib.Path, texts: list[str]) -> None:
    """Writes the texts as a TensorFlow Datasets dataset in ArrayRecord files, without tensorflow."""
    import tensorflow_datasets as tfds

    class Corpus(tfds.core.GeneratorBasedBuilder):
        """Documents of one text."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text()}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, text in enumerate(texts):
                yield number, {"text": text}

    builder = Corpus(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()


def write_tokenizers(folder: pathlib.Path, texts: list[bytes]) -> dict[str, str]:
    """Trains a BPE and a SentencePiece model; returns {case: data.tokenizer}."""
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator((text.decode() for text in texts), trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE.value, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"], show_progress=False))
    bpe.save(str(folder / "tokenizer.json"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.decode().splitlines() if line.strip()),
        model_prefix=str(folder / "sentencepiece"), vocab_size=VOCAB_SIZE.value, byte_fallback=True,
        input_sentence_size=200_000, minloglevel=2)
    return {"bytes": "bytes", f"BPE {VOCAB_SIZE.value}": str(folder / "tokenizer.json"),
            f"SentencePiece {VOCAB_SIZE.value}": str(folder / "sentencepiece.model")}


def rate(count: Callable[[], int]) -> dict[str, float]:
    """Returns the rates of `count`, which does the work and returns how many tokens it was; one pass is a warm-up."""
    count()
    rates = []
    for _ in range(RUNS.value):
        start = time.perf_counter()
        tokens = count()
        rates.append(tokens / (time.perf_counter() - start))
    return {"tokens": tokens, "tokens_per_second": round(statistics.median(rates)), "slowest_run": round(min(rates)),
            "fastest_run": round(max(rates)), "runs": RUNS.value}


def read_all(config: DataConfig) -> int:
    """Reads a source with one thread; returns its bytes, or its tokens."""
    texts = read_corpus(config, Skipped(), takes_bytes=True, vocab_size=259, threads=1)
    return sum(len(text.content) for text in texts)


def main(argv: list[str]) -> None:
    """Prints every case."""
    del argv
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = [text.content for text in read_corpus(DataConfig(skip_invalid=True), Skipped(), takes_bytes=True)]
    size = sum(map(len, texts))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for case, config in write_formats(folder, texts).items():
            print(json.dumps({"benchmark": "data_sources", "source": case, "bytes": size, **rate(
                lambda config=config: read_all(config))}), flush=True)
        for case, spec in write_tokenizers(folder, texts).items():
            tokenizer = build_tokenizer(DataConfig(tokenizer=spec))
            figures = rate(lambda tokenizer=tokenizer: sum(map(len, tokenizer.encode_batch(texts))))
            megabytes = figures["tokens_per_second"] / figures["tokens"] * size / 1e6
            print(json.dumps({"benchmark": "data_sources", "tokenizer": case, "bytes": size,
                              "megabytes_per_second": round(megabytes, 1), **figures}), flush=True)


if __name__ == "__main__":
    app.run(main)
