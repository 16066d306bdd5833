"""Decoding with a looped trunk: with any exit threshold the text is that of one position after the other."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig, GenerationConfig
from mtp_jax.decoding import DecodingModel, command, generate
from mtp_jax.decoding.cache import cache_bytes
from mtp_jax.decoding.generate import compiled
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation.command import evaluate
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.model import ModelSpec
from tests.decoding.checks import BUSHY, compare, ragged
from tests.decoding.models import RANDOM, WINDOW
from tests.decoding.naive import Naive
from tests.decoding.naive_looped import NaiveLooped
from tests.decoding.test_in_place import loop_bodies
from tests.decoding.test_load import make_run
from tests.decoding.test_recompile import compilations
from tests.small_model import make_config, make_params

LOOPS = 3
LENGTHS = (1, 3, 9, 25, WINDOW - 1)


@functools.cache
def looped(name="parallel", **changes):
    """Returns (spec, params, DecodingModel) in fp64 of an untrained model of two trunk layers that run three times."""
    config = make_config(**{**RANDOM[name], "trunk_kind": "looped", "loops": LOOPS, **changes})
    spec, params = ModelSpec.create(config), make_params(config)
    return spec, params, DecodingModel.from_params(spec, params, window=WINDOW)


def naive(entry, exit_threshold=None, loops=LOOPS):
    """Returns the reference of a model."""
    config = dataclasses.replace(entry[0].config, loops=loops)
    return NaiveLooped(ModelSpec.create(config), entry[1] if loops > 1 else without_gate(entry[1]), WINDOW,
                       exit_threshold)


def without_gate(params):
    return {name: part for name, part in params.items() if name != "gate"}


def check_exact(entry, blocks, exit_threshold, *, model=None, loops=LOOPS):
    """Compares texts and loops of all blocks with the reference; returns the loops of the positions that chose them."""
    model = (model or entry[2]).leaving(exit_threshold)
    reference = naive(entry, exit_threshold, loops)
    prompts = ragged(0, entry[0].config.vocab_size, LENGTHS)
    greedy = reference.greedy(prompts, WINDOW)
    spent = [reference.text(number, [*prompt, *tokens]).loops[len(prompt) - 1:-1]
             for number, (prompt, (tokens, _)) in enumerate(zip(prompts, greedy))]
    for block in blocks:
        compare((*entry[:2], reference), model, prompts, block, greedy=greedy, name=f"threshold {exit_threshold}")
        result = generate(model, prompts, max_new_tokens=WINDOW, stop=[], **block)
        told = result.loops_per_token * result.produced.sum()
        assert told == pytest.approx(sum(map(sum, spent))), f"{block}, threshold {exit_threshold}"
        if exit_threshold is not None:
            assert result.token_loops.tolist() == [sum(row) for row in spent]
            assert result.loops_per_token <= result.loops_per_forward <= loops
    return np.concatenate(spent)


def test_greedy_is_exact_at_any_threshold_and_nothing_is_compiled_for_another(x64, greedy_only):
    entry = looped()
    loops = check_exact(entry, [{"tree": BUSHY[2]}], 0.5)
    assert np.bincount(loops, minlength=4)[1:].min() > 0  # all ways to leave are there
    prompts = ragged(1, 11, LENGTHS)
    with compilations() as events:
        generate(entry[2].leaving(0.8), prompts, max_new_tokens=WINDOW, stop=[], tree=BUSHY[2])
    assert events == []
    assert check_exact(entry, [{"tree": BUSHY[2]}], 0.8).mean() > loops.mean()
    # A threshold of 1 is never reached: the text is that of the forward of training, which knows no gate.
    assert compare((*entry[:2], Naive(*entry[:2], WINDOW)), entry[2].leaving(1.0), prompts, {"tree": BUSHY[2]}) > 200


def test_loops_that_nobody_needs_are_not_run(x64, greedy_only):
    """With a gate that opens at once a forward runs one loop, with one that stays shut all of them; the program is the
    one of the test above, as are its writes in place."""
    model, prompts = looped()[2].leaving(0.5), ragged(0, 11, LENGTHS)
    for bias, loops in ((100.0, 1), (-100.0, LOOPS)):
        gate = {**model.weights.gate, "bias": jnp.asarray(bias)}
        shut = dataclasses.replace(model, weights=dataclasses.replace(model.weights, gate=gate))
        shut.programs.update(model.programs)
        result = generate(shut, prompts, max_new_tokens=9, tree=BUSHY[2])
        assert result.loops_run == loops * result.forwards.max()
        assert (result.loops_per_token, result.loops_per_forward) == (loops, loops)
        assert result.stats()["loops_per_token"] == result.stats()["loops_per_forward"] == loops


def test_a_row_that_is_done_keeps_no_loop_going(x64, greedy_only):
    """The first row is full after one token; from then on its positions do not count."""
    model = looped()[2].leaving(0.5)
    together = generate(model, [[1]] + ragged(3, 11, (20,) * 4), max_new_tokens=30, tree=BUSHY[2],
                        on_tokens=lambda row, *_: row > 0, stream_every=1)
    assert together.finished == ["length"] + ["enough"] * 4
    alone = np.mean([generate(model, [[1]] + [[1]] * 4, max_new_tokens=30, tree=BUSHY[2]).loops_per_forward])
    assert together.loops_per_forward == pytest.approx(alone, abs=2 / 30)


def test_no_step_copies_the_cache(x64, greedy_only):
    model = looped()[2].leaving(0.5)
    generate(model, ragged(0, 11, LENGTHS), max_new_tokens=WINDOW, tree=BUSHY[2], stop=[])
    program = compiled(model, BUSHY[2], (len(LENGTHS), 64), 64).run
    shape = rf"f64\[{len(LENGTHS)},2,64,4\]"
    assert len(re.findall(rf"{shape}\S* parameter\(", program.as_text())) >= 2 * (LOOPS * 2 + 2)
    assert re.findall(rf"{shape}\S* copy\(.*", loop_bodies(program)) == []


def test_the_cache_has_an_entry_for_each_loop_and_layer(x64, greedy_only):
    spec, _, model = looped()
    config = spec.config
    once = dataclasses.replace(config, loops=1)
    entry = 2 * 3 * config.kv_heads * 40 * config.attention_head_dim * 4
    sizes = [cache_bytes(shape, batch=3, capacity=40, heads=2, dtype="float32") for shape in (once, config)]
    assert sizes[1] - sizes[0] == (LOOPS - 1) * 2 * entry and sizes[0] == (2 + 2) * entry + 12
    generate(model.leaving(0.5), ragged(0, 11, LENGTHS), max_new_tokens=WINDOW, tree=BUSHY[2], stop=[])
    programs = compiled(model.leaving(0.5), BUSHY[2], (len(LENGTHS), 64), 64)
    cache = jax.tree.leaves(programs.run.out_info.cache)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in cache[:-1]) + 4 * len(LENGTHS) == cache_bytes(
        config, batch=len(LENGTHS), capacity=64, heads=2)


@pytest.mark.parametrize("exit_threshold", [None, 0.5])
def test_rows_that_are_read_say_what_is_decoded(exit_threshold, x64):
    entry = looped()
    reference, rows = naive(entry, exit_threshold), [np.array(row) for row in ragged(4, 11, (2, 7, 30))]
    logits = reference.logits([row.tolist() for row in rows])[..., :11]
    logprob = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    readings = Scorer(entry[2].leaving(exit_threshold)).read(rows, heads=(1, 2))
    for number, (row, reading) in enumerate(zip(rows, readings)):
        for k in (1, 2):
            want = logprob[number, k - 1, np.arange(len(row) - k), row[k:]]
            np.testing.assert_allclose(reading.logprob[k], want, atol=1e-9)
        if exit_threshold is None:
            assert reading.loops is None
        else:
            assert reading.loops.tolist() == reference.texts[number].loops[:-1]


def test_what_does_not_fit_is_refused():
    spec, params, _ = looped("linear")
    plain = ModelSpec.create(make_config(**RANDOM["linear"]))

    def load(spec=spec, params=params, **changes):
        return DecodingModel.from_params(spec, params, window=WINDOW, **changes)

    for threshold in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=rf"exit_threshold={threshold} must lie in \(0, 1\]"):
            load(exit_threshold=threshold)
    with pytest.raises(ValueError, match="the model has none: its trunk is run once.*'plain'.*train a model with"):
        load(plain, without_gate(params), exit_threshold=0.5)
    with pytest.raises(ValueError, match="exit_threshold=0.5 beside loops=1, .*leave out one"):
        load(exit_threshold=0.5, loops=1)
    with pytest.raises(ValueError, match="exit_threshold=0.5 needs an exit gate"):
        load(loops=1).leaving(0.5)
    for loops in (0, LOOPS + 1):
        with pytest.raises(ValueError, match=rf"loops={loops} must lie in 1..3, for .* model.loops=3"):
            load(loops=loops)
    with pytest.raises(ValueError, match="loops=2 must lie in 1..1, for its trunk is run once"):
        load(plain, without_gate(params), loops=2)
    assert load(loops=1).config.loops == 1 and load(plain, without_gate(params), loops=1).exit_threshold is None
    assert load(exit_threshold=0.25).exit_threshold == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name, changes", [
    *((name, {}) for name in RANDOM), ("parallel", {"sandwich_norm": True, "tie_embedding": True})])
def test_greedy_is_exact_for_all_kinds_and_blocks(name, changes, x64, greedy_only):
    entry = looped(name, **changes)
    N = entry[0].config.num_heads
    blocks = [{"heads": 1}, {"heads": N}, *([{"tree": BUSHY[N]}] if name != "sequential" else [])]
    for exit_threshold in (None, 0.3, 0.6, 0.9, 1.0):
        check_exact(entry, blocks, exit_threshold)


@pytest.mark.slow
@pytest.mark.parametrize("loops", [1, 2])
def test_fewer_loops_than_in_training(loops, x64, greedy_only):
    entry = looped()
    model = DecodingModel.from_params(*entry[:2], window=WINDOW, loops=loops)
    for exit_threshold in (None, 0.5)[:loops]:
        spent = check_exact(entry, [{"heads": 1}, {"heads": 2}], exit_threshold, model=model, loops=loops)
        assert spent.max() == loops


@pytest.mark.slow
def test_drawn_texts_do_not_depend_on_the_batch(x64):
    model = DecodingModel.from_params(*looped("causal")[:2], window=WINDOW, exit_threshold=0.5)
    prompts = ragged(5, 11, (4, 17, 9))
    together = generate(model, prompts, max_new_tokens=30, temperature=1.0, seed=3)
    first = generate(model, prompts[:1], max_new_tokens=30, temperature=1.0, seed=3)
    assert together.tokens[0].tolist() == first.tokens[0].tolist()
    assert together.token_loops[0] == first.token_loops[0]


@pytest.mark.slow
def test_the_tokens_on_a_mesh_are_those_of_one_device(x64, greedy_only):
    from mtp_jax.config import ParallelConfig
    from mtp_jax.parallel import Layout, make_mesh

    entry = looped()
    layout = Layout.create(make_mesh("data:2,fsdp:2,tensor:2"), ParallelConfig().rules)
    model = DecodingModel.from_params(*entry[:2], window=WINDOW, layout=layout)
    for exit_threshold in (None, 0.5):
        check_exact(entry, [{"heads": 2}, {"tree": BUSHY[2]}], exit_threshold, model=model)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a run with a looped trunk."""
    return make_run(tmp_path_factory.mktemp("looped") / "run", trunk_kind="looped", loops=LOOPS)[0]


