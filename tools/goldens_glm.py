#!/usr/bin/env python3
"""Makes the golden values of both families that are called GLM: FlagAI's (blank filling), run from FlagAI's own code, and
the newer `glm` and `glm4` of Hugging Face transformers.

    pip install torch transformers safetensors numpy
    git clone https://github.com/FlagAI-Open/FlagAI
    python3 tools/goldens_glm.py --flagai FlagAI [--out tests/goldens] [--only glm,glm_hf]

The format is that of tools/goldens.py: glm/CASE and glm_hf/CASE are model folders with in.safetensors and out.safetensors.
FlagAI's model returns its memories as `hidden_states`; they are called mems.0 ... mems.N here, and hidden_states.i are what
goes into and comes out of its blocks, the last one behind the final norm.  References run in float64.
"""

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from goldens import IGNORED, Inputs, reference_outputs, rounding_error, save_model, write_json, write_tensors  # noqa: E402


def random_weights(model, seed):
    """Weights of a size that makes every part of the model matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            mean, deviation = (1.0 if name.endswith("weight") else 0.0), 0.2
        elif parameter.dim() == 1:
            mean, deviation = 0.0, 0.2
        elif "embed" in name:
            mean, deviation = 0.0, 0.7
        else:
            mean, deviation = 0.0, 1.3 / math.sqrt(parameter.shape[1])
        parameter.data.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))


# ---- FlagAI's GLM -------------------------------------------------------------------------------------------------


def tiny(**changes):
    config = dict(
        num_layers=2,
        vocab_size=61,
        hidden_size=14,
        num_attention_heads=2,
        embedding_dropout_prob=0.1,
        attention_dropout_prob=0.1,
        output_dropout_prob=0.1,
        max_sequence_length=24,
        max_memory_length=0,
        checkpoint_activations=False,
        checkpoint_num_layers=1,
        parallel_output=True,
        relative_encoding=False,
        block_position_encoding=True,
        output_predict=True,
        spell_length=None,
        spell_func="lstm",
        attention_scale=1.0,
    )
    config.update(changes)
    return config


class Blanks:
    """Rows of a context and an answer, as GLM reads them."""

    def __init__(self, config, batch, length, seed, separators):
        self.config, self.batch, self.length, self.separators = config, batch, length, separators
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {
            "input_ids": self.integers(1, config["vocab_size"], batch, length),
            "attention_mask": torch.tensor(separators),
        }
        if config["block_position_encoding"]:
            self.tensors["position_ids"] = self.positions(separators, length)
        else:
            self.tensors["position_ids"] = torch.arange(length).expand(batch, length).contiguous()

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def floats(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def positions(self, separators, length):
        rows = []
        for separator in separators if len(separators) > 1 else separators * self.batch:
            context, answer = separator, length - separator
            blank = max(0, context // 2)
            first = list(range(context)) + ([blank] * answer if context else list(range(answer)))
            rows.append([first, [0] * context + (list(range(1, answer + 1)) if context else [0] * answer)])
        return torch.tensor(rows)

    def add(self, **tensors):
        self.tensors.update(tensors)
        return self

    def labels(self):
        labels = self.integers(0, self.config["vocab_size"], self.batch, self.length)
        labels[:, :2] = IGNORED
        return self.add(labels=labels)

    def memories(self, length):
        for i in range(self.config["num_layers"] + 1):
            self.add(**{f"mems.{i}": self.floats(self.batch, length, self.config["hidden_size"])})
        return self

    def targets(self, fractions=False):
        mask = torch.zeros(self.batch, self.length)
        for row, separator in enumerate(self.separators):
            mask[row, separator:] = 1.0
        targets = self.integers(1, self.config["vocab_size"], self.batch, self.length) * mask.long()
        targets[0, -1] = 0  # a target of 0 has no loss, but counts below the line
        if fractions:
            mask = mask * torch.rand(mask.shape, generator=self.generator)
        return self.add(target_ids=targets, loss_mask=mask if fractions else mask.long())

    def choices(self, count, length):
        """The same for `count` answers to each text."""
        rows = self.batch * count
        seps = self.integers(2, length - 2, rows)
        self.tensors = {
            "input_ids": self.integers(1, self.config["vocab_size"], self.batch, count, length),
            "position_ids": self.positions(seps.tolist(), length).reshape(self.batch, count, 2, length),
            "attention_mask": seps.reshape(self.batch, count),
            "target_ids": self.integers(1, self.config["vocab_size"], self.batch, count, length),
            "logit_mask": (torch.arange(length) >= seps[:, None]).long().reshape(self.batch, count, length),
        }
        return self


def flagai_model(name, config, seed):
    from flagai.model import glm_model

    options = {key: config[key] for key in ("take_softmax", "length_penalty", "pool_token") if key in config}
    model = getattr(glm_model, name)(config, **options)
    inner = model if name == "GLMModel" else model.model
    inner.output_predict = config["output_predict"] if name in ("GLMModel", "GLMForSequenceClassification") else True
    if name == "GLMForSequenceClassification":
        inner.output_predict = False
    random_weights(model, seed)
    return model, inner


@contextlib.contextmanager
def in_precision(dtype):
    """FlagAI computes its losses in .float(): that is the precision of the run, here."""
    plain = torch.Tensor.float
    torch.Tensor.float = lambda tensor: tensor.to(dtype)
    try:
        yield
    finally:
        torch.Tensor.float = plain


def flagai_outputs(model, inner, tensors, dtype, gradients):
    model = model.to(dtype).eval()
    model.zero_grad()
    config = inner.transformer.config
    arguments = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
    mems = [arguments.pop(f"mems.{i}") for i in range(config["num_layers"] + 1) if f"mems.{i}" in arguments]
    arguments["mems"] = mems or None
    if "return_memory" in arguments:
        arguments["return_memory"] = bool(arguments["return_memory"].item())
    if "prompt_pos" in arguments:  # FlagAI places the prompts of all rows in every row: the same for all, here
        arguments["prompt_pos"] = arguments["prompt_pos"][:1]
    hidden, hooks = [], []
    layers = inner.transformer.layers
    hooks.append(layers[0].register_forward_pre_hook(lambda _, given: hidden.clear() or hidden.append(given[0])))
    for layer in layers[:-1]:
        hooks.append(layer.register_forward_hook(lambda _, given, made: hidden.append(made)))
    hooks.append(inner.transformer.final_layernorm.register_forward_hook(lambda _, given, made: hidden.append(made)))
    with in_precision(dtype):
        result = model(**arguments)
    for hook in hooks:
        hook.remove()
    outputs = {key: result[key] for key in ("logits", "target_logits") if key in result}
    if not inner.output_predict and inner is model:
        outputs["last_hidden_state"] = result["logits"]
    outputs.update({f"hidden_states.{i}": t for i, t in enumerate(hidden)})
    outputs.update({f"mems.{i}": t for i, t in enumerate(result["hidden_states"])})
    if result.get("loss") is not None:
        outputs["loss"] = result["loss"].reshape(1)
        if gradients:
            result["loss"].backward()
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    outputs[f"grad.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if not all(t.isfinite().all() for t in outputs.values()):
        raise SystemExit("a reference value is not finite")
    return {key: t.detach().clone() for key, t in outputs.items()}


def flagai_case(out, name, head, config, tensors, seed, *, gradients=True, form=None, zero=()):
    folder = out / "glm" / name
    folder.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it freezes
        model, inner = flagai_model(head, config, seed)
    write_json(folder / "config.json", dict(config, model_type="glm", architectures=[head]))
    # FlagAI's classes change state_dict to the inner model's, and use the old form of its arguments
    state = dict(model.named_parameters())
    state = {key: t.detach().clone().contiguous() for key, t in state.items()}
    if form is None:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        form(folder, state)
    outputs = flagai_outputs(model, inner, tensors, torch.float64, gradients)
    outputs = {key: t for key, t in outputs.items() if key not in zero}
    plain = flagai_outputs(model, inner, tensors, torch.float32, gradients)
    floor = 1e-3 * max((t.abs().max() for key, t in outputs.items() if key.startswith("grad.")), default=torch.ones(()))
    for key, value in outputs.items():
        error = ((value - plain[key]).abs().max() / max(floor, value.abs().max())).item()
        if error > (3e-5 if key.startswith("grad.") else 2e-6):
            raise SystemExit(f"{name}: float32 and float64 differ too much in {key}: {error:.2g}")
    write_tensors(folder / "in.safetensors", tensors)
    write_tensors(folder / "out.safetensors", outputs)


def flagai_bin(folder, state):
    """As FlagAI's trainer leaves it: a state dict under "module", each name behind "model."."""
    torch.save({"module": {f"model.{key}": t for key, t in state.items()}, "iteration": 3}, folder / "pytorch_model.bin")


