#!/usr/bin/env python3
"""T5 and mT5 by the `twinkle` program against transformers, live: random models, forward, gradients, generation, training.

    TWINKLE=./twinkle python3 contract_t5.py [--texts N]        (N: about how much; 100 takes a minute or two)
"""

import argparse
import json
import math
import os
import random
import shutil
import sys

import torch
import transformers
from contract import generated, numbers, trained
from harness import COUNTS, ROOT, SEED, TWINKLE, WORK, check, close, compare, forward, new_folder, ok, refuse, write_config

import goldens
import goldens_t5

LM = "ForConditionalGeneration"
HEADS = [LM, LM, LM, "Model", "EncoderModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]


def random_config(rng, kind, **changes):
    buckets = rng.choice([4, 6, 8, 15, 32])
    config = dict(
        vocab_size=rng.randint(5, 90),
        d_model=rng.randint(3, 40),
        d_kv=rng.randint(2, 20),
        d_ff=rng.randint(3, 60),
        num_layers=rng.randint(1, 3),
        num_decoder_layers=rng.randint(1, 3),
        num_heads=rng.randint(1, 4),
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=rng.randint(buckets // 2 + 1, 150),
        layer_norm_epsilon=rng.choice([1e-6, 1e-3]),
        feed_forward_proj=rng.choice(["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu", "silu", "gelu_new"]),
        decoder_start_token_id=rng.choice([0, 0, 3]),
        num_labels=rng.randint(2, 5),
    )
    return kind(**{**config, **changes})


def random_mask(rng, generator, rows, length):
    """Padding on either side, or holes; the first token is always there, so that every row sees something."""
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        keep = rng.randint(1, length)
        if rng.random() < 0.5:
            mask[row, keep:] = 0
        elif rng.random() < 0.5:
            mask[row] = torch.randint(0, 2, (length,), generator=generator)
    mask[:, 0] = 1
    return mask


def random_inputs(rng, seed, config, head):
    """Arguments of forward; every gradient of the model can be asked for unless the head has no loss."""
    rows, source, target = rng.randint(1, 3), rng.randint(1, 40), rng.randint(1, 30)
    inputs = goldens_t5.Inputs(config, rows, source, target if head == LM else 0, seed)
    if rng.random() < 0.5:
        inputs.add(attention_mask=random_mask(rng, inputs.generator, rows, source))
    if head == LM and rng.random() < 0.3:
        inputs.add(decoder_attention_mask=random_mask(rng, inputs.generator, rows, target))
    if head == "Model" or (head == LM and rng.random() < 0.2):
        inputs.add(decoder_input_ids=inputs.integers(0, config.vocab_size, rows, target))
    if head == "ForSequenceClassification":
        inputs.ends(*[rng.randrange(source) for _ in range(rows)])
        inputs.add(labels=inputs.integers(0, config.num_labels, rows))
    if head == "ForTokenClassification":
        inputs.add(labels=inputs.integers(0, config.num_labels, rows, source))
    if head == "ForQuestionAnswering":
        inputs.add(start_positions=inputs.integers(0, source, rows), end_positions=inputs.integers(0, source, rows))
    return inputs.tensors


def well_conditioned(model, tensors, gradients, want):
    """Is PyTorch's own float32 within half of what is allowed?  (Unscaled scores can make a softmax that is not.)"""
    plain = goldens_t5.reference_outputs(model, tensors, gradients, exact=False)
    floor = 1e-3 * max((t.abs().max().item() for name, t in want.items() if name.startswith("grad.")), default=0)
    for name, value in want.items():
        scale = max(value.abs().max().item(), floor if name.startswith("grad.") else 0)
        if (plain[name] - value).abs().max().item() > (5e-5 if name.startswith("grad.") else 5e-6) * scale:
            return False
    return True


def forward_passes(count):
    rng = random.Random(1000 + SEED)
    for number in range(count):
        seed = 5000 * SEED + number
        prefix, kind = rng.choice([("T5", transformers.T5Config), ("T5", transformers.T5Config), ("MT5", transformers.MT5Config)])
        head = rng.choice(HEADS)
        config = random_config(rng, kind, **({"num_labels": 2} if head == "ForQuestionAnswering" else {}))
        own_head, dtype = head == LM and rng.random() < 0.3, rng.choice([None, None, None, torch.float16, torch.bfloat16])
        keys = rng.choice([None, None, {"tie_word_embeddings": False, "scale_decoder_outputs": None}, {"scale_decoder_outputs": False}])
        tensors = random_inputs(rng, seed, config, head)
        folder = new_folder("model")
        with check(f"forward {number}: {prefix}{head} {config.feed_forward_proj}, own head {own_head}, {dtype}"):
            goldens_t5.make_folder(folder, prefix + head, config, seed, own_head=own_head, dtype=dtype, keys=keys)
            gradients = "labels" in tensors or "start_positions" in tensors
            want = goldens_t5.reference_outputs(goldens_t5.open_folder(folder, prefix + head), tensors, gradients)
            want = {name: t.detach().float() for name, t in want.items()}
            if not well_conditioned(goldens_t5.open_folder(folder, prefix + head), tensors, gradients, want):
                continue
            compare(forward(folder, tensors, "--hidden-states", *(["--grads"] if gradients else [])), want)
            if number % 5 == 0:
                plain = {n: t for n, t in want.items() if "hidden_states." not in n and not n.startswith("grad.")}
                if head != "Model":
                    plain.pop("encoder_last_hidden_state", None)
                compare(forward(folder, tensors), plain)


def generation(count):
    rng = random.Random(2000 + SEED)
    settings = [
        {},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 8},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
        {"num_beams": 2, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
        {"eos_token_id": 11},
    ]
    for number in range(max(1, count // 25)):
        kind, prefix = rng.choice([(transformers.T5Config, "T5"), (transformers.MT5Config, "MT5")])
        # (transformers' own cache has no more layers than the encoder)
        config = random_config(rng, kind, vocab_size=50, d_model=24, num_layers=3, architectures=[prefix + LM])
        folder = new_folder("generate")
        model = goldens_t5.trained_model(config, 300 + SEED + number, steps=120)
        model.float().save_pretrained(folder)
        model = goldens_t5.open_folder(folder, prefix + LM).double()
        for setting in settings:
            done, attempts = 0, 0
            while done < 2 and attempts < 40:
                attempts += 1
                ids = [rng.randrange(2, 50) for _ in range(rng.randint(1, 20))] + [1]
                args = {"max_new_tokens": rng.randint(1, 24), **setting}
                args["min_new_tokens"] = min(args.get("min_new_tokens", 0), args["max_new_tokens"])
                reference = goldens_t5.safe_generation(model, ids, args, trials=2)
                if reference is None:
                    continue  # a near tie
                done += 1
                with check(f"generate {prefix} {args}"):
                    got = generated(folder, ids, args)
                    assert got["ids"] == reference[0], f"{got['ids'][:12]} instead of {reference[0][:12]}"
                    if reference[1] is not None:
                        close([got["scores"]], [reference[1]], 1e-4 + 1e-6 * abs(reference[1]), "score")
        with check("generate with threads 1, 2, 3: the same ids"):
            assert len({tuple(generated(folder, [9, 8, 7, 1], {"max_new_tokens": 20, "threads": n})["ids"]) for n in (1, 2, 3)}) == 1
        with check("generate --sample --top-k 1 is greedy"):
            args = {"max_new_tokens": 10}
            assert generated(folder, [5, 6, 1], {**args, "top_k": 1}, "--sample")["ids"] == generated(folder, [5, 6, 1], args)["ids"]
    sampling(folder, model)
    with check("generate from an id past the vocabulary"):
        refuse("generate", folder, "--ids", "5,50")
    with check("generate from an encoder alone"):
        bare = new_folder("encoder")
        goldens_t5.make_folder(bare, "T5EncoderModel", goldens_t5.tiny(), 1)
        refuse("generate", bare, "--ids", "5,6")


def sampling(folder, model):
    """The first token of many seeds against the probabilities of transformers' warpers, by chi squared."""
    ids, args = [17, 9, 30, 1], {"temperature": 1.6, "top_k": 12, "top_p": 0.95}
    with torch.no_grad():
        start = torch.tensor([[model.config.decoder_start_token_id]])
        scores = model(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0, -1:]
    for processor in goldens.warpers(args):
        scores = processor(start, scores)
    probabilities = scores.softmax(-1)[0]
    with check("generate --sample draws from transformers' distribution"):
        runs = 300
        counts = torch.zeros_like(probabilities)
        for seed in range(runs):
            counts[generated(folder, ids, {"max_new_tokens": 1, "seed": seed, **args}, "--sample")["ids"][0]] += 1
        assert counts[probabilities == 0].sum() == 0, "a token that the warpers remove was drawn"
        kept = probabilities > 0
        chi = ((counts - runs * probabilities)[kept] ** 2 / (runs * probabilities[kept])).sum().item()
        freedom = max(1, int(kept.sum()) - 1)
        assert chi < freedom + 5 * math.sqrt(2 * freedom) + 10, f"chi squared is {chi:.1f} with {freedom} degrees of freedom"


def training():
    base = new_folder("train-base")
    config = goldens_t5.tiny(dropout_rate=0.0, feed_forward_proj="gated-gelu")
    goldens_t5.make_folder(base, "T5" + LM, config, 7, own_head=True, keys={"tie_word_embeddings": False, "scale_decoder_outputs": None})
    inputs = goldens_t5.Inputs(config, 17, 11, 6, 9)
    mask = torch.ones(17, 11, dtype=torch.long)
    mask[::3, 7:] = 0
    data = inputs.add(attention_mask=mask).tensors
    goldens.write_tensors(WORK / "pairs.safetensors", data)
    common = {
        "model": str(base),
        "train_file": str(WORK / "pairs.safetensors"),
        "max_steps": 12,
        "shuffle": False,
        "per_device_train_batch_size": 3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
        "weight_decay": 0.2,
    }
    for optim, rate in (("adamw", 3e-3), ("adafactor", 1e-3), ("sgd", 0.02), ("lion", 3e-4)):
        with check(f"train with {optim}, labels of another length: 12 losses and norms"):
            settings = {**common, "optim": optim, "learning_rate": rate, "gradient_accumulation_steps": 2 if optim == "adamw" else 1}
            model = goldens.open_model(base)
            losses, _, norms = goldens.train(model if optim == "adafactor" else model.double(), data, settings)
            folder, log = trained(settings, f"optim-{optim}")
            close(numbers(log, "train_loss"), losses, 1e-4 * max(losses), "losses")
            close([n / max(norms) for n in numbers(log, "grad_norm")], [n / max(norms) for n in norms], 1e-3, "gradient norms")
            saved = goldens.open_model(folder / "iter-12-ckpt")
            if optim in ("adamw", "sgd"):
                for (name, mine), (_, theirs) in zip(saved.named_parameters(), model.named_parameters(), strict=True):
                    error = (mine - theirs).abs().max().item()
                    assert error < 5e-5, f"{name} is off by {error:.1e}"
    with check("train with gradient checkpointing: the same losses"):
        plain, again = (numbers(trained({**common, "optim": "adamw", "gradient_checkpointing": on}, f"again-{on}")[1], "train_loss") for on in (False, True))
        close(plain, again, 0, "losses")
    with check("eval gives loss and perplexity of the targets"):
        got = ok("eval", base, "--data", WORK / "pairs.safetensors", "--json").object()
        with torch.no_grad():
            want = goldens.open_model(base).double()(**data).loss.item()
        close([got["loss"]], [want], 1e-4, "loss")
        close([got["perplexity"] / math.exp(want)], [1.0], 2e-4, "perplexity")
    with check("train a new mT5 from a config, and it generates"):
        settings = json.loads((base / "config.json").read_text())
        settings.update(model_type="mt5", architectures=["MT5" + LM])
        folder, log = trained({**common, "model": settings, "learning_rate": 1e-2, "max_steps": 40, "optim": "adamw"}, "new")
        losses = numbers(log, "train_loss")
        assert losses[-1] < losses[0], losses
        assert ok("generate", folder / "iter-40-ckpt", "--ids", "5,6,1", "--max-new-tokens", 4, "--json").object()["ids"]
        goldens.open_model(folder / "iter-40-ckpt")
    texts()


def texts():
    """Sources and targets as texts, through a SentencePiece tokenizer."""
    tokens = ROOT / "tests/goldens/tokenizers/t5_model"
    base = new_folder("train-texts")
    config = goldens_t5.tiny(vocab_size=530, dropout_rate=0.0)
    goldens_t5.make_folder(base, "T5" + LM, config, 8)
    shutil.copy(tokens / "spiece.model", base / "spiece.model")
    examples = [("once upon a time", "a little girl"), ("the big dog", "went to the house"), ("it was a day", "happy"), ("hello", "the dog said hello")]
    (WORK / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in examples))

    def ids_of(text):
        return ok("tokenize", base, "--text", text, "--json").object()["ids"]

    def padded(rows, value):
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    sources, targets = [ids_of(s) for s, _ in examples], [ids_of(t) for _, t in examples]
    data = {
        "input_ids": padded(sources, 0),
        "attention_mask": padded([[1] * len(row) for row in sources], 0),
        "labels": padded(targets, goldens.IGNORED),
    }
    with check("the tokens of a text end in </s>"):
        assert all(row[-1] == 1 for row in sources + targets)
    settings = {
        "model": str(base),
        "train_file": str(WORK / "pairs.jsonl"),
        "max_steps": 6,
        "shuffle": False,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
        "optim": "adamw",
    }
    with check("train on .jsonl of sources and targets"):
        losses, _, _ = goldens.train(goldens.open_model(base).double(), data, settings)
        close(numbers(trained(settings, "pairs")[1], "train_loss"), losses, 1e-4 * max(losses), "losses")
    with check("eval on .jsonl of sources and targets"):
        got = ok("eval", base, "--data", WORK / "pairs.jsonl", "--json").object()
        close([got["loss"]], [goldens.open_model(base).double()(**data).loss.item()], 1e-4 * got["loss"], "loss")
    with check("generate --prompt is --ids of its tokens, and streams the text"):
        got = ok("generate", base, "--prompt", examples[0][0], "--max-new-tokens", 9, "--json").object()
        assert got["ids"] == ok("generate", base, "--ids", ",".join(map(str, sources[0])), "--max-new-tokens", 9, "--json").object()["ids"]
        assert got["text"].strip() in ok("generate", base, "--prompt", examples[0][0], "--max-new-tokens", 9).text
    with check("train on .jsonl with a source and no target"):
        (WORK / "half.jsonl").write_text('{"source": "once"}\n')
        refuse("train", write_config({**settings, "train_file": str(WORK / "half.jsonl")}, "half")[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=int, default=400)
    options = parser.parse_args()
    if not os.access(TWINKLE, os.X_OK):
        parser.error(f"no program at {TWINKLE}; set TWINKLE")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    forward_passes(options.texts)
    generation(options.texts)
    training()
    print(f"{COUNTS['passed']} passed, {COUNTS['failed']} failed")
    return 1 if COUNTS["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
