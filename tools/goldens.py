#!/usr/bin/env python3
"""Makes the golden values that the tests of Twinkle compare with, from PyTorch and Hugging Face transformers.

    pip install torch transformers tokenizers safetensors numpy
    python3 tools/goldens.py [--out tests/goldens] [--only forward,generate,...] [--check]

Everything is seeded and runs on one thread, so a second run gives the same files (up to the last bit of the
processor's own arithmetic).  Where transformers allows it the reference runs in float64 and is rounded once, to F32,
at the end: the goldens are then the true values, and a test's tolerance belongs to the program under test alone.
`--check` makes nothing; it reads what is there and recomputes every language-model case with a GPT-2 in NumPy that
shares no code with transformers, gradients by finite differences, and the optimizers from their formulas.

What it writes
    gpt2/CASE/                one model folder as transformers writes it (config.json, model.safetensors), and
      in.safetensors          the arguments of forward, by their Hugging Face names (I64; F32 where they are floats)
      out.safetensors         F32: logits (or start_logits, end_logits, mc_logits, last_hidden_state, by the head),
                              loss [1] (mc_loss [1]), hidden_states.i, and grad.NAME of the loss for every parameter.
                              Where some rows are padding, `compare` [B,T] is 1 for the rows that have defined values:
                              it applies to every output whose first two dimensions are [B,T].
                              Double heads: the gradients are those of loss + mc_loss.  Some gradients are zero in
                              exact arithmetic (a key's bias, the biases of question answering): a test measures the
                              error of a gradient against max(its largest, 1e-3 of the largest of all tensors; 1e-2 where it is zero).
    gpt2/generate.json        [{"model", "ids", "args", "expect", "score"}]: args by their transformers names
    gpt2/tokenize.json        [{"models", "text", "pair", "ids", "tokens", "offsets", "decoded"}]
    warpers.json, warpers.safetensors
                              [{"name", "ids", "args"}] with NAME.logits [V] and NAME.probabilities [V]
    schedulers.json           [{"lr_scheduler_type", "learning_rate", "warmup_steps", "max_steps", "kwargs", "rates"}]:
                              rates[k] is the learning rate that step k+1 uses, k = 0 ... max_steps + 2
    optimizers.json, optimizers.safetensors
                              {CASE: settings}; CASE.initial, CASE.gradients [10,...], CASE.after [10,...]
    train/model/, train/*.safetensors
                              the model all training cases start from, and their data
    train/CASE.json           {"config": keys and values of `twinkle train`, "losses", "rates", "grad_norms" (before
                              clipping), "parameter_norms" (at the end)}: 20 steps; `training_cases` says
                              how a loss is averaged
"""

import argparse
import collections
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

IGNORED = -100  # the label that counts for nothing


# ---- small helpers ------------------------------------------------------------------------------------------------


