"""Decoding with redistributed activations: what is drafted and how a text is cut changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.decoding.forward import read_rows
from mtp_jax.decoding.load import load_model
from mtp_jax.decoding.model import check_redistribution
from mtp_jax.decoding.weights import first_heads, unembed
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.model.redistribution import Redistribution
from tests.decoding.checks import BUSHY, LENGTHS, decoding_model, greedy_model, ragged, tokens_of
from tests.decoding.models import RANDOM, WINDOW, random_model, trained_model
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params

ARM = {"c": 0.5, "p1": 90.0, "p_max": 0.5}  # enough to change what small models say
QUICK_KINDS = ("linear",)  # the smallest programs


@functools.cache
def whole(config):
    """Returns the jitted (weights, tokens_BxL, lengths_B) -> head 1's logits of whole rows, without any cache."""
    def function(weights, tokens_BxL, lengths_B):
        verified = read_rows(config, weights, tokens_BxL, lengths_B, dtype=config.dtype, kernel="xla")
        return unembed(config, weights, verified.h_BxQxD, 1)

    return jax.jit(function)


def gaps(model, prompts, texts):
    """Returns how far each new token's logit is below the highest when the whole text is read as one prompt."""
    tokens, lengths = np.zeros((len(prompts), WINDOW), np.int32), np.zeros(len(prompts), np.int32)
    for i, (prompt, new) in enumerate(zip(prompts, texts)):
        row = [*prompt, *new]
        tokens[i, :len(row)], lengths[i] = row, len(row)
    logits = np.asarray(whole(model.config)(first_heads(model.config, model.weights, 1), tokens, lengths))
    found = []
    for i, (prompt, new) in enumerate(zip(prompts, texts)):
        at = logits[i, len(prompt) - 1:len(prompt) - 1 + len(new)]
        found.append(at.max(axis=-1) - np.take_along_axis(at, np.asarray(new)[:, None], axis=-1)[:, 0])
    return np.concatenate(found)


def texts_of(model, prompts, **block):
    return tokens_of(generate(model, prompts, max_new_tokens=WINDOW, **block))


def check_exact(model, blocks, seed=0, **settings):
    """Compares drafting with head 1 alone, and both with reading the whole text; returns the tokens compared."""
    arm = model.redistributing(Redistribution.create(**{**ARM, **settings}))
    prompts = ragged(seed, model.config.vocab_size, LENGTHS)
    alone = texts_of(arm, prompts, heads=1)
    for block in blocks:
        result = generate(arm, prompts, max_new_tokens=WINDOW, **block)
        assert tokens_of(result) == alone, block
    assert gaps(arm, prompts, alone).max() < 1e-9
    other = model.redistributing(Redistribution.create(**{**ARM, **settings, "seed": 5, "p1": 99}))
    assert gaps(other, prompts, alone).max() > 1e-2  # it is on: with other settings these are not the likeliest tokens
    return sum(map(len, alone)), result


@pytest.mark.parametrize("kind", [*QUICK_KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in RANDOM
                                                  if kind not in QUICK_KINDS)])
def test_greedy_drafting_is_exact(kind, x64, greedy_only):
    entry, model = greedy_model(kind)
    N = entry[0].config.num_heads
    blocks = [{"heads": N}] + ([] if kind in ("sequential", *QUICK_KINDS) else [{"tree": BUSHY[N]}])
    tokens, _ = check_exact(model, blocks)
    assert tokens > 300


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"mode": "add"}, {"fraction": 0.3, "percentile_of": "magnitudes"},
                                      {"noise": "none"}])
