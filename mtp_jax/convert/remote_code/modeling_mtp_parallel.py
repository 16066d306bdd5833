"""A language model with several prediction heads, for transformers: head k predicts the token k places ahead.

Written by mtp_jax beside the weights; needs torch and transformers only (checked with 4.57 and 5.23).

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model(ids).logits                              # head 1: [B, L, V], like any causal language model
    model(ids, output_all_heads=True).logits       # every head: [B, L, N, V]
    model.generate(ids, max_new_tokens=64)         # head 1 alone
    model.generate(ids, max_new_tokens=64, heads=4)  # the same text in fewer forwards: heads 2 to 4 draft
    model.generate_speculative(ids, max_new_tokens=64)  # all heads; also says how many forwards it took
"""

import functools
import inspect
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import DynamicCache, GenerationMixin, LlamaConfig, PreTrainedModel, StopStringCriteria
from transformers.generation import GenerationMode, StoppingCriteriaList
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.utils import ModelOutput

LAYER_KINDS = ("parallel", "causal", "anticausal")  # a head is a transformer layer, with keys and values of its own
MAP_KINDS = ("linear", "medusa")  # a head is a small map behind the final norm


class MTPParallelConfig(LlamaConfig):
    """Llama's fields, and the heads.

    Args:
      num_prediction_heads: N.
      head_kind: how they are wired to the trunk, whose output is z. "parallel": norm(layer_k(z)). "causal":
        s_k = layer_k(s_(k-1)) from s_0 = z, norm(s_k). "anticausal": s_k = layer_k(s_(k+1)) from s_(N+1) = z,
        norm(s_k). "linear": map_k(norm(z)). "medusa": head 1 is norm(z); the others add silu(map_ki(x)) to it, layer
        after layer.
      medusa_layers: number of these layers.
      replicated_unembedding: each head has an unembedding of its own.
      qk_norm: RMSNorm on queries and keys.
      kwargs: Llama's; `num_hidden_layers` counts the trunk's layers and those of the heads.
    """

    model_type = "mtp_parallel"

    def __init__(self, num_prediction_heads=1, head_kind="parallel", medusa_layers=1, replicated_unembedding=False,
                 qk_norm=False, **kwargs):
        self.num_prediction_heads = num_prediction_heads
        self.head_kind = head_kind
        self.medusa_layers = medusa_layers
        self.replicated_unembedding = replicated_unembedding
        self.qk_norm = qk_norm
        super().__init__(**kwargs)
        if qk_norm:  # Qwen3's attention asks for these
            self.sliding_window = None
            self.layer_types = ["full_attention"] * self.num_hidden_layers

    def validate_architecture(self):
        """The width of an attention head is a field of its own: Llama's check does not apply."""

    @property
    def num_trunk_layers(self):
        """Number of layers that all heads share."""
        return self.num_hidden_layers - (self.num_prediction_heads if self.head_kind in LAYER_KINDS else 0)