def write_json(path, value):
    """One JSON file; lists of numbers stay on one line, so that a difference reads well."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n]\n"
    else:
        rows = (f"{json.dumps(key)}: {json.dumps(row, ensure_ascii=False)}" for key, row in value.items())
        text = "{\n" + ",\n".join(rows) + "\n}\n"
    path.write_text(text, encoding="utf-8")


def write_tensors(path, tensors):
    """A safetensors file: integers as I64, floats as F32, names sorted."""
    rounded = {}
    for name in sorted(tensors):
        tensor = torch.as_tensor(tensors[name]).detach()
        rounded[name] = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous().clone()
    save_file(rounded, path, metadata={"format": "pt"})


def random_weights(model, seed):
    """Weights of a size that makes every part of the model matter (the usual 0.02 leaves attention almost uniform)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter, mean, deviation):
        parameter.data.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))

    for name, parameter in model.named_parameters():
        if any(norm in name for norm in ("ln_", "LayerNorm", "layer_norm")):
            normal(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
        elif name.endswith("bias"):
            normal(parameter, 0.0, 0.2)
        elif "wte" in name or "wpe" in name or "embeddings" in name:
            normal(parameter, 0.0, 0.7)
        else:
            fan_in = (
                parameter.shape[1] if isinstance(parameter_owner(model, name), torch.nn.Linear) else parameter.shape[0]
            )
            normal(parameter, 0.0, 1.3 / math.sqrt(fan_in))


def parameter_owner(model, name):
    return model.get_submodule(name.rsplit(".", 1)[0])


def save_model(model, folder):
    """The folder as transformers writes it, without what only generation reads."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def rewrite_weights(folder, change):
    """Puts change(tensors) in the place of the folder's weights."""
    path = folder / "model.safetensors"
    save_file(
        {name: t.contiguous().clone() for name, t in change(load_file(path)).items()}, path, metadata={"format": "pt"}
    )


# ---- forward and gradients ----------------------------------------------------------------------------------------


def tiny(**changes):
    """A config small enough to commit, with sizes that are no multiple of any vector."""
    config = dict(
        vocab_size=61, n_positions=17, n_embd=14, n_head=2, n_layer=2, n_inner=19, bos_token_id=0, eos_token_id=0
    )
    config.update(changes)
    return GPT2Config(**config)


class Inputs:
    """The arguments of one forward call, drawn from a seed."""

    def __init__(self, config, batch, length, seed):
        self.config, self.batch, self.length = config, batch, length
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {"input_ids": self.integers(1, config.vocab_size, batch, length)}

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def floats(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def add(self, **tensors):
        self.tensors.update(tensors)
        return self

    def token_labels(self, classes=None, ignored=2):
        """Labels for every token, the first few of each row and a few others left out."""
        labels = self.integers(0, classes or self.config.vocab_size, self.batch, self.length)
        labels[:, -ignored:] = IGNORED
        labels[0, self.length // 2] = IGNORED
        return self.add(labels=labels)

    def pad(self, side, counts, pad_id=0):
        """Padding of counts[row] tokens on one side; labels there, and of what a padding row predicts, do not count."""
        mask = torch.ones(self.batch, self.length, dtype=torch.long)
        for row, count in enumerate(counts):
            mask[row, self.length - count :] = 0 if side == "right" and count else 1
            mask[row, :count] = 0 if side == "left" and count else mask[row, :count]
        ids = self.tensors["input_ids"].masked_fill(mask == 0, pad_id)
        self.add(input_ids=ids, attention_mask=mask)
        if side == "left":
            self.add(position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        labels = self.tensors.get("labels")
        if labels is not None and labels.shape == mask.shape:
            first_real = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1) == 0
            self.add(labels=labels.masked_fill((mask == 0) | first_real, IGNORED))
        return self


def reference_outputs(model, tensors, gradients=True, exact=True):
    """forward() of transformers in evaluation mode, as `twinkle forward --hidden-states --grads` names its results."""
    dtype = torch.float64 if exact else torch.float32
    model = model.to(dtype).eval()
    model.zero_grad()
    arguments = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    result = model(**arguments, output_hidden_states=True, return_dict=True)

    outputs = {}
    for name, value in result.items():
        if name.endswith("logits") or name in ("last_hidden_state", "pooler_output"):
            outputs[name] = value
    losses = [name for name in ("loss", "mc_loss") if result.get(name) is not None]
    for name in losses:
        outputs[name] = result[name].reshape(1)
    if "mc_logits" not in result:  # the hidden states of double heads have their choices folded into the batch
        for i, hidden in enumerate(result.hidden_states):
            outputs[f"hidden_states.{i}"] = hidden
    if losses and gradients:
        sum(result[name] for name in losses).backward()
        for name, parameter in model.named_parameters():
            tied = getattr(model, "all_tied_weights_keys", {}).get(name, name)  # a tensor has the name it is saved under
            if tied in dict(model.named_parameters()):
                tied = name
            outputs[f"grad.{tied}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if not all(t.isfinite().all() for t in outputs.values()):
        raise SystemExit("a reference value is not finite")
    largest = max((t.abs().max() for name, t in outputs.items() if name.startswith("grad.")), default=0)
    for name, t in outputs.items():
        if exact and name.startswith("grad.") and t.abs().max() < 1e-12 * largest:
            outputs[name] = torch.zeros_like(t)  # zero in exact arithmetic
    return outputs


def rounding_error(model, tensors, outputs):
    """How far float32 is from these outputs, as (worst error / a fifth of what tests allow, the output's name)."""
    plain = reference_outputs(model, tensors, any(key.startswith("grad.") for key in outputs), exact=False)
    rows = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"]))  # the rows that have defined values
    floor = 1e-3 * max((t.abs().max() for key, t in outputs.items() if key.startswith("grad.")), default=torch.ones(()))
    worst = (0.0, "")
    for key, value in outputs.items():
        gradient = key.startswith("grad.")
        other, tolerance = plain[key].double(), 2e-5 if gradient else 2e-6
        if gradient and not value.any():  # zero in exact arithmetic: all of it is rounding
            tolerance *= 10
        if value.dim() >= 2 and value.shape[:2] == rows.shape and not gradient:
            value, other = value[rows != 0], other[rows != 0]
        error = (value - other).abs().max() / max(floor, value.abs().max())
        worst = max(worst, (error.item() / tolerance, key))
    return worst


def forward_case(
    out,
    name,
    head,
    config,
    tensors,
    seed,
    *,
    family="gpt2",
    gradients=True,
    change=None,
    rewrite=None,
    dtype=None,
    shards=0,
    constant=None,
    **options,
):
    """One folder.  `change` gives the tensors other names and forms, `rewrite` makes another kind of file of them; what
    they mean stays.  `constant` names a vector that is one number.  `options` are the head's."""
    folder = out / family / name
    folder.mkdir(parents=True)
    config.architectures = [head]
    config._attn_implementation = "eager"  # the plain formula, and the only one that upcasts and reorders
    model = getattr(transformers, head)(config, **options)
    random_weights(model, seed)
    if constant is not None:
        model.get_parameter(constant).data.fill_(0.25)
    if dtype is not None:
        model = model.to(dtype)
    if shards:
        model.save_pretrained(folder, max_shard_size=shards)
        (folder / "generation_config.json").unlink(missing_ok=True)
    else:
        save_model(model, folder)
    if change is not None:
        rewrite_weights(folder, change)
    if rewrite is not None:
        rewrite(folder)

    exact = not getattr(config, "reorder_and_upcast_attn", False)  # which computes in float32 by its own definition
    outputs = reference_outputs(model, tensors, gradients, exact)
    error, key = rounding_error(model, tensors, outputs)
    if error > 1:
        raise SystemExit(f"{name}: float32 and float64 differ too much in {key}")
    if "attention_mask" in tensors:
        outputs["compare"] = tensors["attention_mask"].float()
    write_tensors(folder / "in.safetensors", tensors)
    write_tensors(folder / "out.safetensors", outputs)


def old_names(tensors):
    """The names of the first GPT-2 checkpoints: no prefix, gamma and beta, buffers that are no parameters."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if ".ln_" in f".{name}":
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[name] = tensor
    positions = renamed["wpe.weight"].shape[0]
    renamed["h.0.attn.bias"] = torch.ones(positions, positions).tril().reshape(1, 1, positions, positions)
    renamed["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    return renamed


def tied_twice_and_unknown(tensors):
    """The tied head written out a second time, and tensors that no GPT-2 has."""
    more = dict(tensors)
    more["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    more["transformer.h.0.attn.rotary.inv_freq"] = torch.arange(5.0)
    more["some.counter"] = torch.tensor([3])
    more["some.flags"] = torch.tensor([True, False, True])
    return more


# ---- PyTorch's own files: each puts pytorch_model.bin in the place of the folder's weights -------------------------


def bin_zip(folder, tensors):
    """What transformers wrote before safetensors: the state dict of a model, its tied head on the same storage."""
    state = collections.OrderedDict(tensors)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save(state, folder / "pytorch_model.bin")


def bin_legacy(folder, tensors):
    """The format before PyTorch 1.6; the names are those of a model on several GPUs."""
    state = {f"module.{name}": t for name, t in tensors.items()}
    state["module.lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def bin_wrapped(folder, tensors):
    """A training program's checkpoint, in the newest protocol: parameters, an optimizer, counters around them."""
    parameters = {name: torch.nn.Parameter(t) for name, t in tensors.items()}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}}
    checkpoint = {
        "epoch": 2,
        "best": 0.25,
        "notes": ["a", None, (1, 2, 3, 4), 1 << 70, b"bytes", True],
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "rng_state": torch.arange(8, dtype=torch.uint8),
        "device": torch.device("cpu"),
        "state_dict": {"model": parameters},
    }
    torch.save(checkpoint, folder / "pytorch_model.bin", pickle_protocol=5)


def bin_views(folder, tensors):
    """All weights in one storage: matrices transposed, vectors with gaps, a constant vector expanded from one number."""
    pieces, views, at = [], {}, 3
    for name, t in tensors.items():
        views[name] = (at, t.shape)
        pieces.append((at, t.t() if t.dim() == 2 else t.repeat_interleave(2)))
        at += 2 * t.numel()
    storage = torch.full((at,), math.nan)
    for begin, piece in pieces:
        storage[begin : begin + piece.numel()] = piece.reshape(-1)
    state = {}
    for name, (begin, shape) in views.items():
        strides = (1, shape[0]) if len(shape) == 2 else (2,)
        state[name] = storage.as_strided(shape, strides, begin)
    state["transformer.ln_f.bias"] = torch.full((1,), 0.25).expand(tensors["transformer.ln_f.bias"].shape)
    torch.save(state, folder / "pytorch_model.bin")


def bin_sharded(folder, tensors):
    """Shards, and the index that says which tensor is where."""
    names = list(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, inside in shards.items():
        torch.save({name: tensors[name] for name in inside}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    write_json(folder / "pytorch_model.bin.index.json", index)


def bin_flagai(folder, tensors):
    """FlagAI's GPT-2: matrices as [out, in], the state dict under "module", a config with FlagAI's keys."""
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: t.t().contiguous() if name.endswith(linear) else t for name, t in tensors.items()}
    state["lm_head.weight"] = torch.zeros_like(state["transformer.wte.weight"])  # FlagAI keeps one and does not use it
    torch.save({"module": state, "iteration": 7}, folder / "pytorch_model.bin")


def in_bin(write):
    """A change of the whole folder, for forward_case."""

    def change(folder):
        path = folder / "model.safetensors"
        write(folder, load_file(path))
        path.unlink()

    return change


def make_forward(out):
    lm, base = "GPT2LMHeadModel", "GPT2Model"

    def lm_inputs(config, batch, length, seed):
        return Inputs(config, batch, length, seed).token_labels()

    # the shape of the real thing in small: n_inner = 4 n_embd, all defaults
    config = tiny(n_embd=20, n_inner=None, vocab_size=67)
    forward_case(out, "default", lm, config, lm_inputs(config, 2, 13, 1).tensors, 1)
    config = tiny(n_embd=28, n_head=4, n_inner=9, vocab_size=103, n_positions=64)
    forward_case(out, "long", lm, config, lm_inputs(config, 1, 63, 2).tensors, 2, gradients=False)
    config = tiny()
    forward_case(out, "one_token", lm, config, Inputs(config, 1, 1, 3).tensors, 3)
    config = tiny(n_layer=1, n_head=1, n_embd=7)
    forward_case(out, "one_head", lm, config, lm_inputs(config, 3, 5, 4).tensors, 4)

    activations = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh"]
    for seed, activation in enumerate(activations, start=10):
        config = tiny(activation_function=activation, n_layer=1, n_embd=10, vocab_size=29)
        forward_case(out, f"activation_{activation}", lm, config, lm_inputs(config, 1, 11, seed).tensors, seed)

    options = {
        "unscaled_attention": dict(scale_attn_weights=False, n_embd=12, n_layer=1),
        "inverse_layer_scale": dict(scale_attn_by_inverse_layer_idx=True, n_layer=3, n_inner=11, n_embd=10),
        "reorder_and_upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
        "layer_norm_epsilon": dict(layer_norm_epsilon=0.03, n_layer=1),
        "untied_head": dict(tie_word_embeddings=False, n_layer=1),
    }
    for seed, (name, option) in enumerate(options.items(), start=30):
        config = tiny(**option)
        forward_case(out, name, lm, config, lm_inputs(config, 2, 9, seed).tensors, seed)

    config = tiny(n_layer=1)
    inputs = lm_inputs(config, 2, 9, 40)
    inputs.add(token_type_ids=inputs.integers(0, 2, 2, 9))
    forward_case(out, "token_type_ids", lm, config, inputs.tensors, 40)
    inputs = lm_inputs(config, 2, 9, 41)
    inputs.add(position_ids=torch.stack([torch.arange(9) + 8, torch.arange(9).flip(0)]))
    forward_case(out, "position_ids", lm, config, inputs.tensors, 41)
    config = tiny()
    inputs = lm_inputs(config, 3, 9, 42).pad("right", [0, 4, 7])
    forward_case(out, "right_padding", lm, config, inputs.tensors, 42)
    inputs = lm_inputs(config, 3, 9, 43).pad("left", [3, 0, 7])
    forward_case(out, "left_padding", lm, config, inputs.tensors, 43)
    config = tiny(n_layer=1)
    inputs = lm_inputs(config, 1, 9, 44)
    inputs.add(attention_mask=torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1, 1]]))  # holes: keys hidden from everyone
    forward_case(out, "mask_with_holes", lm, config, inputs.tensors, 44)

    config = tiny(add_cross_attention=True, n_layer=1, n_embd=12)
    inputs = lm_inputs(config, 2, 7, 45)
    inputs.add(encoder_hidden_states=inputs.floats(2, 5, config.n_embd))
    inputs.add(encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    forward_case(out, "cross_attention", lm, config, inputs.tensors, 45)

    # heads
    config = tiny(n_inner=None, n_layer=1)
    forward_case(out, "base_model", base, config, Inputs(config, 2, 9, 50).tensors, 50)
    config = tiny(num_labels=3, pad_token_id=0)
    inputs = Inputs(config, 3, 9, 51).add(labels=torch.tensor([2, 0, 1])).pad("right", [0, 4, 7])
    forward_case(out, "sequence_single_label", "GPT2ForSequenceClassification", config, inputs.tensors, 51)
    config = tiny(num_labels=4, pad_token_id=0, n_layer=1)
    inputs = Inputs(config, 2, 9, 52).pad("left", [0, 3])
    inputs.add(labels=torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]))
    forward_case(out, "sequence_multi_label", "GPT2ForSequenceClassification", config, inputs.tensors, 52)
    config = tiny(num_labels=1, pad_token_id=60, n_layer=1)
    inputs = Inputs(config, 3, 7, 53).add(labels=torch.tensor([0.7, -1.3, 0.2])).pad("right", [2, 0, 1], pad_id=60)
    forward_case(out, "sequence_regression", "GPT2ForSequenceClassification", config, inputs.tensors, 53)
    config = tiny(num_labels=2, problem_type="regression", n_layer=1)
    inputs = Inputs(config, 1, 7, 54).add(labels=torch.tensor([[0.4, -0.9]]))
    forward_case(out, "sequence_no_pad_token", "GPT2ForSequenceClassification", config, inputs.tensors, 54)
    config = tiny(num_labels=5, n_layer=1)
    inputs = Inputs(config, 2, 9, 55).token_labels(classes=5)
    forward_case(out, "token_classification", "GPT2ForTokenClassification", config, inputs.tensors, 55)
    config = tiny(n_layer=1)
    inputs = Inputs(config, 3, 9, 56)
    inputs.add(
        start_positions=torch.tensor([1, 4, 30]), end_positions=torch.tensor([3, 9, 8])
    )  # past the end: left out
    forward_case(out, "question_answering", "GPT2ForQuestionAnswering", config, inputs.tensors, 56)
    config = tiny(num_labels=1, n_layer=1)
    inputs = Inputs(config, 2, 7, 57)
    inputs.add(
        input_ids=inputs.integers(1, 61, 2, 3, 7),
        labels=inputs.integers(0, 61, 2, 3, 7),
        mc_token_ids=torch.tensor([[6, 2, 4], [0, 6, 5]]),
        mc_labels=torch.tensor([2, 0]),
    )
    forward_case(out, "double_heads", "GPT2DoubleHeadsModel", config, inputs.tensors, 57)

    # the same weights in other files; their gradients say nothing new
    config = tiny()
    same = lm_inputs(config, 2, 9, 60).tensors
    for name, dtype in (("weights_f16", torch.float16), ("weights_bf16", torch.bfloat16)):
        forward_case(out, name, lm, tiny(), same, 60, dtype=dtype, gradients=False)
    forward_case(out, "sharded", lm, tiny(), same, 60, gradients=False, shards="8KB")
    forward_case(out, "old_names", lm, tiny(), same, 60, gradients=False, change=old_names)
    forward_case(out, "tied_twice_and_unknown", lm, tiny(), same, 60, gradients=False, change=tied_twice_and_unknown)
    forward_case(
        out,
        "base_from_head",
        base,
        tiny(),
        {"input_ids": same["input_ids"]},
        60,
        gradients=False,
        change=lambda tensors: {f"transformer.{name}": t for name, t in tensors.items()},
    )
    for write in (bin_zip, bin_legacy, bin_wrapped, bin_sharded, bin_flagai):
        config = tiny(n_layer=1)
        tensors = lm_inputs(config, 2, 5, 61).tensors
        forward_case(out, write.__name__, lm, config, tensors, 61, gradients=False, rewrite=in_bin(write))
    for name, dtype, write in (("bin_bf16", torch.bfloat16, bin_zip), ("bin_f64", torch.float64, bin_legacy)):
        forward_case(out, name, lm, tiny(n_layer=1), tensors, 61, gradients=False, dtype=dtype, rewrite=in_bin(write))
    constant = "transformer.ln_f.bias"
    forward_case(out, "bin_views", lm, tiny(n_layer=1), tensors, 61, constant=constant, rewrite=in_bin(bin_views))