def test_greedy_drafting_is_exact_for_a_trained_model(settings, x64, greedy_only):
    entry, model = greedy_model("trained")
    _, result = check_exact(model, [{"tree": BUSHY[4]}, {"heads": 4}], **settings)
    assert result.accepted.sum(axis=0)[-1] > 0  # without drafts the texts could agree on nothing


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "anticausal", "linear", "sequential", "medusa"])
def test_greedy_drafting_is_exact_for_trained_models_of_other_kinds(kind, x64, greedy_only):
    trees = [] if kind == "sequential" else [{"tree": BUSHY[4]}]
    check_exact(decoding_model(trained_model(kind)), [{"heads": 4}, *trees])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_fp32_parts_from_head_1_alone_only_at_near_ties(kind, greedy_only, capsys):
    """Every token is head 1's choice, of the whole text read at once, up to a gap of 1e-4; what parts is listed."""
    model = decoding_model(trained_model(kind, dtype="float32")).redistributing(Redistribution.create(**ARM))
    parted = 0
    for seed in range(3):
        prompts = ragged(seed, 259, LENGTHS)
        alone = texts_of(model, prompts, heads=1)
        drafted = texts_of(model, prompts, heads=4)
        for texts in (alone, drafted):
            assert gaps(model, prompts, texts).max() < 1e-4
        parted += sum(one != other for one, other in zip(alone, drafted))
    with capsys.disabled():
        print(f"\nfp32, redistributed, {kind}: {parted} of {3 * len(LENGTHS)} rows parted at near-ties")


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_greedy_drafting_is_exact_in_a_looped_trunk(threshold, x64, greedy_only):
    changes = {"trunk_kind": "looped", "loops": 3}
    model = decoding_model(random_model("parallel", **changes), exit_threshold=threshold)
    tokens, _ = check_exact(model, [{"heads": 2}, {"tree": BUSHY[2]}])
    assert tokens > 300


@pytest.mark.slow
def test_other_numbers_compile_nothing_and_a_fraction_of_zero_is_the_model_itself(x64, greedy_only):
    _, model = greedy_model("parallel")
    prompts = ragged(0, model.config.vocab_size, LENGTHS)
    plain = texts_of(model, prompts, heads=1)
    first = texts_of(model.redistributing(Redistribution.create(**ARM)), prompts, heads=1)
    programs = len(model.programs)
    other = texts_of(model.redistributing(Redistribution.create(**ARM, seed=1)), prompts, heads=1)
    weak = texts_of(model.redistributing(Redistribution.create(p_min=0.0, p_max=0.0)), prompts, heads=1)
    assert len(model.programs) == programs and weak == plain
    assert first != plain and other != first
    assert texts_of(model.redistributing(None), prompts, heads=1) == plain


def test_statistics_over_a_call_are_refused_where_texts_would_depend_on_it():
    tensor = Redistribution.create(statistics="tensor")
    for use, words in (({"nodes": 4, "rows": 1}, "blocks of 4 tokens"), ({"nodes": 1, "rows": 2}, "a batch of 2 rows")):
        with pytest.raises(ValueError, match=f"statistics='tensor', taken over all tokens of a call, and {words}"):
            check_redistribution(tensor, **use)
        check_redistribution(Redistribution.create(), **use)
        check_redistribution(None, **use)
    model = decoding_model(random_model("parallel", dtype="float32", param_dtype="float32")).redistributing(tensor)
    with pytest.raises(ValueError, match="decode one prompt at a time with heads=1"):
        generate(model, [[1, 2]], max_new_tokens=3)
    with pytest.raises(ValueError, match="Use statistics='token'"):
        generate(model, [[1, 2], [3]], max_new_tokens=3, heads=1)


@pytest.mark.slow
def test_statistics_over_a_call_read_whole_rows_and_one_text_token_by_token():
    model = decoding_model(random_model("parallel", dtype="float32", param_dtype="float32"))
    tensor = model.redistributing(Redistribution.create(**ARM, statistics="tensor"))
    rows = [np.asarray(row) for row in ragged(1, model.config.vocab_size, (20, 30))]
    one, both = Scorer(tensor).read(rows[:1])[0], Scorer(tensor).read(rows)[0]
    assert not np.allclose(one.logprob[1], both.logprob[1], atol=1e-6)
    assert len(generate(tensor, [rows[0].tolist()], max_new_tokens=8, heads=1).tokens[0]) == 8


@pytest.mark.slow
def test_the_model_of_a_workdir_is_loaded_with_it(tmp_path):
    config = make_config(vocab_size=259, dtype="float32", param_dtype="float32")
    folder = write_workdir(tmp_path, config, {1: make_params(config)}, seq_len=32)
    arm = Redistribution.create(c=0.3)
    assert load_model(folder).weights.redistribution is None
    assert load_model(folder, redistribution=arm).weights.redistribution is arm


def test_a_trunk_without_layers_is_told():
    spec, params, _ = random_model("parallel", num_heads=1, num_layers=1, extra_trunk_layers=0, dtype="float32",
                                   param_dtype="float32")
    model = DecodingModel.from_params(spec, jax.tree.map(jnp.asarray, params), window=8)
    with pytest.raises(ValueError, match="the trunk has none: all model.num_layers=1 layers are heads"):
        model.redistributing(Redistribution.create())