class MedusaHead(nn.Module):
    """Residual layers: x + silu(W x)."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.layers = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(config.medusa_layers))

    def forward(self, x):
        for layer in self.layers:
            x = x + nn.functional.silu(layer(x))
        return x


class MTPParallelPreTrainedModel(PreTrainedModel):
    config_class = MTPParallelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class MTPParallelModel(MTPParallelPreTrainedModel):
    """Embedding, trunk, heads and final norm."""

    def __init__(self, config):
        super().__init__(config)
        if config.head_kind not in LAYER_KINDS + MAP_KINDS:
            raise ValueError(f"head_kind={config.head_kind!r} in config.json must be one of {LAYER_KINDS + MAP_KINDS}.")
        trunk, N, D = config.num_trunk_layers, config.num_prediction_heads, config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, D)
        self.layers = nn.ModuleList(self._layer(config, i) for i in range(trunk))
        if config.head_kind in LAYER_KINDS:
            self.heads = nn.ModuleList(self._layer(config, trunk + k) for k in range(N))
        elif config.head_kind == "linear":
            self.heads = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(N))
        else:
            self.heads = nn.ModuleList(MedusaHead(config) for _ in range(N - 1))
        self.norm = LlamaRMSNorm(D, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @staticmethod
    def _layer(config, index):
        layer = LlamaDecoderLayer(config, index)
        if config.qk_norm:
            layer.self_attn = Qwen3Attention(config, index)
        return layer

    def cached_layers(self, heads):
        """Returns the numbers of the layers that keep keys and values when the first `heads` heads are run."""
        trunk, N = self.config.num_trunk_layers, self.config.num_prediction_heads
        used = {"parallel": heads, "causal": heads, "anticausal": N}.get(self.config.head_kind, 0)
        return range(trunk + used)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                use_cache=None, heads=1, output_hidden_states=False, **kwargs):
        """Runs the trunk and the first `heads` heads.

        Returns:
          BaseModelOutputWithPast whose last_hidden_state is [heads, B, L, D], behind the final norm: row k - 1 is of
          head k.

        Raises:
          ValueError: both or neither of input_ids and inputs_embeds; or the cache was filled with fewer heads.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = not self.training and self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else self._past(past_key_values, heads)
        if position_ids is None:
            position_ids = (past + torch.arange(h.shape[1], device=h.device))[None]
        arguments = {"config": self.config, "attention_mask": attention_mask, "past_key_values": past_key_values,
                     "position_ids": position_ids}
        names = inspect.signature(create_causal_mask).parameters
        arguments["inputs_embeds" if "inputs_embeds" in names else "input_embeds"] = h
        if "cache_position" in names:  # transformers 4
            kwargs["cache_position"] = torch.arange(h.shape[1], device=h.device) + past
            arguments["cache_position"] = kwargs["cache_position"]
        kwargs.update(attention_mask=create_causal_mask(**arguments), position_ids=position_ids,
                      past_key_values=past_key_values, use_cache=past_key_values is not None,
                      position_embeddings=self.rotary_emb(h, position_ids=position_ids))
        states = [h]
        for layer in self.layers:
            h = layer(h, **kwargs)
            states.append(h)
        heads_BxLxD = self._run_heads(h, heads, kwargs)
        states.append(heads_BxLxD[0])
        return BaseModelOutputWithPast(last_hidden_state=torch.stack(heads_BxLxD), past_key_values=past_key_values,
                                       hidden_states=tuple(states) if output_hidden_states else None)

    def _run_heads(self, z, count, kwargs):
        """Returns the states of the first `count` heads, each [B, L, D]."""
        kind = self.config.head_kind
        if kind == "parallel":
            return [self.norm(head(z, **kwargs)) for head in self.heads[:count]]
        if kind in ("causal", "anticausal"):
            states = []
            for head in self.heads[:count] if kind == "causal" else reversed(self.heads):
                z = head(z, **kwargs)
                states.append(self.norm(z))
            return states if kind == "causal" else states[::-1][:count]
        x = self.norm(z)
        if kind == "linear":
            return [head(x) for head in self.heads[:count]]
        return [x, *(head(x) for head in self.heads[:count - 1])]

    def _past(self, cache, heads):
        """Returns how many positions are cached."""
        past = cache.get_seq_length()
        for index in self.cached_layers(heads):
            if cache.get_seq_length(index) != past:
                raise ValueError(f"past_key_values holds {past} positions of the trunk and "
                                 f"{cache.get_seq_length(index)} of a head: it was filled with fewer heads than the "
                                 f"{heads} that are run now. Start from an empty cache.")
        return past


