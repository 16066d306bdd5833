"""The functions that are exported as StableHLO, and the names of their parameters and caches.

A program takes and returns flat dicts of arrays, {"trunk.0.attention.query": ..}, {"heads.0.keys": ..}: any runtime can
hold them. Inside they are the `Weights` and the `Cache` of our own decoding, whose forwards these functions call.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from mtp_jax.config import ModelConfig
from mtp_jax.decoding.cache import Cache, cached_heads, write
from mtp_jax.decoding.forward import Drafted, Line, draft, draft_logits, read_prompt, settled, verify
from mtp_jax.decoding.sampling import highest
from mtp_jax.decoding.tree import Tree
from mtp_jax.decoding.weights import Weights, unembed, unstack
from mtp_jax.model import ModelSpec, get_head_kind, num_trunk_layers
from mtp_jax.model.cached import KeysValues

PLATFORMS = ("cpu", "cuda", "tpu")
Arrays = dict[str, Any]  # {name: array, or shape and dtype}


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a parameter of the program lies among the model's.

    Attributes:
      path: golden path of the leaf.
      index: of the slice, where layers or heads are stacked.
      shape: of the slice, in the golden order of its axes.
      dtype: that the program takes it in.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Function:
    """A function to export.

    Attributes:
      run: (params, *inputs) -> {name: array or {name: array}}.
      params: names of the parameters that it reads.
      inputs: {argument: shape and dtype, or a dict of them}, with symbols for what is open.
    """

    run: Callable[..., dict[str, Any]]
    params: tuple[str, ...]
    inputs: dict[str, Any]

    def shapes(self, pieces: Mapping[str, Piece]) -> Arrays:
        """Returns shapes and dtypes of its parameters."""
        return {name: jax.ShapeDtypeStruct(pieces[name].shape, pieces[name].dtype) for name in self.params}

    def outputs(self, pieces: Mapping[str, Piece]) -> dict[str, Any]:
        """Returns shapes and dtypes of its results."""
        return jax.eval_shape(self.run, self.shapes(pieces), *self.inputs.values())

    def export(self, pieces: Mapping[str, Piece]) -> bytes:
        """Returns the program as jax.export writes it."""
        exported = export.export(jax.jit(self.run), platforms=PLATFORMS)(self.shapes(pieces), *self.inputs.values())
        return bytes(exported.serialize())


def pieces(config: ModelConfig, heads: int) -> dict[str, Piece]:
    """Returns the parameters that using the first `heads` heads takes, by name.

    Args:
      config: the model's shape.
      heads: k.
    """
    found = {}
    for name, leaf in _named(_weights(config, heads)).items():
        part, *rest = name.split(".")
        index = (int(rest.pop(0)),) if part in ("trunk", "heads", "unembedding") else ()
        if part == "embedding":
            found[name] = Piece("embedding/embedding", (), leaf.shape, leaf.dtype)
        elif part != "unembedding":
            found[name] = Piece("/".join((part, *rest)), index, leaf.shape, leaf.dtype)
        elif not config.tie_embedding:  # decoding has it transposed
            one = index if config.unembedding == "replicated" else ()
            found[name] = Piece("unembedding/kernel", one, leaf.shape[::-1], leaf.dtype)
    return found


def functions(config: ModelConfig, heads: int) -> dict[str, Function]:
    """Returns what is exported: `prefill` and `decode`, and `verify` where there is a head that drafts.

    All choose greedily; the logits of head 1 come out too.

    prefill(params, tokens[b, p], lengths[b]): reads prompts that are padded behind their end. Returns `next` [b], the
    token after each prompt, `drafts` [b, k-1] of heads 2..k behind it, `logits` [b, V] of head 1 and a `cache` of p
    positions a row.
    decode(params, tokens[b, 1], cache): reads one token a row behind the cache, with head 1 alone.
    verify(params, tokens[b, k], cache): reads a token and k-1 drafts, keeps those that head 1 agrees with, and drafts.
    Both return `next` [b, q], head 1's token after each position, `accepted` [b], how many drafts are kept, `drafts`,
    `logits` [b, q, V] and the `cache`, which needs room for q more positions. A cache serves the function that it comes
    from, that of prefill both. Where heads draft in turn, the last settled tokens and their states are part of it.

    Args:
      config: the model's shape.
      heads: k, how many heads are used.
    """
    b, p = export.symbolic_shape("b, p")
    prompt = {"tokens": jax.ShapeDtypeStruct((b, p), jnp.int32), "lengths": jax.ShapeDtypeStruct((b,), jnp.int32)}
    made = {"prefill": Function(_prompt(config, heads), tuple(pieces(config, heads)), prompt)}
    for name, block in {"decode": 1, **({"verify": heads} if heads > 1 else {})}.items():
        params = pieces(config, block)
        of_prompt = Function(_prompt(config, block), tuple(params), prompt).outputs(params)["cache"]
        again = settled(block) if get_head_kind(config.head_kind).in_turn else 0
        b, c = export.symbolic_shape("b, c", constraints=[f"c >= {block + again}"])
        cache = {entry: jax.ShapeDtypeStruct((b, *(c if size == p else size for size in leaf.shape[1:])), leaf.dtype)
                 for entry, leaf in of_prompt.items()}
        inputs = {"tokens": jax.ShapeDtypeStruct((b, block), jnp.int32), "cache": cache}
        made[name] = Function(_block(config, block), tuple(params), inputs)
    return made


def _prompt(config: ModelConfig, heads: int) -> Callable[..., dict[str, Any]]:
    """Returns the function that reads prompts."""
    def prefill(params: Arrays, tokens_BxP: jax.Array, lengths_B: jax.Array) -> dict[str, Any]:
        weights = _bind(config, heads, params)
        logits_BxV, next_B, drafted, cache = read_prompt(
            config, weights, tokens_BxP, lengths_B, heads=heads, capacity=tokens_BxP.shape[1], dtype=config.dtype,
            kernel="xla", choose=highest)
        return {"next": next_B, "logits": logits_BxV, **_kept(config, weights, drafted, cache)}

    return prefill


def _block(config: ModelConfig, heads: int) -> Callable[..., dict[str, Any]]:
    """Returns the function that reads a token and heads - 1 drafts behind a cache."""
    def block(params: Arrays, tokens_BxQ: jax.Array, named: Arrays) -> dict[str, Any]:
        weights, cache = _bind(config, heads, params), _bind_cache(config, heads, named)
        verified = verify(config, weights, cache, tokens_BxQ, Tree.chain(heads))
        logits_BxQxV = unembed(config, weights, verified.h_BxQxD, 1)
        next_BxQ = highest(logits_BxQxV)
        agrees_BxJ = (tokens_BxQ[:, 1:] == next_BxQ[:, :-1]).astype(jnp.int32)
        accepted_B = jnp.cumprod(agrees_BxJ, axis=1).sum(axis=1)
        token_B = jnp.take_along_axis(next_BxQ, accepted_B[:, None], axis=1)[:, 0]
        before = Line(tokens_BxQ[:, 1:], named["settled"], named["states"]) if "settled" in named else None
        drafted = draft(config, weights, verified, cache, accepted_B, heads=heads, dtype=config.dtype, token_B=token_B,
                        before=before)
        cache = write(cache, verified.trunk, drafted.news, None, accepted_B + 1, (logits_BxQxV, drafted.h_BxJxD),
                      again=0 if before is None else settled(heads))
        return {"next": next_BxQ, "accepted": accepted_B, "logits": logits_BxQxV,
                **_kept(config, weights, drafted, cache)}

    return block


def _kept(config: ModelConfig, weights: Weights, drafted: Drafted, cache: Cache) -> dict[str, Any]:
    """Returns the drafts, and what the next block has to be given."""
    if not isinstance(drafted.drafts, Line):
        return {"drafts": highest(draft_logits(config, weights, drafted.h_BxJxD)), "cache": _named(cache)}
    line, kept = drafted.drafts, _named(cache)
    if line.settled_BxR.shape[1]:
        kept |= {"settled": line.settled_BxR, "states": line.h_BxRxD}
    return {"drafts": line.tokens_BxJ, "cache": kept}


def _named(tree: Any) -> Arrays:
    """Returns {"trunk.0.keys": leaf} of a pytree, in the order of jax.tree.leaves; shapes in names are dropped."""
    def one(key: Any) -> str:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                return re.sub(r"_[A-Z]\w*$", "", str(getattr(key, attribute)))
        raise TypeError(f"{key!r} is no key of a dict, list or dataclass.")

    return {".".join(map(one, path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@functools.lru_cache(maxsize=16)
def _weights(config: ModelConfig, heads: int) -> Weights:
    """Returns shapes and dtypes of our own decoding's weights, but for the gate: all loops are run without asking."""
    spec = ModelSpec.create(config)
    weights = jax.eval_shape(lambda params: unstack(spec, params, heads=heads), spec.shapes)
    return dataclasses.replace(weights, gate=None)


def _bind(config: ModelConfig, heads: int, params: Arrays) -> Weights:
    """Returns the weights of these parameters."""
    like = _weights(config, heads)
    tied = {"unembedding.0": params["embedding"]} if config.tie_embedding else {}
    leaves = [leaf.T if name.startswith("unembedding") else leaf
              for name in _named(like) for leaf in [{**params, **tied}[name]]]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _bind_cache(config: ModelConfig, heads: int, named: Arrays) -> Cache:
    """Returns the cache of these arrays."""
    def layers(part: str, count: int) -> tuple[KeysValues, ...]:
        return tuple(KeysValues(named[f"{part}.{i}.keys"], named[f"{part}.{i}.values"]) for i in range(count))

    return Cache(layers("trunk", config.loops * num_trunk_layers(config)), layers("heads", cached_heads(config, heads)),
                 named["lengths"])