# ---- generation ---------------------------------------------------------------------------------------------------


def markov_rows(vocabulary, rows, length, seed, end_id):
    """Sentences of a small random language: a word has four followers, one far likelier; end_id ends a sentence."""
    rng = np.random.default_rng(seed)
    followers = rng.integers(1, vocabulary, size=(vocabulary, 4))
    followers[rng.random(vocabulary) < 0.15, 1] = end_id
    data = np.zeros((rows, length), dtype=np.int64)
    for row in data:
        word = int(rng.integers(1, vocabulary))
        for i in range(length):
            row[i] = word
            word = int(followers[word, rng.choice(4, p=[0.55, 0.2, 0.15, 0.1])])
    return torch.from_numpy(data)


def trained_model(config, seed, steps=250):
    """A GPT-2 that has seen a little of such a language, so that what it writes is neither constant nor noise."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.architectures = ["GPT2LMHeadModel"]
    model = transformers.GPT2LMHeadModel(config)
    data = markov_rows(config.vocab_size, 128, config.n_positions, seed, config.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        rows = data[(step * 16) % 128 :][:16]
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


class Noise(transformers.LogitsProcessor):
    """Shakes the logits before everything else: a sequence that changes under it hung on a near tie."""

    def __init__(self, size, seed):
        self.size, self.generator = size, torch.Generator().manual_seed(seed)

    def __call__(self, input_ids, scores):
        return scores + self.size * (2 * torch.rand(scores.shape, generator=self.generator) - 1)


def generate_ids(model, ids, args, noise=None):
    """(new ids, beam score or None) from generate() of transformers."""
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id
    )
    settings = {"do_sample": False, "pad_token_id": model.config.vocab_size - 1, **args}
    processors = transformers.LogitsProcessorList([noise] if noise is not None else [])
    prompt = torch.tensor([ids])
    # custom processors run last, when masked scores are -inf already: noise leaves those as they are
    result = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=processors,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    score = float(result.sequences_scores[0]) if result.get("sequences_scores") is not None else None
    if noise is None and score is None:
        for step in result.scores:  # greedy: the two best processed scores of each step
            best = step[0].topk(2).values
            if best[0] - best[1] <= 1e-3:
                raise NearTie
    return result.sequences[0, len(ids) :].tolist(), score


class NearTie(Exception):
    """The two best scores of a step are too close for float32 to tell apart everywhere."""


def safe_generation(model, ids, args, trials=6, generate=generate_ids):
    """The expected ids and beam score, or None where perturbations of 1e-3 change the ids."""
    try:
        expect, score = generate(model, ids, args)
    except NearTie:
        return None
    for trial in range(trials):
        if generate(model, ids, args, Noise(1e-3, trial))[0] != expect:
            return None
    return expect, score


def make_generate(out):
    models = {
        "generate": GPT2Config(
            vocab_size=61, n_positions=64, n_embd=20, n_head=2, n_layer=2, n_inner=24, bos_token_id=0, eos_token_id=0
        ),
        "generate_untied": GPT2Config(
            vocab_size=73,
            n_positions=40,
            n_embd=21,
            n_head=3,
            n_layer=2,
            n_inner=24,
            tie_word_embeddings=False,
            scale_attn_by_inverse_layer_idx=True,
            activation_function="gelu",
            bos_token_id=0,
            eos_token_id=0,
        ),
    }
    no_end = {"min_new_tokens": 24, "max_new_tokens": 24}
    settings = [
        {"max_new_tokens": 1},
        {"max_new_tokens": 20},
        {"max_new_tokens": "to the last position", "min_new_tokens": "to the last position"},
        {"max_new_tokens": 20, "min_new_tokens": 9},
        {"max_new_tokens": 16, "eos_token_id": 7},
        {"max_new_tokens": 24, "repetition_penalty": 1.3},
        {"max_new_tokens": 24, "repetition_penalty": 0.8},
        {**no_end, "no_repeat_ngram_size": 2},
        {**no_end, "no_repeat_ngram_size": 1},
        {**no_end, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
        {"max_new_tokens": 12, "num_beams": 2},
        {"max_new_tokens": 20, "num_beams": 4},
        {"max_new_tokens": 20, "num_beams": 5, "early_stopping": True},
        {"max_new_tokens": 20, "num_beams": 3, "length_penalty": 0.0},
        {"max_new_tokens": 20, "num_beams": 3, "length_penalty": 2.0},
        {"max_new_tokens": 20, "num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
        {"max_new_tokens": 18, "num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
        {"max_new_tokens": 18, "num_beams": 3, "repetition_penalty": 1.2},
        {"max_new_tokens": "to the last position", "min_new_tokens": "to the last position", "num_beams": 3},
    ]
    rows = []
    for seed, (name, config) in enumerate(models.items(), start=70):
        model = trained_model(config, seed)
        folder = out / "gpt2" / name
        save_model(model, folder)
        generator = torch.Generator().manual_seed(seed)
        for setting in settings:
            found, attempts = 0, 0
            while found < 2 and attempts < 60:
                attempts += 1
                length = int(torch.randint(1, 9, (1,), generator=generator))
                ids = torch.randint(1, config.vocab_size, (length,), generator=generator).tolist()
                room = config.n_positions - length
                args = {key: room if value == "to the last position" else value for key, value in setting.items()}
                result = safe_generation(model, ids, args)
                if result is None:
                    continue
                row = {"model": f"gpt2/{name}", "ids": ids, "args": args, "expect": result[0]}
                if result[1] is not None:
                    row["score"] = result[1]
                rows.append(row)
                found += 1
            if not found:
                raise SystemExit(f"generate: no prompt without a near tie for {setting}")
    write_json(out / "gpt2" / "generate.json", rows)


def make_warpers(out):
    """Probabilities after transformers' own processors and warpers, in generate()'s order."""
    generator = torch.Generator().manual_seed(80)
    settings = [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.9},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"top_p": 1.0},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.6},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.85},
        {"temperature": 1.4, "top_k": 30, "min_p": 0.05},
        {"temperature": 0.6, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 2, "top_k": 10},
        {
            "temperature": 0.9,
            "top_k": 12,
            "top_p": 0.7,
            "min_p": 0.08,
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 3,
        },
    ]
    rows, tensors = [], {}
    for i, args in enumerate(settings):
        for vocabulary, ties in ((53, False), (211, True)):
            name = f"case.{i}.{vocabulary}"
            logits = 3 * torch.randn(1, vocabulary, generator=generator)
            if ties and "top_p" not in args:  # equal scores at top-k's edge all stay
                logits = (logits * 4).round() / 4
            ids = torch.randint(0, vocabulary, (1, 12), generator=generator)
            ids[0, 6:9], ids[0, 11] = ids[0, :3], ids[0, 1]  # so that n-grams repeat
            scores = logits.double()
            for processor in warpers(args):
                scores = processor(ids, scores)
            tensors[f"{name}.logits"] = logits[0]
            tensors[f"{name}.probabilities"] = scores.softmax(-1)[0]
            rows.append({"name": name, "ids": ids[0].tolist(), "args": args})
    write_json(out / "warpers.json", rows)
    write_tensors(out / "warpers.safetensors", tensors)


def warpers(args):
    """generate()'s list for these arguments: processors first, then temperature, top-k, top-p, min-p."""
    makers = [
        ("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor),
        ("no_repeat_ngram_size", transformers.NoRepeatNGramLogitsProcessor),
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ]
    return [maker(args[name]) for name, maker in makers if name in args]


# ---- tokenizer ----------------------------------------------------------------------------------------------------

TOKENIZER_TEXT = """The little boat went down the river in the morning, and the river went on to the sea.
"Don't you think we'll be late?" she said. "I've never been late, and I'm not going to be," he'd answered.
In 1984 there were 12 boats; in 2026 there are 128, or 3.5 % more than 124. It's cheaper_than $9.99, isn't it?
The morning was cold. The boats' sails were red, white and blue; their crews sang, laughed and were gone.
naïve café, Größe, señor, привет мир, 你好，世界, こんにちは, 한국어, emoji 🙂🚀, the the the the.
    indented code:  for (i = 0; i < n; i++) { sum += x[i] * y[i]; }
"""

TOKENIZER_PROBES = [
    "The little boat went down to the sea.",
    "",
    " ",
    "   ",
    "a",
    " leading and trailing ",
    "two  spaces   three    four\n\nnew\tlines \n x",
    "Don't we'll I've I'm he'd you're it's IT'S DON'T 's 't'",
    "1984 12 3.14159 ½ ² ٣٤ x1y2",
    "naïve café Größe señor e\u0301 привет 你好，世界 こんにちは 한국어",
    "🙂🚀👩\u200d👩\u200d👧 flags 🇩🇪",
    "non\u00a0breaking\u3000wide\u2028line\u0085next",
    "control\x01\x1f\x7f chars \ufeff bom \ufffd",
    "<|endoftext|>",
    "before<|endoftext|>after <|endoftext|> end",
    "<|endoftext|><|endoftext|>",
    "<|endoftext",
    '--flag -12 \\n "quoted" $9.99 a_b __init__',
    "word" * 40,
    "\r\nwindows\r\nlines\r",
    "MiXeD CaSe UPPER lower",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ℌ ᾳ ǅ",
]


def make_tokenizer(out):
    """A byte-level BPE of 400 tokens, in the new form (tokenizer.json) and in the old (vocab.json, merges.txt)."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT.splitlines(keepends=True), trainer)

    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 400,
        "n_embd": 14,
        "n_head": 2,
        "n_layer": 1,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    tokenizer_config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
    }
    new, old, prefixed = (out / "gpt2" / f"tokenizer_{form}" for form in ("json", "files", "prefix_space"))
    for folder in (new, old, prefixed):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (new / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    tokenizer.save(str(new / "tokenizer.json"))
    tokenizer.model.save(str(old))
    # one with a prefix space, trimmed offsets and the merges as strings, as files before tokenizers 0.20 have them
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    old_form = json.loads(tokenizer.to_str())
    old_form["model"]["merges"] = [" ".join(pair) for pair in old_form["model"]["merges"]]
    (prefixed / "tokenizer.json").write_text(json.dumps(old_form, ensure_ascii=False) + "\n", encoding="utf-8")

    rows = []
    for folders in ((new, old), (prefixed,)):
        reference = tokenizers.Tokenizer.from_file(str(folders[0] / "tokenizer.json"))
        for text, pair in [(text, None) for text in TOKENIZER_PROBES] + [
            ("The boat", " and the sea"),
            ("", "a b"),
            ("é", "é"),
        ]:
            encoding = reference.encode(text, pair)
            rows.append(
                {
                    "models": [f"gpt2/{folder.name}" for folder in folders],
                    "text": text,
                    "pair": pair,
                    "ids": encoding.ids,
                    "tokens": encoding.tokens,
                    "offsets": encoding.offsets,
                    "decoded": reference.decode(encoding.ids, skip_special_tokens=False),
                }
            )
    write_json(out / "gpt2" / "tokenize.json", rows)


# ---- schedulers and optimizers ------------------------------------------------------------------------------------


def make_schedulers(out):
    rows = []
    for kind, kwargs in [
        ("linear", {}),
        ("cosine", {}),
        ("cosine", {"num_cycles": 1.5}),
        ("cosine_with_restarts", {}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {}),
        ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {}),
        ("inverse_sqrt", {"timescale": 20}),
    ]:
        for warmup, steps in ((0, 30), (1, 30), (7, 30), (30, 30), (3, 4)):
            if kind == "polynomial" and warmup == steps:
                continue  # transformers divides by zero
            rates = learning_rates(kind, 5e-4, warmup, steps, steps + 3, kwargs)
            rows.append(
                {
                    "lr_scheduler_type": kind,
                    "learning_rate": 5e-4,
                    "warmup_steps": warmup,
                    "max_steps": steps,
                    "kwargs": kwargs,
                    "rates": rates,
                }
            )
    write_json(out / "schedulers.json", rows)


def learning_rates(kind, rate, warmup, steps, count, kwargs=None):
    """The rates of the first `count` steps by transformers' get_scheduler."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=rate)
    schedule = transformers.get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=kwargs or {}
    )
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms": the sign of an interpolated momentum."""

    def __init__(self, parameters, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(first * momentum + (1 - first) * p.grad))
                momentum.mul_(second).add_(p.grad, alpha=1 - second)


