"""The beginning and the end of preparing a corpus: the folder checked, the shards joined, the manifest written."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtp_jax import __version__
from mtp_jax.config import DataConfig
from mtp_jax.data.manifest import FORMAT, INDEX_STEP, MANIFEST, Manifest, SplitFiles, read_manifest
from mtp_jax.data.prepare.plan import Plan, Shard, differences
from mtp_jax.data.prepare.shard import WORK, ShardInfo, lengths_file, read_info, replacing
from mtp_jax.data.reading import SPLITS, Skipped, where
from mtp_jax.data.tokenizer import TOKENIZERS, Tokenizer, build_tokenizer, ids_dtype

PLAN = "plan.json"  # in WORK: the settings that the shards there were written with


def finished(plan: Plan, output: Any) -> Manifest | None:
    """Returns the manifest of a folder that is finished, or None.

    Args:
      plan: that the folder is to be of.
      output: folder of the prepared corpus; a path, may lie in a bucket.

    Raises:
      ValueError: it was prepared with other settings.
    """
    from etils import epath

    manifest = read_manifest(epath.Path(output))
    if manifest is not None:
        _check_same(manifest.settings, plan, f"{output} holds a corpus that was prepared with other settings")
    return manifest


def begin(plan: Plan, output: Any) -> list[Shard]:
    """Makes the folder ready and returns the shards that are not done, the largest first.

    Args:
      plan: of the corpus.
      output: folder of the prepared corpus; a path, may lie in a bucket.

    Raises:
      ValueError: the folder holds something else, or shards of other settings.
      OSError: it cannot be written.
    """
    from etils import epath

    folder = epath.Path(output)
    for source in (plan.settings.config.path, plan.settings.config.validation_path):
        if source and "://" not in source and pathlib.Path(source).expanduser().is_dir() and pathlib.Path(
                output).resolve().is_relative_to(pathlib.Path(source).expanduser().resolve()):
            raise ValueError(f"--output={output} lies inside the corpus, {source}, which would then grow by what is "
                             "written: name a folder beside it.")
    path = folder / WORK / PLAN
    if path.exists():
        _check_same(json.loads(path.read_text()), plan, f"{output} holds an unfinished corpus of other settings")
        sweep(folder)
    else:
        other = sorted(path.name for path in folder.iterdir() if path.name != WORK) if folder.exists() else []
        if other:
            raise ValueError(f"--output={output} holds other files ({other[0]}): name a folder of its own.")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(plan.settings.facts, indent=1) + "\n")
    left_to_do = [shard for shard in plan.shards if read_info(plan.settings, shard, output) is None]
    return sorted(left_to_do, key=lambda shard: -shard.size)


def finish(plan: Plan, output: Any) -> Manifest:
    """Joins the shards, all of which are done: writes the indexes and the manifest, and removes what is then no use.

    Args:
      plan: of the corpus.
      output: folder of the prepared corpus; a path, may lie in a bucket.

    Returns:
      The manifest.

    Raises:
      ValueError: there is nothing to train on, or nothing to hold out; the folder is then empty.
      RuntimeError: a shard is not done.
    """
    from etils import epath

    folder = epath.Path(output)
    infos = []
    for shard in plan.shards:
        info = read_info(plan.settings, shard, output)
        if info is None:
            raise RuntimeError(f"shard {shard.index} of {len(plan.shards)} is not done.")
        infos.append(info)
    skipped = Skipped()
    for info in infos:
        skipped.update(Skipped(info.skipped, info.skipped_example))
    config, tokenizer = plan.settings.config, build_tokenizer(plan.settings.config)
    try:
        splits = {name: _join(name, infos, folder, skipped, config) for name in SPLITS}
    except ValueError:
        _remove(plan, folder)  # no shard of these settings is of any use, and other settings are to come
        raise
    content = hashlib.sha256(tokenizer.hash.encode())
    for name, split in splits.items():
        content.update("".join([name, *(shard.sha256 for shard in split.shards)]).encode())
    manifest = Manifest(
        format=FORMAT, version=__version__, hash=content.hexdigest(),
        documents=sum(split.documents for split in splits.values()),
        tokens=sum(split.tokens for split in splits.values()), bytes=sum(split.bytes for split in splits.values()),
        dtype=np.dtype(ids_dtype(tokenizer.vocab_size)).name, tokenizer=_tokenizer_entry(config, tokenizer, folder),
        settings=plan.settings.facts, skipped=dict(sorted(skipped.count.items())),
        skipped_example=dict(sorted(skipped.example.items())), splits=splits)
    with replacing(folder / MANIFEST) as path:
        path.write_text(manifest.to_json())
    tidy(folder)
    return manifest


def sweep(output: Any) -> None:
    """Removes files that processes which were killed had not finished.

    Args:
      output: folder of the prepared corpus, which nobody writes to now.
    """
    from etils import epath

    folder = epath.Path(output)
    for left in [*folder.glob(".*.tmp"), *(folder / WORK).glob(".*.tmp")]:
        left.unlink(missing_ok=True)


def tidy(output: Any) -> None:
    """Removes what only an unfinished corpus needs.

    Args:
      output: folder of a finished corpus.
    """
    from etils import epath

    work = epath.Path(output) / WORK
    if work.exists():
        work.rmtree()


def _join(name: str, infos: Sequence[ShardInfo], folder: Any, skipped: Skipped, config: DataConfig) -> SplitFiles:
    """Writes the index of a split and returns its entry in the manifest.

    Raises:
      ValueError: the split has no document to predict anything from.
    """
    parts = [(info.index, info.splits[name]) for info in infos if name in info.splits]
    documents = sum(part.file.documents for _, part in parts)
    longest, end = 0, 0
    index = f"{name}.index"
    with replacing(folder / index) as path, path.open("wb") as file:
        file.write(np.zeros(1, "<i8").tobytes())
        for shard, _ in parts:
            lengths = np.frombuffer((folder / WORK / lengths_file(name, shard)).read_bytes(), "<i8")
            bounds = end + np.cumsum(lengths)
            file.write(bounds.tobytes())  # tofile() would not say that a disk is full
            longest, end = max(longest, int(lengths.max())), int(bounds[-1])
        file.flush()
        file.write(np.memmap(path, "<i8", "r")[::INDEX_STEP].tobytes())
    if name == "train" and longest < 4:  # of BOS, EOS and one token nothing can be learned
        left_out = f"; {skipped}" if skipped.count else ""
        raise ValueError(f"{where(config)} holds no document longer than one token to train on ({documents} "
                         f"documents{left_out}): name a corpus of UTF-8 text, or loosen the filters.")
    if not documents:
        raise ValueError(f"{where(config)}: none of the documents fell to the held-out part, a share of "
                         f"{config.validation_fraction:g}: raise --validation_fraction, or give --validation_path."
                         if not config.validation_path else
                         f"--validation_path={config.validation_path!r} holds no document: name a corpus of text.")
    own, shared = sum(part.own_groups for _, part in parts), {group for _, part in parts for group in part.groups}
    return SplitFiles(index=index, groups=own + len(shared), documents=documents, tokens=end,
                      bytes=sum(part.bytes for _, part in parts), shards=tuple(part.file for _, part in parts))


def _tokenizer_entry(config: DataConfig, tokenizer: Tokenizer, folder: Any) -> dict[str, Any]:
    """Copies the tokenizer's file into the folder, if it has one; returns the manifest's entry."""
    from etils import epath

    path, file = epath.Path(config.tokenizer).expanduser(), ""
    if path.is_dir() and config.tokenizer not in TOKENIZERS:
        path /= "tokenizer.json" if (path / "tokenizer.json").exists() else "tokenizer.model"
    if path.suffix in (".json", ".model"):
        file = f"tokenizer{path.suffix}"
        beside = path.with_name("tokenizer_config.json")  # may name the special tokens of a tokenizer.json
        for source, name in ((path, file), (beside, beside.name)):
            if source is path or (path.suffix == ".json" and beside.exists()):
                with replacing(folder / name) as copy:
                    copy.write_bytes(source.read_bytes())
    return {"name": path.name, "file": file, "hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}


def _check_same(then: dict[str, Any], plan: Plan, what: str) -> None:
    """Raises ValueError if a folder's settings are not those of the plan."""
    changed = differences(then, plan.settings.facts)
    if changed:
        raise ValueError(f"{what} ({changed}): give the same flags, name another --output, or delete the folder.")


def _remove(plan: Plan, folder: Any) -> None:
    """Removes all that was prepared."""
    for shard in plan.shards:
        info = read_info(plan.settings, shard, folder)
        for split in info.splits.values() if info else ():
            (folder / split.file.file).unlink()
    for name in SPLITS:
        (folder / f"{name}.index").unlink(missing_ok=True)
    tidy(folder)