def thudm_names(folder, state):
    save_file({f"glm.{key}": t for key, t in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def make_flagai(out):
    model = "GLMModel"
    config = tiny()
    flagai_case(out, "separators", model, config, Blanks(config, 3, 11, 1, [5, 8, 3]).labels().tensors, 1)
    flagai_case(out, "one_separator", model, config, Blanks(config, 2, 9, 2, [4]).labels().tensors, 2)
    flagai_case(out, "causal", model, config, Blanks(config, 2, 9, 3, [0]).labels().tensors, 3, form=flagai_bin)
    config = tiny(num_layers=1, attention_scale=3.0)
    flagai_case(out, "attention_scale", model, config, Blanks(config, 2, 9, 4, [4, 6]).labels().tensors, 4)
    config = tiny(num_layers=1, block_position_encoding=False)
    flagai_case(out, "one_position", model, config, Blanks(config, 2, 9, 5, [4, 6]).labels().tensors, 5)
    config = tiny(output_predict=False)
    flagai_case(out, "hidden", model, config, Blanks(config, 2, 9, 6, [4, 6]).tensors, 6, form=thudm_names)
    config = tiny(num_layers=1, hidden_size=20, num_attention_heads=5, vocab_size=77, max_sequence_length=90)
    flagai_case(out, "long", model, config, Blanks(config, 2, 85, 7, [40, 17]).tensors, 7)

    config = tiny()
    inputs = Blanks(config, 2, 7, 10, [3, 5]).labels().add(
        attention_mask=(torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(10)) < 0.6).long()
    )
    inputs.tensors["attention_mask"][..., 2:] |= torch.eye(7, dtype=torch.long)
    flagai_case(out, "four_dimensional_mask", model, config, inputs.tensors, 10)  # two columns more than there are keys
    inputs = Blanks(config, 2, 7, 11, [3, 5]).labels().memories(4)
    flagai_case(out, "memory", model, config, inputs.tensors, 11)
    inputs = Blanks(config, 2, 7, 12, [3, 5]).memories(4).add(return_memory=torch.tensor([1]))
    flagai_case(out, "return_memory", model, config, inputs.tensors, 12)
    config = tiny(max_memory_length=9)
    inputs = Blanks(config, 2, 7, 13, [0]).labels().memories(4)
    flagai_case(out, "newest_memory", model, config, inputs.tensors, 13)
    config = tiny(num_layers=1, max_memory_length=3)
    inputs = Blanks(config, 2, 7, 14, [0]).memories(4)
    inputs.add(attention_mask=torch.ones(2, 1, 7, 11, dtype=torch.long).tril(4))
    flagai_case(out, "short_memory", model, config, inputs.tensors, 14)

    config = tiny(relative_encoding=True, attention_scale=2.0)
    flagai_case(out, "relative", model, config, Blanks(config, 2, 9, 15, [4, 6]).labels().tensors, 15)
    config = tiny(relative_encoding=True, block_position_encoding=False, num_layers=1, hidden_size=12, num_attention_heads=3)
    inputs = Blanks(config, 2, 7, 16, [0]).labels().memories(4)
    nothing = ["grad.transformer.layers.0.attention.relative.bias"]  # what all keys have in common
    flagai_case(out, "relative_memory", model, config, inputs.tensors, 16, zero=nothing)

    for seed, spell in enumerate(["lstm", "mlp", "none"], start=20):
        config = tiny(num_layers=1, spell_length=3, spell_func=spell)
        inputs = Blanks(config, 2, 9, seed, [4, 6]).labels()
        inputs.add(prompt_pos=torch.tensor([[1, 3, 5]] * 2))
        flagai_case(out, f"prompt_{spell}", model, config, inputs.tensors, seed)
    config = tiny(tune_prefix_layers=1, spell_length=2, spell_func="mlp")
    inputs = Blanks(config, 2, 9, 23, [4, 6]).labels().add(prompt_pos=torch.tensor([[0, 2]] * 2))
    flagai_case(out, "tuned_prefix", model, config, inputs.tensors, 23)

    seq2seq = "GLMForSeq2Seq"
    config = tiny()
    flagai_case(out, "seq2seq", seq2seq, config, Blanks(config, 3, 11, 30, [5, 8, 3]).targets().tensors, 30)
    flagai_case(out, "seq2seq_fractions", seq2seq, config, Blanks(config, 2, 9, 31, [4, 6]).targets(True).tensors, 31)
    flagai_case(out, "seq2seq_no_targets", seq2seq, config, Blanks(config, 2, 9, 32, [4, 6]).tensors, 32, form=flagai_bin)

    classify = "GLMForSequenceClassification"
    for seed, pool in enumerate(["cls", "start", "pad"], start=40):
        config = tiny(num_layers=1, class_num=3, pool_token=pool)
        inputs = Blanks(config, 3, 9, seed, [4, 6, 8]).add(labels=torch.tensor([2, 0, 1]))
        flagai_case(out, f"classify_{pool}", classify, config, inputs.tensors, seed)
    config = tiny(num_layers=1, class_num=1)
    inputs = Blanks(config, 3, 9, 43, [4, 6, 8]).add(labels=torch.tensor([1, 0, 1]))
    flagai_case(out, "classify_yes_or_no", classify, config, inputs.tensors, 43)
    inputs = Blanks(config, 2, 9, 46, [4, 6]).choices(3, 9).add(labels=torch.tensor([2, 0]))
    del inputs.tensors["target_ids"], inputs.tensors["logit_mask"]
    flagai_case(out, "classify_choices", classify, config, inputs.tensors, 46, zero=["grad.multichoice_head.bias"])

    cloze = "GLMForMultiTokenCloze"
    config = tiny()
    inputs = Blanks(config, 2, 9, 50, [4, 6]).choices(3, 9).add(labels=torch.tensor([2, 0]))
    flagai_case(out, "cloze", cloze, config, inputs.tensors, 50)
    config = tiny(num_layers=1, length_penalty=0.7)
    inputs = Blanks(config, 2, 9, 51, [4, 6]).choices(2, 8).add(labels=torch.tensor([1, 0]))
    flagai_case(out, "cloze_length_penalty", cloze, config, inputs.tensors, 51)
    config = tiny(num_layers=1, take_softmax=False)
    inputs = Blanks(config, 3, 9, 52, [4, 6]).choices(1, 8).add(labels=torch.tensor([1, 0, 1]))
    flagai_case(out, "cloze_yes_or_no", cloze, config, inputs.tensors, 52)
    one = "GLMForSingleTokenCloze"
    for seed, softmax in ((53, False), (54, True)):
        config = tiny(num_layers=1, take_softmax=softmax)
        inputs = Blanks(config, 3, 9, seed, [4, 6, 7])
        inputs.add(target_ids=inputs.integers(1, 61, 3, 4), labels=torch.tensor([3, 0, 1]))
        flagai_case(out, "cloze_one_token" + ("_softmax" if softmax else ""), one, config, inputs.tensors, seed)
    config = tiny()
    text = Blanks(config, 2, 8, 55, [8])
    answers = Blanks(config, 2, 5, 56, [2]).choices(3, 5).tensors
    text.add(
        dec_input_ids=answers["input_ids"],
        dec_position_ids=answers["position_ids"],
        dec_attention_mask=torch.tensor([[8, 6, 3], [7, 8, 1]]),
        target_ids=answers["target_ids"],
        logit_mask=answers["logit_mask"],
    )
    flagai_case(out, "cloze_fast", "GLMForMultiTokenClozeFast", config, text.tensors, 55)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h i j k l m n o p q r s t u v w x y z ##a ##b ##e ##s ##t".split()
MASK, SOP, EOP, GMASK, SMASK = 4, len(WORDS), len(WORDS) + 1, len(WORDS) + 2, len(WORDS) + 3


def fill_blanks(model, ids, most, beams=1):
    """What FlagAI's glm_generate_sample does with a memory of everything so far, taking the most likely token (or the most
    likely texts, by log-probability, of the first blank) where it draws one; <|startofpiece|> is never one.
    -> new ids, score"""

    def read(tokens, positions, mems, separator):
        tokens, positions = torch.tensor([tokens]), torch.tensor([positions])
        result = model(tokens, positions, torch.tensor([separator]), mems=mems, return_memory=True)
        row = result["logits"][0, -1].log_softmax(-1)
        row[SOP] = -1e30
        return row, result["hidden_states"]

    blanks = [at for at, token in enumerate(ids) if token in (MASK, GMASK, SMASK)]
    _, mems = read(ids, [list(range(len(ids))), [0] * len(ids)], None, len(ids))
    new = []
    if beams > 1:  # transformers' beams, for one blank: scores are means, here (length_penalty 1)
        live, done = [(0.0, [], mems)], []
        for step in range(most):
            ways = []
            for score, text, memory in live:
                row, memory = read([(text or [SOP])[-1]], [[blanks[0]], [step + 1]], memory, 0)
                ways += [(score + row[token].item(), [*text, token], memory) for token in range(len(row))]
            ways = sorted(ways, key=lambda way: -way[0])[: 3 * beams]
            ends = [way for way in ways[:beams] if way[1][-1] in (EOP, 0) or step + 1 == most]
            done = sorted(done + [(way[0] / (step + 1), way[1]) for way in ends], key=lambda way: -way[0])[:beams]
            live = [way for way in ways if way[1][-1] not in (EOP, 0)][:beams]
            if len(done) == beams and live[0][0] / (step + 1) <= done[-1][0]:
                break
        return done[0][1], done[0][0]
    for number, blank in enumerate(blanks):
        token, counter = SOP, 1
        if number and new[-1] not in (EOP, 0):
            break  # no room was left
        if number:
            new[-1] = SOP  # in place of the end that was met
        while len(new) < most:
            row, mems = read([token], [[blank], [counter]], mems, 0)
            token, counter = row.argmax().item(), counter + 1
            new.append(token)
            if token in (EOP, 0):
                break
    return new, 0


def make_fill(out):
    """A model that fills blanks, its tokenizer, and what it writes."""
    folder = out / "glm" / "fill"
    folder.mkdir(parents=True)
    config = tiny(vocab_size=48, num_layers=2, hidden_size=24, num_attention_heads=2, max_sequence_length=60)
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = flagai_model("GLMModel", config, 70)
    with torch.no_grad():
        model.word_embeddings.weight[EOP] = model.word_embeddings.weight[[6, 25, 38]].mean(0) * 1.1  # ends come now and then
        model.word_embeddings.weight *= 0.5
        for layer in model.transformer.layers:  # and say something of their context
            layer.attention.dense.weight *= 4
            layer.mlp.dense_4h_to_h.weight *= 3
    write_json(folder / "config.json", dict(config, model_type="glm", architectures=["GLMModel"]))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_file({key: t.detach().clone() for key, t in model.named_parameters()}, folder / "model.safetensors", metadata={"format": "pt"})
    model = model.double().eval()
    rows, generator = [], torch.Generator().manual_seed(71)
    with torch.no_grad():
        for number in range(24):
            length = 5 + number % 7
            ids = [2, *torch.randint(5, len(WORDS), (length,), generator=generator).tolist(), 0]
            for blank in range(1 + number % 3):
                ids[1 + (blank * 3 + number) % length] = (MASK, GMASK, SMASK)[(number + blank) % 3]
            beams = 3 if number % 6 == 3 else 1
            new, score = fill_blanks(model, ids, 14, beams)
            args = dict(max_new_tokens=14, **(dict(num_beams=beams) if beams > 1 else {}))
            rows.append(dict(model="glm/fill", ids=ids, args=args, expect=new, score=score))
        ids = [SOP, *torch.randint(5, len(WORDS), (6,), generator=generator).tolist(), 3]  # no blank: a text that goes on
        new = []
        while len(new) < 9 and not (new and new[-1] in (EOP, 0)):
            count = len(ids) + len(new)
            given = [torch.tensor([ids + new]), torch.tensor([[list(range(count)), [0] * count]]), torch.tensor(0)]
            row = model(*given)["logits"][0, -1]
            row[SOP] = -1e30
            new.append(row.argmax().item())
        rows.append(dict(model="glm/fill", ids=ids, args=dict(max_new_tokens=9), expect=new, score=0))
    write_json(out / "glm" / "generate.json", rows)


# ---- transformers' glm and glm4 -----------------------------------------------------------------------------------


def tiny_hf(glm4=False, **changes):
    config = dict(
        vocab_size=61,
        hidden_size=12,
        intermediate_size=19,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=40,
        pad_token_id=0,
        eos_token_id=[1],
        bos_token_id=2,
    )
    config.update(changes)
    return (transformers.Glm4Config if glm4 else transformers.GlmConfig)(**config)


def hf_case(out, name, head, config, tensors, seed, change=None, rewrite=None):
    folder = out / "glm_hf" / name
    folder.mkdir(parents=True)
    config.architectures = [head]
    config._attn_implementation = "sdpa"  # the eager form rounds its softmax to float32, where a row that sees nothing is NaN
    model = getattr(transformers, head)(config)
    random_weights(model, seed)
    save_model(model, folder)
    if change is not None:
        path = folder / "model.safetensors"
        save_file({key: t.clone() for key, t in change(load_file(path)).items()}, path, metadata={"format": "pt"})
    if rewrite is not None:
        write_json(folder / "config.json", rewrite(json.loads((folder / "config.json").read_text())))
    outputs = reference_outputs(model, tensors)
    error, key = rounding_error(model, tensors, outputs)
    if error > 1:
        raise SystemExit(f"{name}: float32 and float64 differ too much in {key}")
    if "attention_mask" in tensors:
        outputs["compare"] = tensors["attention_mask"].float()
    write_tensors(folder / "in.safetensors", tensors)
    write_tensors(folder / "out.safetensors", outputs)


def make_hf(out):
    def inputs(config, batch, length, seed):
        return Inputs(config, batch, length, seed).token_labels()

    for prefix, glm4 in (("Glm", False), ("Glm4", True)):
        name, lm, seed = prefix.lower(), prefix + "ForCausalLM", 200 if glm4 else 100
        config = tiny_hf(glm4)
        hf_case(out, f"{name}_default", lm, config, inputs(config, 2, 11, seed).tensors, seed)
        config = tiny_hf(glm4, num_labels=3, num_hidden_layers=1)
        given = Inputs(config, 3, 9, seed + 1).add(labels=torch.tensor([2, 0, 1])).pad("right", [0, 4, 6])
        hf_case(out, f"{name}_sequence", prefix + "ForSequenceClassification", config, given.tensors, seed + 1)
        config = tiny_hf(glm4, num_labels=5, num_hidden_layers=1)
        given = Inputs(config, 2, 7, seed + 2).token_labels(5)
        hf_case(out, f"{name}_token", prefix + "ForTokenClassification", config, given.tensors, seed + 2)
        config = tiny_hf(glm4, num_hidden_layers=1)
        hf_case(out, f"{name}_base", prefix + "Model", config, Inputs(config, 2, 9, seed + 3).tensors, seed + 3)
    lm = "GlmForCausalLM"
    options = {
        "no_bias": dict(attention_bias=False, head_dim=6, hidden_size=10),
        "whole_heads_turn": dict(partial_rotary_factor=1.0, num_key_value_heads=4),
        "few_channels_turn": dict(partial_rotary_factor=0.25, num_key_value_heads=1),
        "rope_theta": dict(rope_parameters=dict(rope_type="default", rope_theta=317.0, partial_rotary_factor=0.5)),
        "tied_head": dict(tie_word_embeddings=True),
        "rms_norm_eps": dict(rms_norm_eps=0.05, hidden_act="gelu_new"),
    }
    for seed, (name, option) in enumerate(options.items(), start=110):
        config = tiny_hf(num_hidden_layers=1, **option)
        hf_case(out, name, lm, config, inputs(config, 2, 9, seed).tensors, seed)
    config = tiny_hf()
    hf_case(out, "left_padding", lm, config, inputs(config, 3, 9, 120).pad("left", [3, 0, 6]).tensors, 120)
    hf_case(out, "right_padding", lm, config, inputs(config, 3, 9, 121).pad("right", [0, 4, 6]).tensors, 121)
    config = tiny_hf(num_hidden_layers=1)
    given = inputs(config, 2, 9, 122)
    given.add(position_ids=torch.stack([torch.arange(9) + 20, torch.arange(9).flip(0)]))
    hf_case(out, "position_ids", lm, config, given.tensors, 122)

    def without_prefix(tensors):
        return {key.removeprefix("model."): t for key, t in tensors.items()}

    config = tiny_hf(num_hidden_layers=1)
    hf_case(out, "no_prefix", lm, config, inputs(config, 1, 9, 123).tensors, 123, change=without_prefix)

    def as_in_version_4(settings):
        rope = settings.pop("rope_parameters")
        return {**settings, "rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"], "rope_scaling": None}

    rope = dict(rope_type="default", rope_theta=71.0, partial_rotary_factor=0.75)
    config = tiny_hf(num_hidden_layers=1, rope_parameters=rope)
    hf_case(out, "old_config", lm, config, inputs(config, 1, 9, 124).tensors, 124, rewrite=as_in_version_4)
    generate_hf(out)