def make_optimizer(settings, groups):
    """An optimizer by its name in cli.md; groups as torch takes them, each with its own weight_decay."""
    rate = settings["learning_rate"]
    betas = (settings.get("adam_beta1", 0.9), settings.get("adam_beta2", 0.999))
    epsilon = settings.get("adam_epsilon", 1e-8)
    options = dict(part.split("=") for part in settings.get("optim_args", "").split(",") if part)
    if settings["optim"] == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, foreach=False)
    if settings["optim"] == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=betas, eps=epsilon, foreach=False)
    if settings["optim"] == "sgd":
        return torch.optim.SGD(
            groups,
            lr=rate,
            momentum=float(options.get("momentum", 0)),
            nesterov=options.get("nesterov") == "true",
            foreach=False,
        )
    if settings["optim"] == "lion":
        return Lion(groups, lr=rate, betas=betas)
    return transformers.Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)


def make_optimizers(out):
    cases = {
        "adamw": {"optim": "adamw", "learning_rate": 1e-2},
        "adamw_decay": {
            "optim": "adamw",
            "learning_rate": 1e-2,
            "weight_decay": 0.3,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-6,
        },
        "adam": {"optim": "adam", "learning_rate": 1e-2},
        "adam_decay": {"optim": "adam", "learning_rate": 1e-2, "weight_decay": 0.3},
        "sgd": {"optim": "sgd", "learning_rate": 1e-1},
        "sgd_decay": {"optim": "sgd", "learning_rate": 1e-1, "weight_decay": 0.3},
        "sgd_momentum": {"optim": "sgd", "learning_rate": 1e-1, "weight_decay": 0.1, "optim_args": "momentum=0.9"},
        "sgd_nesterov": {"optim": "sgd", "learning_rate": 1e-1, "optim_args": "momentum=0.9,nesterov=true"},
        "lion": {"optim": "lion", "learning_rate": 1e-3},
        "lion_decay": {"optim": "lion", "learning_rate": 1e-3, "weight_decay": 0.3, "adam_beta2": 0.99},
        "adafactor": {"optim": "adafactor", "learning_rate": 1e-2},
        "adafactor_decay": {"optim": "adafactor", "learning_rate": 1e-2, "weight_decay": 0.3},
        "adafactor_matrix": {"optim": "adafactor", "learning_rate": 1e-2},
    }
    generator = torch.Generator().manual_seed(90)
    tensors = {}
    for name, settings in cases.items():
        shape = (5, 7) if name.endswith("matrix") else (11,)
        initial = torch.randn(shape, generator=generator)
        gradients = torch.randn((10, *shape), generator=generator) * torch.logspace(-3, 1, 10).reshape(
            10, *([1] * len(shape))
        )
        parameter = torch.nn.Parameter(initial.double())
        group = {"params": [parameter], "weight_decay": settings.get("weight_decay", 0.0)}
        optimizer = make_optimizer(settings, [group])
        after = []
        for gradient in gradients:
            parameter.grad = gradient.double()
            optimizer.step()
            after.append(parameter.detach().clone())
        tensors |= {f"{name}.initial": initial, f"{name}.gradients": gradients, f"{name}.after": torch.stack(after)}
    write_json(out / "optimizers.json", cases)
    write_tensors(out / "optimizers.safetensors", tensors)


