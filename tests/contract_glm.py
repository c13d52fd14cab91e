#!/usr/bin/env python3
"""Both families called GLM by the `twinkle` program, live: `glm` and `glm4` against transformers, and, where a checkout of
FlagAI is named, FlagAI's GLM against FlagAI.

    TWINKLE=./twinkle [FLAGAI=path/to/FlagAI] python3 contract_glm.py [--texts N]     (N: about how much; 100: a minute or two)

Without FLAGAI its part checks what needs no reference: that memories equal the whole, that what is trained, saved and
converted opens again, and the ids of its tokenizers against sentencepiece.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import io
import json
import math
import os
import random
import re
import shutil
import sys
import types
from pathlib import Path

import torch
import transformers
from harness import COUNTS, ROOT, SEED, TWINKLE, WORK, check, close, compare, forward, new_folder, ok, refuse, write_config
from safetensors.torch import load_file, save_file

import goldens
import goldens_glm

FLAGAI = os.environ.get("FLAGAI", "")
COMMANDS = {"<|endoftext|>": 0, "[SEP]": 1, "[CLS]": 2, "[MASK]": 3, "[UNK]": 4, "<|startofpiece|>": 6, "<|endofpiece|>": 7, "[sMASK]": 8, "[gMASK]": 9}
WRITERS = (("Glm", transformers.GlmConfig), ("Glm4", transformers.Glm4Config))


# ---- transformers' glm and glm4 -----------------------------------------------------------------------------------


def random_config(rng, kind, **changes):
    kv_heads = rng.randint(1, 3)
    head_dim = 4 * rng.randint(1, 5)
    config = dict(
        vocab_size=rng.randint(5, 90),
        hidden_size=rng.randint(3, 40),
        intermediate_size=rng.randint(1, 50),
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=kv_heads * rng.randint(1, 4),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=200,
        rms_norm_eps=rng.choice([1e-5, 1.5625e-7, 0.01]),
        hidden_act=rng.choice(["silu", "silu", "gelu", "relu"]),
        attention_bias=rng.random() < 0.7,
        tie_word_embeddings=rng.random() < 0.3,
        rope_parameters=dict(
            rope_type="default",
            rope_theta=rng.choice([10000.0, 500000.0, 37.0]),
            partial_rotary_factor=rng.choice([0.5, 1.0, 2 / head_dim]),
        ),
        pad_token_id=0,
        eos_token_id=rng.choice([1, [1, 2]]),
        bos_token_id=2,
        num_labels=rng.randint(2, 5),
    )
    return kind(**{**config, **changes})


def random_model(rng, folder, config, head, seed, dtype=None):
    config.architectures = [head]
    config._attn_implementation = "sdpa"
    model = getattr(transformers, head)(config)
    goldens_glm.random_weights(model, seed)
    goldens.save_model(model.to(dtype) if dtype else model, folder)
    return getattr(transformers, head).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def transformers_forward(count):
    rng = random.Random(3000 + SEED)
    for number in range(count):
        seed = 7000 * SEED + number
        prefix, kind = rng.choice(WRITERS)
        head = rng.choice(["ForCausalLM", "ForCausalLM", "ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification"])
        config = random_config(rng, kind)
        dtype = rng.choice([None, None, None, torch.float16, torch.bfloat16])
        rows, length = rng.randint(1, 3), rng.randint(1, 60)
        inputs = goldens.Inputs(config, rows, length, seed)
        if head == "ForCausalLM" and length > 2:
            inputs.add(labels=inputs.integers(0, config.vocab_size, rows, length))
        if head == "ForTokenClassification":
            inputs.add(labels=inputs.integers(0, config.num_labels, rows, length))
        if head == "ForSequenceClassification":
            inputs.add(labels=inputs.integers(0, config.num_labels, rows))
        if rng.random() < 0.4 and head != "ForTokenClassification":
            inputs.pad(rng.choice(["left", "right"]), [rng.randrange(length) for _ in range(rows)])
        tensors = inputs.tensors
        folder = new_folder("model")
        with check(f"forward {number}: {prefix}{head}, {dtype}, {rows} x {length}"):
            model = random_model(rng, folder, config, prefix + head, seed, dtype)
            labels = tensors.get("labels")
            gradients = labels is not None and bool((labels.flatten()[1:] != goldens.IGNORED).any() if labels.dim() > 1 else True)
            if not gradients:
                tensors.pop("labels", None)
            try:
                want = goldens.reference_outputs(model, tensors, gradients)
            except SystemExit:
                continue  # no label counts: the loss is NaN
            error, name = goldens.rounding_error(model, tensors, want)
            if error > 2.5:
                continue  # float32 itself is not near enough here
            want = {name: t.detach().float() for name, t in want.items()}
            if "attention_mask" in tensors:
                want["compare"] = tensors["attention_mask"].float()
            compare(forward(folder, tensors, "--hidden-states", *(["--grads"] if gradients else [])), want)


def transformers_generation(count):
    rng = random.Random(4000 + SEED)
    settings = [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 6},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
    ]
    flags = {name: "--" + name.replace("_", "-") for setting in settings for name in setting} | {"max_new_tokens": "--max-new-tokens"}
    for number in range(max(2, count // 25)):
        prefix, kind = WRITERS[number % 2]
        config = random_config(rng, kind, vocab_size=50, eos_token_id=1)
        folder = new_folder("generate")
        model = random_model(rng, folder, config, prefix + "ForCausalLM", 900 + SEED + number).double()
        for setting in settings:
            for _ in range(30):
                ids = [rng.randrange(2, 50) for _ in range(rng.randint(1, 20))]
                args = {"max_new_tokens": rng.randint(7, 20), **setting}
                reference = goldens.safe_generation(model, ids, args, trials=2)
                if reference is None:
                    continue  # a near tie
                with check(f"generate {prefix} {args}"):
                    options = []
                    for name, value in args.items():
                        options += [flags[name]] * bool(value) if name == "early_stopping" else [flags[name], value]
                    got = ok("generate", folder, "--ids", ",".join(map(str, ids)), "--json", *options).object()
                    assert got["ids"] == reference[0], f"{got['ids'][:12]} instead of {reference[0][:12]}"
                    if reference[1] is not None:
                        close([got["scores"]], [reference[1]], 1e-4 + 1e-6 * abs(reference[1]), "score")
                break
    with check("a rope_type that is not known"):
        settings = json.loads((folder / "config.json").read_text())
        settings["rope_parameters"]["rope_type"] = "yarn"
        (folder / "config.json").write_text(json.dumps(settings))
        refuse("info", folder)


def trained(config, name):
    path, folder = write_config(config, name)
    shutil.rmtree(folder, ignore_errors=True)
    ok("train", path)
    rows = (folder / "train_log.csv").read_text().splitlines()
    return folder, [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]


def losses_of(log):
    return [float(row["train_loss"]) for row in log]


def transformers_training():
    rng = random.Random(5000 + SEED)
    for prefix, kind in WRITERS:
        base = new_folder(f"train-{prefix}")
        config = random_config(rng, kind, hidden_size=16, vocab_size=40, tie_word_embeddings=False)
        random_model(rng, base, config, prefix + "ForCausalLM", 5)
        inputs = goldens.Inputs(config, 13, 12, 6)
        data = {**inputs.tensors, "labels": inputs.tensors["input_ids"].clone()}
        goldens.write_tensors(WORK / "rows.safetensors", data)
        settings = {
            "model": str(base),
            "train_file": str(WORK / "rows.safetensors"),
            "max_steps": 8,
            "shuffle": False,
            "per_device_train_batch_size": 3,
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-3,
            "optim": "adamw",
        }
        with check(f"train {prefix}: losses and the weights they lead to, opened by transformers"):
            model = goldens.open_model(base).double()
            want, _, _ = goldens.train(model, data, settings)
            folder, log = trained(settings, f"train-{prefix}")
            close(losses_of(log), want, 1e-4 * max(want), "losses")
            saved = goldens.open_model(folder / "iter-8-ckpt")
            for (name, mine), (_, theirs) in zip(saved.named_parameters(), model.named_parameters(), strict=True):
                if name.endswith("k_proj.bias"):
                    continue  # most of its gradient is zero but for rounding, which Adam makes steps of
                error = (mine - theirs).abs().max().item()
                assert error < 5e-5, f"{name} is off by {error:.1e}"
        with check(f"train {prefix} with gradient checkpointing: the same losses"):
            again = losses_of(trained({**settings, "gradient_checkpointing": True}, f"again-{prefix}")[1])
            assert again == losses_of(log)


# ---- FlagAI's GLM -------------------------------------------------------------------------------------------------


def random_glm(rng, **changes):
    heads = rng.randint(1, 4)
    config = dict(
        num_layers=rng.randint(1, 3),
        vocab_size=rng.randint(8, 80),
        hidden_size=heads * rng.randint(1, 9),
        num_attention_heads=heads,
        max_sequence_length=rng.randint(60, 90),
        max_memory_length=rng.choice([0, 0, 5, 40]),
        attention_scale=rng.choice([1.0, 8.0]),
    )
    return goldens_glm.tiny(**{**config, **changes})


def flagai_forward(count):
    """Every class, against FlagAI's own code."""
    rng = random.Random(6000 + SEED)
    for number in range(count):
        seed = 8000 * SEED + number
        head = rng.choice(["GLMModel", "GLMModel", "GLMForSeq2Seq", "GLMForSequenceClassification", "GLMForMultiTokenCloze", "GLMForSingleTokenCloze"])
        changes = {"class_num": rng.randint(2, 4), "pool_token": rng.choice(["cls", "start", "pad"])} if "Classif" in head else {}
        if head == "GLMModel" and rng.random() < 0.3:
            changes.update(spell_length=rng.randint(1, 4), spell_func=rng.choice(["lstm", "mlp", "none"]))
        if rng.random() < 0.15:
            changes.update(relative_encoding=True, hidden_size=24, num_attention_heads=rng.choice([1, 2, 3, 4]))
        config = random_glm(rng, **changes)
        rows, length = rng.randint(1, 3), rng.randint(5, 50)
        separators = [rng.randint(1, length - 1) for _ in range(rows)]
        inputs = goldens_glm.Blanks(config, rows, length, seed, separators)
        if head == "GLMModel":
            inputs.labels()
            if rng.random() < 0.4 and config["max_memory_length"]:
                inputs.memories(rng.randint(1, 9))
            if config["spell_length"]:
                places = rng.sample(range(length), config["spell_length"])
                inputs.add(prompt_pos=torch.tensor([places] * rows))
        elif head == "GLMForSeq2Seq":
            inputs.targets(rng.random() < 0.3)
        elif "Classif" in head:
            inputs.add(labels=inputs.integers(0, config["class_num"], rows))
        elif "Multi" in head:
            choices = rng.randint(2, 3)
            inputs.choices(choices, length).add(labels=inputs.integers(0, choices, rows))
        else:
            inputs.add(target_ids=inputs.integers(1, config["vocab_size"], rows, 3), labels=inputs.integers(0, 3, rows))
        folder = new_folder("model")
        with check(f"forward {number}: {head} {rows} x {length} {changes}"):
            with contextlib.redirect_stdout(io.StringIO()):
                model, inner = goldens_glm.flagai_model(head, config, seed)
            (folder / "config.json").write_text(json.dumps(dict(config, model_type="glm", architectures=[head])))
            save_file({key: t.detach().clone() for key, t in model.named_parameters()}, folder / "model.safetensors")
            want = goldens_glm.flagai_outputs(model, inner, inputs.tensors, torch.float64, True)
            plain = goldens_glm.flagai_outputs(model, inner, inputs.tensors, torch.float32, True)
            largest = max(t.abs().max().item() for key, t in want.items() if key.startswith("grad."))
            near = all(
                (plain[key] - t).abs().max().item() <= (5e-5 if key.startswith("grad.") else 5e-6) * max(t.abs().max().item(), 1e-3 * largest * key.startswith("grad."))
                for key, t in want.items()
            )
            if near:
                compare(forward(folder, inputs.tensors, "--hidden-states", "--grads"), {key: t.float() for key, t in want.items()})