def generate_hf(out):
    """Greedy, beams: ids and scores of generate(), for tests/goldens/glm_hf/generate.json."""
    rows = []
    for name in ("glm_default", "glm4_default", "few_channels_turn"):
        folder = out / "glm_hf" / name
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for seed, args in enumerate([dict(), dict(num_beams=3, length_penalty=0.5), dict(repetition_penalty=1.4)]):
            ids = torch.randint(2, 61, (1, 5 + seed), generator=torch.Generator().manual_seed(seed))
            settings = dict(max_new_tokens=12, do_sample=False, top_k=None, use_cache=True, **args)
            made = model.generate(ids, return_dict_in_generate=True, output_scores=True, **settings)
            score = made.sequences_scores[0].item() if args.get("num_beams", 1) > 1 else 0
            new = made.sequences[0, ids.shape[1] :].tolist()
            rows.append(dict(model=f"glm_hf/{name}", ids=ids[0].tolist(), args=dict(max_new_tokens=12, **args), expect=new, score=score))
    write_json(out / "glm_hf" / "generate.json", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--flagai", default=os.environ.get("FLAGAI", ""), help="a checkout of FlagAI (or $FLAGAI)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    parser.add_argument("--only", default="glm,glm_hf")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for part in options.only.split(","):
        shutil.rmtree(options.out / part, ignore_errors=True)
        if part == "glm_hf":
            make_hf(options.out)
            continue
        if not options.flagai:
            raise SystemExit("goldens_glm.py: --flagai PATH is missing: the folder that holds the package `flagai`")
        sys.path.insert(0, options.flagai)
        make_flagai(options.out)
        make_fill(options.out)
    for part in options.only.split(","):
        files = [path for path in (options.out / part).rglob("*")]
        for path in files:
            path.chmod(0o755 if path.is_dir() else 0o644)
        print(f"{options.out / part}: {sum(path.stat().st_size for path in files if path.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