# ---- training -----------------------------------------------------------------------------------------------------


def training_cases():
    """What `twinkle train` is asked, for 20 steps each.

    A step's loss is the mean of its micro-batches' losses, each the mean over that micro-batch's own labels, and that
    mean is what the gradient is taken of: so cli.md words it, and what is logged is what is minimised.  Where all
    micro-batches have the same number of labels it equals (sum of losses) / (number of labels) over the window.
    "accumulation_uneven" has micro-batches of different counts and tells the two rules apart; its file also has
    "token_mean_losses", the other rule's values, which are not the expected ones.
    """
    adamw = {"optim": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1}
    once = {"per_device_train_batch_size": 2}
    thrice = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    return {
        "adamw_linear": {**adamw, **once, "lr_scheduler_type": "linear", "warmup_steps": 5, "max_grad_norm": 1.0},
        "adamw_no_clip": {
            **adamw,
            **once,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-6,
        },
        "adamw_strong_decay": {
            **adamw,
            **once,
            "lr_scheduler_type": "inverse_sqrt",
            "warmup_steps": 2,
            "weight_decay": 5.0,
            "max_grad_norm": 0.3,
        },
        "accumulation": {**adamw, **thrice, "lr_scheduler_type": "cosine", "warmup_steps": 2},
        "accumulation_uneven": {**adamw, **thrice, "lr_scheduler_type": "cosine", "train_file": "uneven.safetensors"},
        "adam": {
            **once,
            "optim": "adam",
            "learning_rate": 2e-3,
            "weight_decay": 0.05,
            "lr_scheduler_type": "polynomial",
        },
        "sgd": {**once, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.01, "lr_scheduler_type": "linear"},
        "sgd_momentum": {
            **once,
            "optim": "sgd",
            "learning_rate": 0.05,
            "optim_args": "momentum=0.9",
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
        },
        "lion": {
            **once,
            "optim": "lion",
            "learning_rate": 5e-4,
            "weight_decay": 0.3,
            "adam_beta2": 0.99,
            "lr_scheduler_type": "cosine_with_restarts",
        },
        "adafactor": {
            **once,
            "optim": "adafactor",
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "lr_scheduler_type": "linear",
        },
        "label_smoothing": {
            **adamw,
            **once,
            "lr_scheduler_type": "linear",
            "label_smoothing_factor": 0.1,
            "train_file": "uneven.safetensors",
        },
    }


