"""Settings of `python -m mtp_jax.convert`; each field is a flag of its own, and its help stands here."""

from __future__ import annotations

import dataclasses

from mtp_jax.config.checks import check_choice
from mtp_jax.config.generation import flag

DTYPES = ("float64", "float32", "bfloat16", "float16", "q8_0")


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """What is converted to what. No field is stored."""

    src: str = flag("", "What to convert: a run's workdir, or a folder of another format.")
    src_format: str = flag("workdir", "Its format: workdir, hf, hf_parallel, meta, fast_llm.")
    dst: str = flag("", "Folder to write; must be new or empty.")
    dst_format: str = flag("hf", "Format to write: hf, hf_parallel, hf_mtp, medusa, meta, fast_llm, gguf, stablehlo, "
                           "workdir. docs/interop.md says which tool runs which.")
    heads: int | None = flag(None, "Heads to write, from head 1. Default: all that the format holds.")
    dtype: str | None = flag(None, "Of the numbers: float32, bfloat16, float16; gguf also q8_0. Default: as they are.")
    overwrite: bool = flag(False, "Replace what is in --dst.")
    step: int | None = flag(None, "Step of a workdir's checkpoint. Default: the newest undamaged one.")
    tokenizer: str = flag("", "Where the model's tokenizer lies now, if it was moved.")
    head_kind: str = flag("parallel", "Of a plain model that becomes a workdir: the kind of heads it is to get.")
    window: int | None = flag(None, "Tokens of context that the model takes. Default: what --src says, a row of the "
                              "run's training.")
    max_shard_megabytes: int = flag(5000, "Largest file of safetensors; a larger model is cut into several.")
    name: str = flag("", "Of the model, for its card. Default: the name of the folder.")

    def validate(self) -> None:
        """Raises ValueError where a setting makes no sense whatever the model is."""
        for field in ("src", "dst"):
            if not getattr(self, field):
                raise ValueError(f"--{field} is missing: name a folder.")
        if self.dtype is not None:
            check_choice("--dtype", self.dtype, DTYPES)
        if self.dtype == "q8_0" and self.dst_format != "gguf":
            raise ValueError(f"--dtype=q8_0 beside --dst_format={self.dst_format}: only gguf holds it.")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"--heads={self.heads} must be at least 1.")
        if self.heads is not None and self.dst_format == "workdir":
            raise ValueError(f"--heads={self.heads} beside --dst_format=workdir, which takes all: leave it out. A run "
                             "that starts from the workdir can take fewer, by init_from.heads.")
        if self.step is not None and self.src_format != "workdir":
            raise ValueError(f"--step={self.step} beside --src_format={self.src_format}: only a workdir has several "
                             "checkpoints; leave it out.")
        if self.head_kind != "parallel" and self.src_format in ("workdir", "hf_parallel"):
            raise ValueError(f"--head_kind={self.head_kind} beside --src_format={self.src_format}, whose models have "
                             "their heads: leave it out.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"--window={self.window} must be at least 1.")
        if self.max_shard_megabytes < 1:
            raise ValueError(f"--max_shard_megabytes={self.max_shard_megabytes} must be at least 1.")
