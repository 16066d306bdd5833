"""What the benchmarks of data share: a corpus of any size, and commands that are timed."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

from mtp_jax.config import DataConfig
from mtp_jax.data.reading import Skipped, read_corpus


def write_jsonl(path: pathlib.Path, size: int) -> None:
    """Writes the standard library's documents, over and over, as lines {"text"} up to `size` bytes of text."""
    texts = [text.content.decode() for text in read_corpus(DataConfig(skip_invalid=True), Skipped(), takes_bytes=False)]
    lines = [(len(text.encode()), json.dumps({"text": text}) + "\n") for text in texts]
    written = number = 0
    with path.open("w") as file:
        while written < size:
            length, line = lines[number % len(lines)]
            file.write(line)
            written, number = written + length, number + 1


def run(*arguments: str) -> float:
    """Runs a module as a command; returns its seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return time.perf_counter() - start