class MTPParallelForCausalLM(MTPParallelPreTrainedModel, GenerationMixin):
    """The model with its unembeddings."""

    _tied_weights_keys = ({"lm_head.weight": "model.embed_tokens.weight"}
                          if int(transformers.__version__.split(".")[0]) >= 5 else ["lm_head.weight"])

    def __init__(self, config):
        super().__init__(config)
        self.model = MTPParallelModel(config)
        self.vocab_size = config.vocab_size
        if config.replicated_unembedding:
            self.lm_heads = nn.ModuleList(nn.Linear(config.hidden_size, config.vocab_size, bias=False)
                                          for _ in range(config.num_prediction_heads))
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_heads[0] if self.config.replicated_unembedding else self.lm_head

    def set_output_embeddings(self, new):
        if self.config.replicated_unembedding:
            raise ValueError("The model has an unembedding a head (replicated_unembedding): one cannot replace them.")
        self.lm_head = new

    def unembed(self, h, head):
        """Returns the logits of head number `head`, from 1."""
        return (self.lm_heads[head - 1] if self.config.replicated_unembedding else self.lm_head)(h)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                labels=None, use_cache=None, logits_to_keep=0, output_all_heads=False, output_hidden_states=None,
                output_attentions=None, return_dict=None, **kwargs):
        """Runs head 1, or all heads.

        Args:
          labels: token ids, as input_ids; -100 is left out. The heads shift them themselves: head k by k.
          logits_to_keep: logits of this many last positions only, or at these positions; 0: of all.
          output_all_heads: logits become [B, L, N, V], with [:, i, k - 1] head k's for the token at i + k, and the loss
            the sum over heads of each head's mean; and past_key_values holds the keys and values of every head.
            Otherwise logits are head 1's, [B, L, V].
          output_hidden_states: also return the embeddings, the trunk's states and head 1's.
          kwargs: passed to the layers.

        Raises:
          ValueError: output_attentions is asked for, labels beside logits_to_keep, or as `MTPParallelModel.forward`.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions is not offered by this model: leave it out.")
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("labels need the logits of every position: leave out logits_to_keep.")
        N = self.config.num_prediction_heads
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        loss_kwargs = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        outputs = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids,
                             past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
                             heads=N if output_all_heads else 1, output_hidden_states=wanted, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = [self.unembed(h[:, kept], k) for k, h in enumerate(outputs.last_hidden_state, 1)]
        loss = None
        if labels is not None:
            ahead = [nn.functional.pad(labels, (0, k), value=-100)[:, k:].contiguous() for k in range(1, N + 1)]
            loss = sum(self.loss_function(logits=head, labels=None, vocab_size=self.config.vocab_size,
                                          shift_labels=shifted, **loss_kwargs)
                       for head, shifted in zip(logits, ahead))
        result = CausalLMOutputWithPast(loss=loss, logits=torch.stack(logits, dim=2) if output_all_heads else logits[0],
                                        past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states)
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def generate(self, inputs=None, generation_config=None, *args, heads=None, **kwargs):
        """As transformers' `generate`; with `heads` it writes several tokens a forward.

        Heads 2 to `heads` draft the tokens after the next one and head 1 verifies them in one forward. Greedy text is
        that of head 1 alone (in fp32: in bf16 two tokens may tie, and a block rounds unlike a single position). Sampled
        text has head 1's distribution, whatever the temperature and the other logits processors, but not the same draws
        for the same seed. Rows of a batch accept different numbers of tokens; prompts are padded on the left.

        Args:
          heads: heads in use, from 1 to the model's number. None: plain generation with head 1, in any mode.
          args, kwargs: as transformers' `generate`; with `heads`, by name.

        Raises:
          ValueError: heads is out of range, or beside a way of decoding that drafts are not offered for.
        """
        if heads is None:
            return super().generate(inputs, generation_config, *args, **kwargs)
        if not 1 <= heads <= self.config.num_prediction_heads:
            raise ValueError(f"heads={heads} must lie in 1..{self.config.num_prediction_heads}, the model's heads.")
        if args:
            raise ValueError("heads beside arguments without names: name all but inputs and generation_config.")
        for name in ("assistant_model", "synced_gpus", "custom_generate"):
            if kwargs.get(name):
                raise ValueError(f"{name} is not offered with heads: leave out one of the two.")
        # transformers hands streamer and tokenizer to its own modes only.
        strings, tokenizer = kwargs.pop("stop_strings", None), kwargs.pop("tokenizer", None)
        if strings:
            if tokenizer is None:
                raise ValueError("stop_strings needs the tokenizer: pass tokenizer=TOKENIZER too.")
            kwargs["stopping_criteria"] = StoppingCriteriaList(
                [*(kwargs.get("stopping_criteria") or []), StopStringCriteria(tokenizer, strings)])
        decode = functools.partial(_speculate, heads=heads, streamer=kwargs.pop("streamer", None))
        return super().generate(inputs, generation_config, custom_generate=decode, **kwargs)

    def generate_speculative(self, inputs=None, generation_config=None, heads=None, **kwargs):
        """As `generate` with all heads, or the first `heads`; returns a SpeculativeOutput."""
        heads = self.config.num_prediction_heads if heads is None else heads
        return self.generate(inputs, generation_config, heads=heads, return_dict_in_generate=True, **kwargs)


@dataclass
class SpeculativeOutput(ModelOutput):
    """Text and what it took.

    Attributes:
      sequences: prompts and new tokens, [B, L]; rows that ended early are padded.
      produced: new tokens of each row, [B]; an end token counts.
      forwards: forwards of each row, [B]; its prompt's counts as one, so that head 1 alone has one a token.
      accepted: in how many forwards at least 1, 2, .. drafts went into the text, [B, heads - 1].
    """

    sequences: torch.LongTensor | None = None
    produced: torch.LongTensor | None = None
    forwards: torch.LongTensor | None = None
    accepted: torch.LongTensor | None = None

    @property
    def tokens_per_forward(self):
        """New tokens over forwards, of all rows together."""
        return (self.produced.sum() / self.forwards.sum()).item()


@torch.no_grad()
def _speculate(model, input_ids, logits_processor, stopping_criteria, generation_config, *, heads, streamer,
               **model_kwargs):
    """Self-speculative decoding: transformers' `generate` prepares the arguments and calls this.

    A block is the newest token, which no layer has read yet, and the drafts behind it. The trunk and every head read
    it once; what head 1 says after each of its tokens decides how many drafts stay. Positions that no row keeps are cut
    off the cache; those that one row keeps and another does not are masked for the other from then on. Such a gap
    changes nothing for its row, whose positions are counted without it.

    A draft is accepted if it is the token that head 1 chooses there, be it the likeliest or drawn from its
    distribution p: a draft x then stays with probability p(x), and otherwise the token is distributed as p without x.
    """
    _check(generation_config, model_kwargs, streamer, len(input_ids))
    B, device = len(input_ids), model.device
    input_ids = input_ids.to(device)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask.to(device, torch.long)
    positions = model_kwargs.get("position_ids")
    positions = (mask.cumsum(1) - 1).clamp(min=0) if positions is None else positions.to(device)
    cache, read = DynamicCache(config=model.config), 0
    lengths = positions.expand(B, -1)[:, -1] + 1  # of each row, without the newest token
    block, drafts = input_ids, [[] for _ in range(B)]
    rows, running = list(input_ids), [True] * B
    if streamer is not None:
        streamer.put(input_ids.cpu())
    forwards, accepted = torch.zeros(B, dtype=torch.long), torch.zeros(B, heads - 1, dtype=torch.long)
    while True:
        states = model.model(block, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                             heads=heads).last_hidden_state
        first = 0 if read else block.shape[1] - 1  # a prompt is followed by one token, a block's every token by one
        logits = model.unembed(states[0][:, first:], 1).to(torch.float32)
        chosen = None if logits_processor else _choose(logits, generation_config.do_sample)
        kept = [0] * B
        for b in (b for b in range(B) if running[b]):
            start, right = len(rows[b]), 0
            for i in range(len(drafts[b]) + 1):
                if chosen is None:
                    # Some processors know the rows of the batch by their place, so they are given as many.
                    scores = logits_processor(rows[b].repeat(B, 1), logits[b, i].repeat(B, 1))[b:b + 1]
                    token = _choose(scores, generation_config.do_sample)
                else:
                    token = chosen[b, i:i + 1]
                rows[b] = torch.cat([rows[b], token])
                right += i < len(drafts[b]) and token.item() == drafts[b][i]
                running[b] = not stopping_criteria(rows[b][None], None).all()
                if right == i or not running[b]:
                    break
            kept[b] = right
            forwards[b] += 1
            accepted[b, :right] += 1
            if streamer is not None:
                streamer.put(rows[b][start:].cpu())
        if not any(running):
            break
        # Of a row that has ended, nothing is kept: nobody will read it.
        kept_B = torch.tensor([kept[b] if running[b] else -1 for b in range(B)], device=device)
        if read:
            width = int(kept_B.max()) + 1
            mask = torch.cat([mask[:, :read], torch.arange(width, device=device) <= kept_B[:, None]], dim=1)
            lengths = lengths + kept_B + 1
        else:
            width = block.shape[1]
        read += width
        _crop(cache, read)
        last = states[:, torch.arange(B, device=device), first + kept_B.clamp(min=0)]  # [heads, B, D]
        guesses = [model.unembed(h, k).argmax(-1) for k, h in enumerate(last[1:], 2)]
        block = torch.stack([torch.stack([row[-1] for row in rows]), *guesses], dim=1)
        drafts = block[:, 1:].tolist()
        positions = lengths[:, None] + torch.arange(heads, device=device)
        mask = torch.cat([mask, torch.ones_like(block)], dim=1)
    if streamer is not None:
        streamer.end()
    pad = getattr(generation_config, "_pad_token_tensor", None)
    sequences = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else pad.item())
    if not generation_config.return_dict_in_generate:
        return sequences
    produced = torch.tensor([len(row) for row in rows]) - input_ids.shape[1]
    return SpeculativeOutput(sequences=sequences, produced=produced, forwards=forwards, accepted=accepted)


def _choose(scores, sample):
    """Returns the next token for scores [..., V]: drawn, or the likeliest."""
    if not sample:
        return scores.argmax(-1)
    probs = scores.softmax(-1)
    return torch.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])


def _crop(cache, length):
    """Keeps the first `length` positions of a cache; layers that nothing was written to are passed over."""
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def _check(config, model_kwargs, streamer, batch):
    """Raises ValueError for what drafts are not offered with."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"heads drafts for greedy decoding and sampling, and the settings ask for {mode.value}: leave "
                         "out heads, or that.")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise ValueError(f"{name}=True is not offered with heads: leave out one of the two.")
    if not config.use_cache:
        raise ValueError("use_cache=False is not offered with heads, which read what is cached: leave it out.")
    if streamer is not None and batch > 1:
        raise ValueError(f"a streamer takes one row, and there are {batch}: leave out the streamer.")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and (not isinstance(cache, DynamicCache) or cache.get_seq_length()):
        raise ValueError("heads needs a dynamic cache that is still empty, for each head fills its own: leave out "
                         "past_key_values and cache_implementation.")
    known = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
    unknown = sorted(set(model_kwargs) - known)
    if unknown:
        raise ValueError(f"{unknown[0]} is not offered with heads: leave out one of the two.")