def own_glm(name, seed, **changes):
    """A folder with a random GLM whose names and sizes are written down here, not taken from FlagAI."""
    config = goldens_glm.tiny(**changes)
    width, rows, generator = config["hidden_size"], config["max_sequence_length"] + 1, torch.Generator().manual_seed(seed)
    shapes = {"word_embeddings.weight": (config["vocab_size"], width)}
    shapes.update({f"transformer.{kind}position_embeddings.weight": (rows, width) for kind in ("", "block_")})
    for i in range(config["num_layers"]):
        layer = f"transformer.layers.{i}."
        for part, out, into in (("attention.query_key_value", 3, 1), ("attention.dense", 1, 1), ("mlp.dense_h_to_4h", 4, 1), ("mlp.dense_4h_to_h", 1, 4)):
            shapes[f"{layer}{part}.weight"], shapes[f"{layer}{part}.bias"] = (out * width, into * width), (out * width,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
    shapes["transformer.final_layernorm.weight"] = shapes["transformer.final_layernorm.bias"] = (width,)
    tensors = {key: torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if len(shape) > 1 else 9) for key, shape in shapes.items()}
    for key in tensors:
        if "layernorm.weight" in key:
            tensors[key] += 1
    folder = new_folder(name)
    (folder / "config.json").write_text(json.dumps(dict(config, model_type="glm", architectures=["GLMModel"])))
    save_file(tensors, folder / "model.safetensors")
    return folder, config, tensors


