"""After its first use a program serves every prompt of its length bucket, temperature, filter, seed and stop token."""

import contextlib

import jax
import pytest

from mtp_jax.decoding import DecodingModel, generate
from tests.decoding.checks import BUSHY, ragged
from tests.decoding.models import random_model

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Yields a list that gets an entry for each program that is compiled, or read from the compile cache."""
    events = []

    def listen(event, duration, **_):
        if event == COMPILED:
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def model():
    spec, params, _ = random_model("linear", num_heads=3)
    return DecodingModel.from_params(spec, params, window=100)


@pytest.mark.parametrize("block", [{"heads": 1}, {"heads": 3}, {"tree": BUSHY[3]}], ids=["plain", "chain", "tree"])
def test_after_the_first_use_nothing_is_compiled(model, block):
    prompts = ragged(0, 11, (3, 5))
    with compilations() as first:
        generate(model, prompts, max_new_tokens=8, **block)
    assert first  # the listener hears
    with compilations() as later:
        for changes in (dict(), dict(temperature=0.7), dict(temperature=1.3, seed=5), dict(seed=2**32 - 1),
                        dict(temperature=1.0, top_k=3), dict(temperature=1.0, top_p=0.8),
                        dict(temperature=1.0, min_p=0.05, top_k=2, top_p=0.5),
                        dict(typical=True), dict(typical=True, temperature=0.7, typical_epsilon=0.2, typical_delta=0.5),
                        dict(stop=[1]), dict(stop=[1, 2, 3]), dict(stop=[]), dict(max_new_tokens=1),
                        dict(max_new_tokens=5), dict(on_tokens=lambda *_: None)):
            generate(model, ragged(len(str(changes)), 11, (1, 4)), **{"max_new_tokens": 8, **block, **changes})
        generate(model, [prompts[0], prompts[0]], max_new_tokens=8, **block)
    assert later == [], f"{len(later)} programs were compiled again"


def test_the_listener_sees_another_batch_and_another_length(model):
    generate(model, ragged(0, 11, (3, 5)), max_new_tokens=8, heads=1)
    for lengths, limit in (((3, 5, 4), 8), ((3, 5), 70)):
        with compilations() as events:
            generate(model, ragged(0, 11, lengths), max_new_tokens=limit, heads=1)
        assert events
        with compilations() as events:  # both are kept
            generate(model, ragged(1, 11, lengths), max_new_tokens=limit, heads=1)
            generate(model, ragged(1, 11, (3, 5)), max_new_tokens=8, heads=1)
        assert events == []
