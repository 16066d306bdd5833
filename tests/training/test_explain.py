"""The table of parameters: every one, with its axes and the bytes that a device really holds of it."""

import re

import jax
import pytest

from mtp_jax import config as configs
from mtp_jax.training.explain import explain
from mtp_jax.training.program import build_program
from mtp_jax.training.state import flatten_params


def config_of(mesh, **train):
    return configs.from_dict({
        "model": dict(num_heads=2, num_layers=4, d_model=16, num_attention_heads=4, d_ff=32, vocab_size=64,
                      vocab_multiple=16), "data": dict(batch_size=8, seq_len=16), "train": dict(num_steps=2, **train),
        "optimizer": dict(warmup_steps=0), "parallel": dict(mesh=mesh)})


def rows_of(text):
    """Returns {path: (shape and dtype, axes, split by, bytes, moments)} of the table."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: tuple(row[1:]) for row in rows if "/" in row[0] and len(row) == 6}


@pytest.mark.parametrize("mesh, train", [
    ("data:2,fsdp:2,tensor:2", {}), ("data:2,sequence:2,pred_heads:2", {}),
    ("fsdp:4,tensor:2", {"trainable": ("heads/*",)})])
def test_every_parameter_is_told_with_the_bytes_that_its_device_holds(mesh, train):
    program = build_program(config_of(mesh, **train))
    rows = rows_of(explain(program))
    state = program.init(jax.random.key(0))
    held = {path: leaf.addressable_shards[0].data.nbytes for path, leaf in flatten_params(state.params).items()}
    assert {path: int(row[3].replace(",", "")) for path, row in rows.items()} == held
    moments = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert sum(int(row[4].replace(",", "")) for row in rows.values()) == moments
    assert {path for path, row in rows.items() if row[4] != "0"} == {
        path for path in held if not train or path.startswith("heads/")}


def test_the_axes_and_the_totals():
    program = build_program(config_of("data:2,fsdp:2,tensor:2"))
    text = explain(program)
    rows = rows_of(text)
    assert rows["trunk/attention/query"] == ("2x16x4x4 float32", "layers embed heads head_dim",
                                             "embed=fsdp heads=tensor", "512", "1,024")
    assert rows["final_norm/scale"] == ("16 float32", "norm", "-", "64", "128")
    assert f"the state is {program.state_bytes():,} bytes a device" in text
    assert len({len(line) for line in text.splitlines()[1:-1]}) == 1  # aligned


def test_one_device_holds_all():
    text = explain(build_program(config_of("data:1"), jax.devices()[:1]))
    assert "(mesh 1 device)" in text and all(row[2] == "-" for row in rows_of(text).values())