def smoothed_loss(logits, labels, factor):
    """Trainer's label smoothing, labels shifted: (1-e) nll + e (mean over the vocabulary), averaged over labels."""
    log_p = logits[:, :-1].log_softmax(-1)
    labels = labels[:, 1:]
    valid = labels != IGNORED
    nll = -log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[valid]
    return (1 - factor) * nll.mean() + factor * -log_p.mean(-1)[valid].mean()


def open_model(folder):
    """The model of a folder, by the class that its config names."""
    head = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    return getattr(transformers, head).from_pretrained(folder, attn_implementation="eager")


def decayed_names(model):
    """The parameters that weight decay shrinks, as the Trainer chooses them: no norms, and nothing with "bias" in its name."""
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    return set(transformers.trainer_pt_utils.get_parameter_names(model, [torch.nn.LayerNorm], patterns))


def train(model, data, config, token_mean=False):
    """The loop that `twinkle train` describes, in torch: (losses, rates, norms before clipping) of its steps.

    The model, without dropout, is left as the last step made it.
    """
    model.train()
    names = decayed_names(model)
    spared, decayed = [], []
    for name, parameter in model.named_parameters():
        (decayed if name in names else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.get("weight_decay", 0.0)},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(config, groups)
    schedule = transformers.get_scheduler(
        config["lr_scheduler_type"], optimizer, config.get("warmup_steps", 0), config["max_steps"]
    )
    batch, window = config["per_device_train_batch_size"], config.get("gradient_accumulation_steps", 1)
    smoothing, clip = config.get("label_smoothing_factor", 0.0), config.get("max_grad_norm", 1.0)
    count = len(data["input_ids"])

    losses, rates, norms = [], [], []
    for step in range(config["max_steps"]):
        optimizer.zero_grad()
        parts = []
        for micro in range(window):
            rows = [((step * window + micro) * batch + i) % count for i in range(batch)]
            parts.append({name: tensor[rows] for name, tensor in data.items()})
        weights = [1 / window] * window
        if token_mean:
            counts = [int((part["labels"][:, 1:] != IGNORED).sum()) for part in parts]
            weights = [n / sum(counts) for n in counts]
        total = 0.0
        for part, weight in zip(parts, weights, strict=True):
            result = model(**part)
            loss = smoothed_loss(result.logits, part["labels"], smoothing) if smoothing else result.loss
            (weight * loss).backward()
            total += weight * loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip if clip > 0 else math.inf)
        losses.append(total)
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(float(norm))
        optimizer.step()
        schedule.step()
    return losses, rates, norms


