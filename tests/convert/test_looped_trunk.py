"""Looped trunks: exported with all their loops, copied from workdir to workdir, and refused by all other formats."""

import jax
import numpy as np
import pytest

from mtp_jax.config import ConvertConfig
from mtp_jax.convert import workdir
from mtp_jax.convert.formats import FORMATS, check_kind
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec
from tests.convert.test_stablehlo import BATCHES, NEW, as_model, exported, written
from tests.decoding import conftest as fixtures
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params

greedy_only = fixtures.greedy_only


def made(**changes):
    """Returns config and parameters of a model of two trunk layers that run twice."""
    config = make_config(**{**dict(num_heads=2, trunk_kind="looped", loops=2, vocab_size=259), **changes})
    return config, make_params(config)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_holds_it_or_says_which_does(name):
    looped, sandwiched = (as_model(*pair) for pair in (made(), made(loops=1, sandwich_norm=True)))
    if name in ("workdir", "stablehlo"):
        check_kind(looped, name)
        check_kind(sandwiched, name)
        return
    with pytest.raises(ValueError, match=rf"--dst_format={name} cannot hold a looped trunk \(model.loops=2\): choose "
                                         "workdir, stablehlo"):
        check_kind(looped, name)
    with pytest.raises(ValueError, match="cannot hold norms behind .*: choose workdir, stablehlo"):
        check_kind(sandwiched, name)


def test_a_workdir_is_copied(tmp_path):
    config, params = made()
    source = write_workdir(tmp_path / "run", config, {7: params}, seq_len=64)
    options = ConvertConfig(src=str(source), dst=str(tmp_path / "copy"), dst_format="workdir")
    model = workdir.read(source, options)
    (tmp_path / "copy").mkdir()
    workdir.write(model, tmp_path / "copy", options)
    copy = workdir.read(tmp_path / "copy", ConvertConfig(src=str(tmp_path / "copy"), dst="x"))
    assert copy.config == config and copy.leaves == model.leaves
    for path in ("gate/kernel", "gate/bias"):
        np.testing.assert_array_equal(copy.read(path, ()), jax.tree.leaves(params["gate"])[path.endswith("kernel")])


@pytest.mark.slow
def test_an_export_writes_what_we_write(tmp_path, greedy_only):
    config, params = made(sandwich_norm=True)
    manifest = exported(tmp_path / "x", as_model(config, params))
    assert not any(name.startswith("gate") for name in manifest["params"]["arrays"])
    cached = [name for name in manifest["functions"]["decode"]["inputs"]["cache"] if name.startswith("trunk")]
    assert len(cached) == 2 * 2 * 2  # keys and values of two loops of two layers
    model = DecodingModel.from_params(ModelSpec.create(config), params, window=256)
    ours = [row.tolist() for row in generate(model, sum(BATCHES, []), max_new_tokens=NEW).tokens]
    assert written(tmp_path / "x") == [[ours[:1], ours[1:]]] * 2
