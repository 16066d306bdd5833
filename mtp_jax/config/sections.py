"""Settings of everything but the data, and the whole run. See the package's page for what they share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mtp_jax.config.checks import check_choice, check_positive, check_seed
from mtp_jax.config.data import DataConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and numerics of the model. All of it is identity: a checkpoint fits one value only."""

    num_heads: int = 4  # N, prediction heads: head k predicts the token k places ahead
    num_layers: int = 6  # transformer layers, trunk and heads together, so that parameters do not depend on N
    extra_trunk_layers: int = 0  # layers given back to the trunk (the paper's "+layers" rows)
    trunk_kind: str = "plain"  # "looped": the trunk's layers are run `loops` times; see docs/looped.md
    loops: int = 1  # T_m, times that a looped trunk is run; with 1 it is the plain one
    d_model: int = 256  # D, width of the residual stream
    num_attention_heads: int = 4  # A, query heads of a layer
    num_kv_heads: int | None = None  # K, key and value heads; None: as many as query heads
    head_dim: int | None = None  # C, width of an attention head; None: d_model / num_attention_heads
    d_ff: int | None = None  # F, inner width of the SwiGLU; None: 8/3 d_model rounded up to d_ff_multiple
    d_ff_multiple: int = 128  # rounding of a derived d_ff; 128 is a TPU lane count
    head_kind: str = "parallel"  # wiring of the heads; see mtp_jax/model/heads
    medusa_layers: int = 1  # residual layers of a head of kind "medusa"; one is what Medusa and vLLM's models have
    unembedding: str = "shared"  # "shared": one matrix for all heads; "replicated": one a head (the paper's bytes)
    tie_embedding: bool = False  # use the embedding as unembedding (needs "shared"); the paper does not tie
    vocab_size: int | None = None  # token ids in use; None: the tokenizer's
    vocab_multiple: int = 128  # the vocabulary is padded to a multiple of this, so that it can be sharded
    qk_norm: bool = False  # RMSNorm on queries and keys, per attention head
    sandwich_norm: bool = False  # RMSNorm also on what attention and MLP add to the residual stream (Ouro's models)
    rope_theta: float = 10_000.0  # base of the rotary angles
    rope_scaling: str = "none"  # slower angles, for a longer context: "linear" (all of them), "llama3" (long waves)
    rope_factor: float = 1.0  # how many times slower
    rope_low_freq_factor: float = 1.0  # "llama3": waves above rope_original_window / this, in tokens, are slowed
    rope_high_freq_factor: float = 4.0  # ... those below rope_original_window / this stay; between them, in between
    rope_original_window: int = 8192  # ... tokens of context before the stretching
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    init_std: float = 0.02  # of every matrix; output projections use init_std / sqrt(2 num_layers)
    param_dtype: str = "float32"  # dtype that parameters are kept and updated in
    dtype: str = "float32"  # dtype of matmuls; "bfloat16" on TPU and GPU

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def attention_head_dim(self) -> int:
        return self.d_model // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_dim(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        return -(-(8 * self.d_model // 3) // self.d_ff_multiple) * self.d_ff_multiple

    @property
    def padded_vocab_size(self) -> int:
        if self.vocab_size is None:
            raise ValueError("model.vocab_size=None is not resolved yet: set it to the tokenizer's vocabulary size.")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def validate(self) -> None:
        check_positive("model", self, "num_heads", "num_layers", "d_model", "num_attention_heads", "num_kv_heads",
                       "head_dim", "d_ff", "d_ff_multiple", "vocab_size", "vocab_multiple", "medusa_layers", "loops")
        check_positive("model", self, "extra_trunk_layers", minimum=0)
        check_positive("model", self, "rope_theta", "norm_eps", "init_std", minimum=1e-30)
        if self.head_dim is None and self.d_model % self.num_attention_heads:
            raise ValueError(
                f"model.d_model={self.d_model} is not divisible by model.num_attention_heads="
                f"{self.num_attention_heads}: change one of them, or set model.head_dim.")
        if self.attention_head_dim % 2:
            raise ValueError(f"model.head_dim={self.attention_head_dim} is odd: rotary embeddings need pairs; "
                             "choose an even model.head_dim.")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"model.num_attention_heads={self.num_attention_heads} is not divisible by model.num_kv_heads="
                f"{self.kv_heads}: each KV head serves a whole group of query heads.")
        if self.medusa_layers != 1 and self.head_kind != "medusa":
            raise ValueError(f"model.medusa_layers={self.medusa_layers} means nothing for model.head_kind="
                             f"{self.head_kind!r}: leave it at 1, or set model.head_kind='medusa'.")
        check_choice("model.trunk_kind", self.trunk_kind, ("plain", "looped"))
        if self.loops != 1 and self.trunk_kind == "plain":
            raise ValueError(f"model.loops={self.loops} means nothing for model.trunk_kind='plain': leave it at 1, or "
                             "set model.trunk_kind='looped'.")
        self._validate_rope_scaling()
        check_choice("model.unembedding", self.unembedding, ("shared", "replicated"))
        for name in ("param_dtype", "dtype"):
            check_choice(f"model.{name}", getattr(self, name), ("float64", "float32", "bfloat16"))
        if self.tie_embedding and self.unembedding == "replicated":
            raise ValueError("model.tie_embedding=True needs model.unembedding='shared', got 'replicated': "
                             "one embedding cannot be tied to several unembeddings.")

    def _validate_rope_scaling(self) -> None:
        """Raises ValueError where the scaling of the rotary angles makes no sense."""
        check_choice("model.rope_scaling", self.rope_scaling, ("none", "linear", "llama3"))
        check_positive("model", self, "rope_factor", "rope_low_freq_factor", "rope_high_freq_factor", minimum=1e-30)
        check_positive("model", self, "rope_original_window")
        if self.rope_scaling == "none" and self.rope_factor != 1:
            raise ValueError(f"model.rope_factor={self.rope_factor} means nothing for model.rope_scaling='none': leave "
                             "it at 1, or set model.rope_scaling to 'linear' or 'llama3'.")
        if self.rope_scaling == "llama3" and self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise ValueError(f"model.rope_low_freq_factor={self.rope_low_freq_factor} must be below "
                             f"model.rope_high_freq_factor={self.rope_high_freq_factor}: Llama 3 has 1 and 4.")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the same mathematics is run. May change on resume; results then agree to rounding, not bit for bit."""

    remat: str = "none"  # activations kept for the backward pass: "none" recomputes nothing, "dots", "full"
    scan_layers: bool | None = None  # lax.scan over layers and heads; None: on, but on CPU without remat: slow there
    run_heads: str = "auto"  # "scan" (flat memory) or "vmap"; "auto": vmap only if the mesh shards pred_heads
    attention: str = "auto"  # attention kernel by name; "auto": the platform's; see mtp_jax/model/attention.py
    logits_bytes: int = 2**26  # largest block of fp32 logits on one device, bytes; sets the loss's number of chunks
    microbatches: int = 1  # gradient accumulation: parts that a batch is split into

    def validate(self) -> None:
        check_choice("compute.remat", self.remat, ("none", "dots", "full"))
        check_choice("compute.run_heads", self.run_heads, ("auto", "scan", "vmap"))
        check_positive("compute", self, "logits_bytes", "microbatches")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss over heads. Identity."""

    reduction: str = "sum"  # over heads: "sum" (the paper), or "mean" (divided by the sum of the weights)
    schedule: str = "constant"  # head weights over steps; see mtp_jax/objective/schedules.py
    head_weights: tuple[float, ...] = ()  # one a head, multiplies the schedule; empty: all 1
    schedule_steps: int | None = None  # horizon of a schedule, steps; None: train.num_steps
    further_weight_initial: float = 0.3  # schedule "deepseek": sum of the weights of heads 2..N at first
    further_weight_final: float = 0.1  # ... and after the switch
    switch_fraction: float = 0.675  # ... which comes at this share of the horizon (10T of 14.8T tokens)
    detach_trunk: bool = False  # heads 2..N send no gradient into the trunk and head 1
    prompt_end: int | None = None  # id of a token: only targets after its first place in a document count; None: all
    loop_objective: str = "expected"  # of a looped trunk: "expected" loss over its loops, or "gate" (trains that alone)
    exit_entropy: float = 0.1  # beta, what a nat of entropy of the exit distribution is worth, in nats; "expected"
    gate_sharpness: float = 50.0  # "gate": k, slope of the label by the improvement, per nat
    gate_margin: float = 0.005  # "gate": gamma, nats that a loop must improve head 1's loss by to be worth running

    def validate(self, num_heads: int) -> None:
        check_positive("objective", self, "prompt_end", minimum=0)
        check_choice("objective.loop_objective", self.loop_objective, ("expected", "gate"))
        check_positive("objective", self, "exit_entropy", "gate_margin", minimum=0.0)
        check_positive("objective", self, "gate_sharpness", minimum=1e-30)
        check_choice("objective.reduction", self.reduction, ("sum", "mean"))
        if self.head_weights and len(self.head_weights) != num_heads:
            raise ValueError(f"objective.head_weights={self.head_weights} has {len(self.head_weights)} entries for "
                             f"model.num_heads={num_heads}: give one a head, or none.")
        if self.head_weights and not (all(0 <= w < math.inf for w in self.head_weights) and any(self.head_weights)):
            raise ValueError(f"objective.head_weights={self.head_weights} must be >= 0 and finite, with one above 0.")
        check_positive("objective", self, "further_weight_initial", "further_weight_final", minimum=0.0)
        check_positive("objective", self, "schedule_steps")
        if not 0 <= self.switch_fraction <= 1:
            raise ValueError(f"objective.switch_fraction={self.switch_fraction} must lie in [0, 1].")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, clipping and the learning-rate schedule. Identity. Defaults: the paper's Table S13."""

    learning_rate: float = 3e-4  # peak
    schedule: str = "cosine"  # after the warm-up: "cosine", "wsd" (stable, then linear decay), "constant"
    warmup_steps: int = 100  # linear, from 0 to the peak
    decay_ratio: float = 0.03  # last learning rate over the peak
    decay_fraction: float = 0.2  # "wsd": share of the horizon spent decaying
    schedule_steps: int | None = None  # horizon of the schedule, steps; None: train.num_steps
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # decoupled; on matrices, not on norms
    clip_norm: float = 1.0  # largest Euclidean norm of the gradient; 0: no clipping

    def validate(self, horizon: int) -> None:
        check_choice("optimizer.schedule", self.schedule, ("cosine", "wsd", "constant"))
        check_positive("optimizer", self, "learning_rate", "eps", minimum=1e-30)
        check_positive("optimizer", self, "warmup_steps", "weight_decay", "clip_norm", minimum=0)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be at least 0 and below 1: at 1 the "
                                 "moment would never move.")
        for name in ("decay_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1].")
        if self.schedule != "constant" and self.warmup_steps >= horizon:
            raise ValueError(f"optimizer.warmup_steps={self.warmup_steps} does not end before the schedule's "
                             f"{horizon} steps: lower it, or raise train.num_steps or optimizer.schedule_steps.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, cadence and scope of training. Only `seed` and `trainable` are identity."""

    num_steps: int = 1000  # optimizer steps in all
    seed: int = 0  # of the initial parameters
    checkpoint_every: int = 200  # steps; the last step is always saved
    validate_every: int = 200  # steps; the last step is always validated
    trainable: tuple[str, ...] = ()  # glob patterns of parameter paths that train, such as "heads/*"; empty: all

    def validate(self) -> None:
        check_positive("train", self, "num_steps", "checkpoint_every", "validate_every")
        check_seed("train", self)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of the checkpoints. May change on resume."""

    keep_last: int = 3  # newest checkpoints kept
    keep_every: int = 0  # steps: multiples of this are kept for ever; 0: none
    asynchronous: bool = True  # write in the background
    verify: bool = True  # compare every file with its checksum before a restore

    def validate(self) -> None:
        check_positive("checkpoint", self, "keep_last")
        check_positive("checkpoint", self, "keep_every", minimum=0)


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """Start from another run's parameters. Read only when a workdir is new."""

    path: str = ""  # a workdir, or one of its checkpoints/<step>; empty: random parameters
    heads: tuple[Any, ...] = ()  # for each head of this model the source's head, from 1, or "fresh"; empty: same order


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Devices and what is split over them. May change on resume."""

    mesh: str = "data:-1,fsdp:1,tensor:1,pred_heads:1"  # axis:size; -1 takes the devices that are left
    dcn_mesh: str = ""  # axis:size over the slices of a multi-slice run, whose product they are; empty: data
    explain: bool = False  # print every parameter with its shape, its axes and its bytes on a device
    start_timeout_seconds: int = 300  # how long a process waits at the start for the others
    heartbeat_timeout_seconds: int = 100  # after so long without a sign of life from one process the others end
    rules: tuple[tuple[str, Any], ...] = (  # logical axis -> mesh axis, several, or None
        ("batch", ("data", "fsdp")),
        ("length", "sequence"),
        ("residual", ("sequence", "tensor")),  # positions of what flows, and is kept, from layer to layer
        ("vocab", "tensor"),
        ("embed", "fsdp"),
        ("embed_out", "tensor"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("head_dim", None),
        ("mlp", "tensor"),
        ("layers", None),
        ("pred_heads", "pred_heads"),
        ("norm", None),
    )

    def validate(self) -> None:
        check_positive("parallel", self, "start_timeout_seconds", "heartbeat_timeout_seconds")


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What a run prints and writes. May change on resume."""

    log_every: int = 10  # steps between lines of metrics.jsonl for the training split
    progress: str = "auto"  # "bar", "lines", or "auto": a bar on a terminal
    tensorboard: bool = True  # write events.out.tfevents.*
    sample: bool = True  # end with a sample, how fast the heads draft it, and the experiment's export if it has one
    profile_start: int = 0  # first step of a profiler trace, from 1; 0: none
    profile_steps: int = 3  # steps that the trace spans
    peak_tflops: float = 0.0  # of one device, for MFU; 0: from the table of known devices, else MFU is null
    compile_cache: str = "auto"  # folder of compiled programs; "auto": the user's cache folder; "off": none

    def validate(self) -> None:
        check_choice("logging.progress", self.progress, ("auto", "bar", "lines"))
        check_positive("logging", self, "log_every", "profile_steps")
        check_positive("logging", self, "profile_start", "peak_tflops", minimum=0)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init_from: InitFromConfig = InitFromConfig()
    parallel: ParallelConfig = ParallelConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def learning_rate_horizon(self) -> int:
        """Steps that the learning-rate schedule spans."""
        return self.optimizer.schedule_steps or self.train.num_steps

    @property
    def objective_horizon(self) -> int:
        """Steps that the schedule of the head weights spans."""
        return self.objective.schedule_steps or self.train.num_steps

    def validate(self) -> None:
        """Checks every field that can be checked without looking at devices or data.

        Raises:
          ValueError: names the field, its value and what to do.
        """
        self.model.validate()
        self.compute.validate()
        self.objective.validate(self.model.num_heads)
        self.data.validate(self.model.num_heads)
        self.train.validate()
        check_positive("optimizer", self.optimizer, "schedule_steps")
        self.optimizer.validate(self.learning_rate_horizon)
        self.checkpoint.validate()
        self.parallel.validate()
        self.logging.validate()
        if self.objective.loop_objective == "gate" and self.model.loops == 1:
            raise ValueError("objective.loop_objective='gate' trains the exit gate, and a model of model.loops=1 has "
                             "none: set model.trunk_kind='looped' and model.loops above 1.")
        gate_alone = bool(self.train.trainable) and all(name.startswith("gate/") for name in self.train.trainable)
        if self.objective.loop_objective == "gate" and not gate_alone:
            raise ValueError("objective.loop_objective='gate' is a loss of the exit gate alone, and train.trainable="
                             f"{self.train.trainable} names other parameters, which weight decay would still move: set "
                             "train.trainable=('gate/*',).")
        if self.data.batch_size % self.compute.microbatches:
            raise ValueError(f"data.batch_size={self.data.batch_size} is not divisible by compute.microbatches="
                             f"{self.compute.microbatches}: every microbatch has the same number of rows.")