def test_a_workdir_is_loaded_with_its_gate(workdir):
    model = load_model(workdir, loops=2, exit_threshold=0.25, heads=1)
    assert (model.config.loops, model.exit_threshold, model.weights.gate["kernel"].shape) == (2, 0.25, (16,))
    assert load_model(workdir, heads=1).weights.exit_threshold is None
    with pytest.raises(ValueError, match="loops=4 must lie in 1..3"):
        load_model(workdir, loops=4)
    with pytest.raises(ValueError, match=r"exit_threshold=2 must lie in \(0, 1\]"):
        load_model(workdir, exit_threshold=2)


@pytest.mark.slow
def test_the_commands_tell_loops_a_token(workdir, tmp_path, capsys):
    stats, told = {}, {}
    (tmp_path / "text.txt").write_text("some text of no great length, to be read by a model that knows nothing of it")
    for threshold in (0.2, 0.8, None):
        command.run(GenerationConfig(workdir=str(workdir), prompt=("some",), max_new_tokens=24, heads="2",
                                     exit_threshold=threshold, stats=str(tmp_path / "stats.json")))
        stats[threshold] = json.loads((tmp_path / "stats.json").read_text())
        assert f"{stats[threshold]['loops_per_token']:.2f} loops a token" in capsys.readouterr().err
        output = tmp_path / f"{threshold}.json"
        evaluate(EvaluationConfig(workdir=str(workdir), task="perplexity", data=str(tmp_path / "text.txt"),
                                  output=str(output), exit_threshold=threshold))
        result = json.loads(output.read_text())
        told[threshold] = result["metrics"]["loops_per_token"]
        assert (result["settings"]["loops"], result["settings"]["exit_threshold"]) == (LOOPS, threshold)
    assert 1 <= stats[0.2]["loops_per_token"] < stats[0.8]["loops_per_token"] < stats[None]["loops_per_token"] == LOOPS
    assert 1 <= told[0.2] < told[0.8] < told[None] == LOOPS
