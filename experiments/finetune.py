"""What does a model with n heads become when it goes on with n' of them: stripped to one, or given fresh ones?

Hardware: that of the source run; about half its time. The paper fine-tunes a model of four heads best with one of them
left (section 3.6): n' = 1 keeps head 1, the next token's, and the trunk.

    python -m experiments.code_bytes --workdir=runs/code_bytes
    python -m experiments.finetune --workdir=runs/one_head --config.source_run=runs/code_bytes --config.num_heads=1
    python -m experiments.finetune --workdir=runs/six_heads --config.source_run=runs/code_bytes --config.num_heads=6

Shape, objective, tokenizer and data are the source run's; --config.data.source=... and --config.data.path=... name
another corpus, read with the same tokenizer; where the source has a mixture or a data.validation_path, set these too
("()" and "" are none). Heads 1 to n are taken over and further ones start fresh; --config.init_from.heads says
otherwise, such as "('fresh',)" for a new head on the old trunk. An anticausal head reads the later ones, so that
what it says changes with their number at once; heads of the other kinds begin where they ended. The recipe is the
paper's for CodeContests, in proportion: a sixth of the source's peak learning rate, half of its steps, clipping at 0.1.

Heads for a model from elsewhere: a Llama of Hugging Face becomes a run's folder, and goes on from there.

    python -m mtp_jax.convert --src=LLAMA --src_format=hf --dst=runs/llama --dst_format=workdir --dtype=float32
    python -m experiments.finetune --workdir=runs/llama4 --config.source_run=runs/llama --config.num_heads=4 \\
        --config.data.source=files --config.data.path=FOLDER --config.train.trainable="('heads/*',)"

Such a folder tells of no data and no recipe, so there is nothing to be in proportion to. It gets 1000 steps of 8 rows
of at most 1024 tokens, 1e-4 as its peak learning rate, which is less than Llama's own, and clipping at 1; a model of a
few million parameters takes ten times that rate. With train.trainable as above only the heads move, head 1 among them;
without it everything does. New heads of the kind parallel start as copies of head 1, others fresh. In bfloat16 a step
below a 512th of a parameter is lost: head 1 of experiments.code_bpe, imported and given two new heads, has them at 6.40
and 6.82 nats a token after 80 steps of 128 tokens a row, and at 6.11 and 6.53 with --dtype=float32 (one run of each).

Expected: of experiments.stories, which ends at 1.97 bits per held-out byte for head 1, one head is left at 1.91 after
520 more steps, and with both heads (--config.num_heads=2) it is at 1.92. Its head 1 alone, exported to hf and imported
again, has heads 2 to 4 at 3.15, 3.79 and 4.10 bits after 300 steps on the same stories with the trunk frozen, at a rate
of 1e-3; from fresh heads they are at 3.39, 4.01 and 4.22; head 1 itself is at 1.95 in both. One run of each.
"""

import dataclasses
import json

from absl import logging

from mtp_jax import presets, train
from mtp_jax.config import Config, OptimizerConfig, TrainConfig, from_dict, to_config_dict

KEPT = ("model", "compute", "objective", "data", "optimizer", "parallel")  # sections taken over from the source run


def get_config(source_run="", num_heads=1):
    """Returns the settings that go on from a run.

    Args:
      source_run: workdir of the run to start from, or one of its checkpoints/<step>; may lie in a bucket.
      num_heads: prediction heads of the new model.
    """
    source, stored = read_source(source_run)
    config = to_config_dict(Config(**{section: getattr(source, section) for section in KEPT}))

    is_imported = stored.get("corpus_hash") == "" and (source.train, source.optimizer) == (TrainConfig(),
                                                                                          OptimizerConfig())
    more_heads = num_heads - source.model.num_heads
    config.model.num_heads = num_heads
    # num_layers counts the heads' layers too, and the trunk is to stay as it is.
    config.model.num_layers += more_heads * layers_per_head(source.model.head_kind)
    config.init_from.path = source_run
    if more_heads > 0:
        new = 1 if is_imported and source.model.head_kind == "parallel" else "fresh"
        config.init_from.heads = (*range(1, source.model.num_heads + 1), *[new] * more_heads)
    if more_heads:
        config.objective.head_weights = ()

    if is_imported:
        config.data.batch_size, config.data.seq_len = 8, min(source.data.seq_len, 1024)
        config.optimizer.learning_rate = 1e-4
        if source.model.param_dtype == "bfloat16":
            logging.warning("%s keeps its parameters in bfloat16, which loses small updates: convert it with "
                            "--dtype=float32 to train it.", source_run)
        return config
    recipe, before = presets.get_recipe("codecontests"), presets.get_recipe("code_7b_200b")
    config.optimizer.learning_rate *= recipe.learning_rate / before.learning_rate
    config.optimizer.decay_ratio = recipe.decay_ratio
    config.optimizer.clip_norm = recipe.clip_norm
    config.optimizer.schedule_steps = config.objective.schedule_steps = None
    config.train.num_steps = max(1, round(source.train.num_steps * recipe.num_steps / before.num_steps))
    config.optimizer.warmup_steps = config.train.num_steps * recipe.warmup_steps // recipe.num_steps
    config.train.checkpoint_every = source.train.checkpoint_every
    config.train.validate_every = source.train.validate_every
    return config


def read_source(source_run, field="config.source_run"):
    """Returns the settings of the run to start from, as a Config, and what its config.json holds.

    Args:
      source_run: its workdir.
      field: that names it, for errors.

    Raises:
      ValueError: there is no such run, or its config.json is damaged.
    """
    from etils import epath

    if not source_run:
        raise ValueError(f"{field} is empty: name the workdir of the run to start from, as in "
                         f"--{field}=runs/code_bytes.")
    folder = epath.Path(source_run).expanduser()
    file = (folder.parent.parent if folder.name.isdecimal() else folder) / "config.json"
    if not file.exists():
        raise ValueError(f"{field}={source_run!r} has no {file.name} ({file}): name the workdir of a run.")
    try:
        stored = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}): {field} needs a run whose settings can be read.") \
            from error
    source = from_dict({field.name: stored[field.name] for field in dataclasses.fields(Config) if field.name in stored})
    return source, stored


def layers_per_head(head_kind):
    """Returns the layers of num_layers that a head of this kind takes."""
    from mtp_jax.model import get_head_kind  # takes a second, which --help has no need of

    return get_head_kind(head_kind).layers_per_head


if __name__ == "__main__":
    train.main(get_config)