def make_train(out):
    folder = out / "train"
    folder.mkdir(parents=True)
    config = tiny(n_positions=19, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config.architectures = ["GPT2LMHeadModel"]
    model = transformers.GPT2LMHeadModel(config)
    random_weights(model, 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.6 if parameter.dim() > 1 else 1.0)
    save_model(model, folder / "model")

    rows = markov_rows(61, 30, 19, 101, 0)  # 30 rows: wraps around inside the 20 steps
    even = rows.clone()
    uneven = rows.clone()
    for i, row in enumerate(uneven):  # every third row is long, the others lose most of their labels
        row[: 2 + 7 * (i % 3)] = IGNORED
    data = {
        "even.safetensors": {"input_ids": rows, "labels": even},
        "uneven.safetensors": {"input_ids": rows, "labels": uneven},
    }
    for name, tensors in data.items():
        write_tensors(folder / name, tensors)

    for name, settings in training_cases().items():
        config = {
            "model": "model",
            "train_file": "even.safetensors",
            "max_steps": 20,
            "shuffle": False,
            "logging_steps": 1,
            "seed": 1,
            **settings,
        }
        tensors = data[config["train_file"]]
        models = {dtype: open_model(folder / "model").to(dtype) for dtype in (torch.float64, torch.float32)}
        results = {dtype: train(model, tensors, config) for dtype, model in models.items()}
        worst = max(abs(a - b) for a, b in zip(*(losses for losses, _, _ in results.values()), strict=True))
        # A key's bias has no effect, and its gradient is rounding noise.  Adafactor divides it by its own size and lets
        # it into the RMS that the whole bias is clipped by, so the losses depend on it: float32 is the reference.
        noisy = config["optim"] == "adafactor"
        if worst > (2e-4 if noisy else 2e-5):
            raise SystemExit(f"train/{name}: float32 and float64 differ by {worst:.1e}")
        reference = torch.float32 if noisy else torch.float64
        result = {"config": config, **dict(zip(("losses", "rates", "grad_norms"), results[reference], strict=True))}
        result["parameter_norms"] = {key: p.detach().norm().item() for key, p in models[reference].named_parameters()}
        if name == "accumulation_uneven":
            result["token_mean_losses"] = train(
                open_model(folder / "model").double(), tensors, config, token_mean=True
            )[0]
        write_json(folder / f"{name}.json", result)


# ---- an independent look at what was made ---------------------------------------------------------------------------


def numpy_gpt2(config, weights, tensors):
    """GPT-2's hidden states, logits and loss in NumPy float64, from the formulas; self-attention and LM head only."""
    get = {name.removeprefix("transformer."): w for name, w in weights.items()}.__getitem__
    heads = config["n_head"]
    ids = tensors["input_ids"]
    batch, length = ids.shape
    positions = tensors.get("position_ids", np.arange(length)[None])
    visible = np.tril(np.ones((length, length), bool))[None, None] & (
        tensors.get("attention_mask", np.ones_like(ids))[:, None, None, :] != 0
    )
    erf = np.vectorize(math.erf)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    tanh_gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    activation = {
        "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        "gelu_new": tanh_gelu,
        "gelu_fast": tanh_gelu,
        "gelu_pytorch_tanh": tanh_gelu,
        "quick_gelu": lambda x: x * sigmoid(1.702 * x),
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x * sigmoid(x),
        "swish": lambda x: x * sigmoid(x),
        "tanh": np.tanh,
    }[config["activation_function"]]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        return centred / deviation * get(f"{name}.weight") + get(f"{name}.bias")

    def conv1d(x, name):
        return x @ get(f"{name}.weight") + get(f"{name}.bias")

    def split(x):  # [B,T,E] -> [B,H,T,D]
        return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    h = get("wte.weight")[ids] + get("wpe.weight")[positions]
    if "token_type_ids" in tensors:
        h = h + get("wte.weight")[tensors["token_type_ids"]]
    states = [h]
    for layer in range(config["n_layer"]):
        at = f"h.{layer}"
        q, k, v = (split(x) for x in np.split(conv1d(norm(h, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, axis=-1))
        scale = q.shape[-1] ** -0.5 if config["scale_attn_weights"] else 1.0
        if config["scale_attn_by_inverse_layer_idx"]:
            scale /= layer + 1
        scores = np.where(visible, q @ k.transpose(0, 1, 3, 2) * scale, -1e300)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        h = h + conv1d(mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1), f"{at}.attn.c_proj")
        h = h + conv1d(activation(conv1d(norm(h, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
        states.append(h)
    states[-1] = norm(h, "ln_f")
    head = weights.get("lm_head.weight") if not config["tie_word_embeddings"] else get("wte.weight")
    logits = states[-1] @ head.T
    loss = None
    if "labels" in tensors:
        labels = tensors["labels"][:, 1:]
        shifted = logits[:, :-1] - logits[:, :-1].max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
        loss = -picked[labels != IGNORED].mean()
    return states, logits, loss


def as_arrays(path):
    return {name: t.numpy() if not t.is_floating_point() else t.double().numpy() for name, t in load_file(path).items()}


def check(out):
    """Recomputes what needs no transformers: one line per kind, and an end at the first difference."""
    compared, worst = 0, 0.0
    rng = np.random.default_rng(0)
    for folder in sorted((out / "gpt2").iterdir()):
        if not (folder / "out.safetensors").exists():
            continue
        config = json.loads((folder / "config.json").read_text())
        config = {**GPT2Config().to_dict(), **config}
        single_file = folder / "model.safetensors"
        if config["architectures"] != ["GPT2LMHeadModel"] or config["add_cross_attention"] or not single_file.exists():
            continue
        weights, tensors, expected = (
            as_arrays(folder / name) for name in ("model.safetensors", "in.safetensors", "out.safetensors")
        )
        if "ln_f.gamma" in weights:
            weights = {n.replace("gamma", "weight").replace("beta", "bias"): w for n, w in weights.items()}
        states, logits, loss = numpy_gpt2(config, weights, tensors)
        rows = expected.get("compare", np.ones(tensors["input_ids"].shape)) != 0
        pairs = [(logits[rows], expected["logits"][rows])]
        pairs += [(state[rows], expected[f"hidden_states.{i}"][rows]) for i, state in enumerate(states)]
        if loss is not None:
            pairs.append((loss, expected["loss"][0]))
        for mine, golden in pairs:
            error = np.abs(mine - golden).max() / np.abs(golden).max()
            worst, compared = max(worst, error), compared + 1
            if error > 1e-6:
                raise SystemExit(f"{folder.name}: differs from NumPy by {error:.1e}")
        for name in [n for n in expected if n.startswith("grad.")]:  # along one random direction per parameter
            weight = weights[name.removeprefix("grad.")]
            direction = rng.standard_normal(weight.shape)
            sides = []
            for sign in (1, -1):
                moved = {**weights, name.removeprefix("grad."): weight + sign * 1e-5 * direction}
                sides.append(numpy_gpt2(config, moved, tensors)[2])
            slope, golden = (sides[0] - sides[1]) / 2e-5, (expected[name] * direction).sum()
            size = np.abs(expected[name]).max() * math.sqrt(direction.size)
            compared += 1
            if abs(slope - golden) > 2e-6 * max(size, 1.0):
                raise SystemExit(f"{folder.name}: {name} along a direction is {slope:.8f}, the golden one {golden:.8f}")
    print(f"forward: {compared} tensors agree with NumPy; values to {worst:.1e}, gradients along a direction")

    settings = json.loads((out / "optimizers.json").read_text())
    tensors = as_arrays(out / "optimizers.safetensors")
    for name, row in settings.items():
        mine = numpy_optimizer(row, tensors[f"{name}.initial"], tensors[f"{name}.gradients"])
        error = np.abs(mine - tensors[f"{name}.after"]).max()
        if error > 1e-6:
            raise SystemExit(f"optimizers: {name} differs from NumPy by {error:.1e}")
    print(f"optimizers: {len(settings)} cases agree with NumPy")


def numpy_optimizer(settings, p, gradients):
    """Ten steps of one optimizer from its formula.  m and v are running means of g and g^2."""
    rate, decay, kind = settings["learning_rate"], settings.get("weight_decay", 0.0), settings["optim"]
    b1, b2 = settings.get("adam_beta1", 0.9), settings.get("adam_beta2", 0.999)
    momentum = 0.9 if "momentum" in settings.get("optim_args", "") else 0.0
    m, v, row, column = np.zeros_like(p), np.zeros_like(p), 0.0, 0.0
    after = []
    for t, g in enumerate(gradients, start=1):
        if kind in ("adam", "sgd"):
            g = g + decay * p
        if kind in ("adam", "adamw"):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + settings.get("adam_epsilon", 1e-8))
        elif kind == "sgd":
            m = momentum * m + g if t > 1 else g
            update = g + momentum * m if "nesterov" in settings.get("optim_args", "") else m
        elif kind == "lion":
            update = np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
        else:
            keep = 1 - t**-0.8
            square = g * g + 1e-30
            if p.ndim > 1:
                row = keep * row + (1 - keep) * square.mean(-1, keepdims=True)
                column = keep * column + (1 - keep) * square.mean(-2, keepdims=True)
                update = g / np.sqrt(row * column / row.mean())
            else:
                v = keep * v + (1 - keep) * square
                update = g / np.sqrt(v)
            update = update / max(1.0, math.sqrt((update**2).mean()))
        if kind in ("adamw", "lion", "adafactor"):
            p = p * (1 - rate * decay)
        p = p - rate * update
        after.append(p)
    return np.stack(after)


# ---- main -----------------------------------------------------------------------------------------------------------

PARTS = {
    "forward": (make_forward, lambda out: [d for d in (out / "gpt2").glob("*/") if (d / "out.safetensors").exists()]),
    "generate": (
        make_generate,
        lambda out: [out / "gpt2" / n for n in ("generate", "generate_untied", "generate.json")],
    ),
    "warpers": (make_warpers, lambda out: list(out.glob("warpers.*"))),
    "tokenizer": (make_tokenizer, lambda out: [*(out / "gpt2").glob("tokenizer_*"), out / "gpt2" / "tokenize.json"]),
    "schedulers": (make_schedulers, lambda out: [out / "schedulers.json"]),
    "optimizers": (make_optimizers, lambda out: list(out.glob("optimizers.*"))),
    "train": (make_train, lambda out: [out / "train"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma: " + ", ".join(PARTS))
    parser.add_argument("--check", action="store_true", help="recompute what is there with NumPy; make nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if options.check:
        check(options.out)
        return
    for name in options.only.split(","):
        make, owned = PARTS[name]
        for path in owned(options.out):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        make(options.out)
    for path in options.out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