def memories(count):
    """A context by itself, then the rest with its memories: the same logits as all at once."""
    rng = random.Random(7000 + SEED)
    for number in range(max(1, count // 10)):
        folder, config, _ = own_glm("mems", number, hidden_size=12, max_sequence_length=80)
        context, answer = rng.randint(1, 30), rng.randint(1, 20)
        inputs = goldens_glm.Blanks(config, 2, context + answer, number, [context, context]).tensors
        with check(f"memories of {context} and {answer} tokens more"):
            whole = forward(folder, inputs)["logits"]
            first = {"input_ids": inputs["input_ids"][:, :context], "position_ids": inputs["position_ids"][..., :context]}
            first.update(attention_mask=inputs["attention_mask"], return_memory=torch.tensor([1]))
            kept = forward(folder, first)
            then = {"input_ids": inputs["input_ids"][:, context:], "position_ids": inputs["position_ids"][..., context:]}
            then.update({key: t for key, t in kept.items() if key.startswith("mems.")}, attention_mask=torch.tensor([0]))
            compare({"logits": torch.cat([kept["logits"], forward(folder, then)["logits"]], 1)}, {"logits": whole})
    with check("mems that do not fit"):
        then["mems.1"] = then["mems.1"][:, 1:]
        goldens.write_tensors(WORK / "wrong.safetensors", then)
        refuse("forward", folder, "--in", WORK / "wrong.safetensors", "--out", WORK / "none.safetensors")
    for name, bad in (("separator", torch.tensor([-1])), ("mask", torch.ones(2, 3, dtype=torch.long))):
        with check(f"an attention_mask that is no {name}"):
            goldens.write_tensors(WORK / "wrong.safetensors", {**inputs, "attention_mask": bad})
            refuse("forward", folder, "--in", WORK / "wrong.safetensors", "--out", WORK / "none.safetensors")


def sentencepieces(count):
    """A GLM folder with a SentencePiece vocabulary: ids of texts with command tokens, and blanks filled."""
    import sentencepiece

    corpus = "".join(goldens_corpus())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()), model_writer=model, vocab_size=150, hard_vocab_limit=False, minloglevel=2
    )
    reader = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    base = reader.vocab_size()
    folder, _, _ = own_glm("pieces", 3, vocab_size=base + 16, hidden_size=16, max_sequence_length=120)
    (folder / "cog-pretrain.model").write_bytes(model.getvalue())
    rng = random.Random(8000 + SEED)
    words = corpus.split()

    def ids_of(text):
        """Command tokens are cut out of the text, those with a blank eat the spaces to their left; the rest is encoded."""
        ids = []
        for part in re.split(r"(\s*\[(?:MASK|sMASK|gMASK)\]|" + "|".join(map(re.escape, COMMANDS)) + ")", text):
            command = COMMANDS.get(part.strip())
            if command is not None:
                ids.append(base + command)
            elif part:
                ids += reader.encode(part)
        return ids

    for number in range(max(5, count // 4)):
        parts = [rng.choice(words) for _ in range(rng.randint(1, 8))]
        for _ in range(rng.randint(0, 2)):
            parts.insert(rng.randint(0, len(parts)), rng.choice(list(COMMANDS)))
        text = " ".join(parts)
        with check(f"ids of {text!r}"):
            got = ok("tokenize", folder, "--text", text, "--json").object()["ids"]
            assert got == ids_of(text), f"{got} instead of {ids_of(text)}"
    text = f"{words[0]} [MASK] {words[1]}"
    with check("--prompt with a blank is [CLS] text <|endoftext|>"):
        ids = [base + 2, *ids_of(text), base]
        one = ok("generate", folder, "--prompt", text, "--max-new-tokens", 9, "--json").object()["ids"]
        two = ok("generate", folder, "--ids", ",".join(map(str, ids)), "--max-new-tokens", 9, "--json").object()["ids"]
        three = ok("generate", folder, "--ids", ",".join(map(str, [*ids, base + 6])), "--max-new-tokens", 9, "--json").object()["ids"]
        assert one == two == three, f"{one}, {two}, {three}"
    with check("a converted folder keeps the tokenizer and writes the same"):
        ok("convert", folder, WORK / "pieces-f32", "--dtype", "f32")
        assert ok("generate", WORK / "pieces-f32", "--prompt", text, "--max-new-tokens", 9, "--json").object()["ids"] == one
    pairs(folder, base, ids_of, words)


def pairs(folder, base, ids_of, words):
    """Training on sources and targets: the rows that are made of them, by their loss."""
    examples = [(f"{words[i]} {words[i + 1]}", " ".join(words[i + 2 : i + 5])) for i in range(0, 20, 5)]
    examples[1] = (f"{words[3]} [MASK] {words[4]}", words[5])
    (WORK / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in examples))
    rows = []
    for source, target in examples:
        context = [base + 2, *ids_of(source)] + ([base] if "MASK]" in source else [base + 9])
        answer = ids_of(target)
        blank = next(i for i, token in enumerate(context) if token in (base + 3, base + 9))
        rows.append((context, answer, blank))
    length = max(len(context) + len(answer) + 1 for context, answer, _ in rows)
    data = {key: torch.zeros(len(rows), length, dtype=torch.long) for key in ("input_ids", "labels")}
    data["labels"].fill_(-100)
    data["input_ids"].fill_(base)
    data["position_ids"] = torch.zeros(len(rows), 2, length, dtype=torch.long)
    data["attention_mask"] = torch.tensor([len(context) for context, _, _ in rows])
    for i, (context, answer, blank) in enumerate(rows):
        start, count = len(context), len(answer) + 1
        data["input_ids"][i, :start] = torch.tensor(context)
        data["input_ids"][i, start : start + count] = torch.tensor([base + 6, *answer])
        data["labels"][i, start : start + count] = torch.tensor([*answer, base + 7])
        data["position_ids"][i, 0, :start] = torch.arange(start)
        data["position_ids"][i, 0, start : start + count] = blank
        data["position_ids"][i, 1, start : start + count] = torch.arange(1, count + 1)
    with check("eval on .jsonl of sources and targets"):
        want = forward(folder, data)["loss"].item()
        got = ok("eval", folder, "--data", WORK / "pairs.jsonl", "--json").object()
        close([got["loss"]], [want], 1e-5 * want, "loss")
    with check("train on .jsonl of sources and targets: it learns, and fills its blanks with what it learned"):
        settings = {"model": str(folder), "train_file": str(WORK / "pairs.jsonl"), "max_steps": 150, "per_device_train_batch_size": 4}
        settings.update(learning_rate=5e-3, optim="adamw", dropout=0.0, lr_scheduler_type="constant")
        out, log = trained(settings, "pairs")
        losses = losses_of(log)
        assert losses[-1] < 0.1, f"the loss is {losses[0]:.3f} at first and {losses[-1]:.3f} at last"
        text = ok("generate", out / "iter-150-ckpt", "--prompt", examples[0][0] + " [gMASK]", "--max-new-tokens", 30).text
        assert text.strip() == examples[0][1], f"{text!r} instead of {examples[0][1]!r}, with a loss of {losses[-1]:.3f}"
    with check("train on text: labels are the next tokens"):
        (WORK / "text.txt").write_text(" ".join(words[:200]))
        got = ok("eval", folder, "--data", WORK / "text.txt", "--json").object()["loss"]
        ids = torch.tensor(ids_of(" ".join(words[:200])))
        blocks = ids[: len(ids) // 120 * 120].reshape(-1, 120)
        labels = torch.cat([blocks[:, 1:], torch.full((len(blocks), 1), -100)], 1)
        want = forward(folder, {"input_ids": blocks, "labels": labels})["loss"].item()
        close([got], [want], 1e-5 * want, "loss")


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that FlagAI's package imports for other tokenizers than GLM's: empty ones."""

    names = ("jieba", "boto3", "botocore", "ftfy", "six")

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.names else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: None if name.startswith("__") else type(name, (), {"fix_text": None})
        return module

    def exec_module(self, module):
        pass


def flagai_tokenizers(count):
    """Ids of texts with command tokens, in FlagAI's three kinds of vocabularies."""
    sys.meta_path.append(Absent())
    from flagai.data.tokenizer.uni_tokenizer.tokenizer import Tokenizer

    rng = random.Random(9000 + SEED)
    kinds = {
        "wp": ("GLM-large-en", "tests/goldens/glm/fill", {"vocab_file": "vocab.txt"}),
        "bpe": ("GLM-10b-en", "tests/goldens/gpt2/tokenizer_files", {"vocab_file": "vocab.json", "merges_file": "merges.txt"}),
    }
    for kind, (name, source, files) in kinds.items():
        folder = new_folder(kind)
        for file in files.values():
            shutil.copy(ROOT / source / file, folder / file)
        if kind == "bpe":  # FlagAI does not read the last line of merges.txt
            merges = (folder / "merges.txt").read_text()
            (folder / "merges.txt").write_text(merges.rstrip("\n") + "\n")
        (folder / "config.json").write_text(json.dumps(dict(goldens_glm.tiny(), model_type="glm")))
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = Tokenizer(
                tokenizer_model_name=name,
                tokenizer_class=kind,
                special_tokens_map=str(folder / "none"),
                **{key: str(folder / file) for key, file in files.items()},
            )
        commands = ["[MASK]", "[gMASK]", "[sMASK]", "[CLS]", "[SEP]", "<|startofpiece|>", "<|endofpiece|>"]
        for _ in range(max(10, count // 3)):
            parts = ["".join(rng.choice("abcdest ") for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 6))]
            for _ in range(rng.randint(0, 2)):
                parts.insert(rng.randint(0, len(parts)), rng.choice(commands))
            text = rng.choice(["", " "]).join(parts).strip()
            with check(f"{kind} ids of {text!r}"):
                got = ok("tokenize", folder, "--text", text, "--no-special", "--json").object()["ids"]
                assert got == theirs.EncodeAsIds(text), f"{got} instead of {theirs.EncodeAsIds(text)}"


def goldens_corpus():
    rng = random.Random(77)
    words = ["".join(rng.choice("abcdefghijklmno") for _ in range(rng.randint(2, 6))) for _ in range(80)]
    return [" ".join(rng.choice(words) for _ in range(10)) + "\n" for _ in range(120)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=int, default=300)
    options = parser.parse_args()
    if not os.access(TWINKLE, os.X_OK):
        parser.error(f"no program at {TWINKLE}; set TWINKLE")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers_forward(options.texts)
    transformers_generation(options.texts)
    transformers_training()
    memories(options.texts)
    sentencepieces(options.texts)
    if FLAGAI:
        sys.path.insert(0, str(Path(FLAGAI).resolve()))
        flagai_forward(options.texts)
        flagai_tokenizers(options.texts)
    print(f"{COUNTS['passed']} passed, {COUNTS['failed']} failed")
    return 1 if COUNTS["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
