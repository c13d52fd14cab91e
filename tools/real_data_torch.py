#!/usr/bin/env python3
"""Trains the models of the examples poems.c, titles.c and sections.c in PyTorch, on the same data with the same settings.

    python3 tools/real_data_torch.py poems    --data examples/build/data/poems
    python3 tools/real_data_torch.py titles   --data examples/build/data/titles
    python3 tools/real_data_torch.py sections --data examples/build/data/sections

The folder is the one that tools/real_data.py made.  What is printed is the score on the held-out examples, to be read
beside what the example prints.  Weights and order are random in both, so the scores differ a little.
"""

import argparse
import collections
import json
import os
import time
import types
from pathlib import Path

import torch
import transformers

IGNORED = -100


def read_examples(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def padded(rows, value):
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


class Glm(torch.nn.Module):
    """FlagAI's GLM, which transformers does not have: two positions a token, and a separator before which all is seen."""

    def __init__(self, c):
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        linear, norm, table = torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Embedding
        self.words = table(c["vocab_size"], width)
        self.places = torch.nn.ModuleList(table(c["max_sequence_length"] + 1, width) for _ in range(2))
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList([norm(width), linear(width, 3 * width), linear(width, width), norm(width), linear(width, 4 * width), linear(4 * width, width)])
            for _ in range(c["num_layers"])
        )
        self.norm = norm(width)
        self.dropout = c["output_dropout_prob"]
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                small = name.endswith((".2.weight", ".5.weight"))  # what is added to the stream
                torch.nn.init.normal_(parameter, std=0.02 / (2 * c["num_layers"]) ** 0.5 if small else 0.02)
            elif name.endswith("bias"):
                torch.nn.init.zeros_(parameter)

    def forward(self, input_ids, position_ids, attention_mask, labels):
        def drop(x):
            return torch.nn.functional.dropout(x, self.dropout, self.training)

        length = input_ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() | (torch.arange(length) < attention_mask[:, None, None])
        x = drop(self.words(input_ids) + self.places[0](position_ids[:, 0]) + self.places[1](position_ids[:, 1]))
        for norm_1, qkv, dense, norm_2, up, down in self.blocks:
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv(norm_1(x)).chunk(3, -1))
            a = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen[:, None], self.dropout if self.training else 0.0)
            x = x + drop(dense(a.transpose(1, 2).flatten(2)))
            x = x + drop(down(torch.nn.functional.gelu(up(norm_2(x)), approximate="tanh")))
        logits = self.norm(x) @ self.words.weight.T
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return types.SimpleNamespace(logits=logits, loss=loss)


def train(model, examples, collate, steps, batch, rate, warmup):
    """AdamW with a linear fall of the rate, as in the examples; shuffled anew each time through the data."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    order, model = [], model.train()
    for step in range(1, steps + 1):
        if len(order) < batch:
            order += torch.randperm(len(examples)).tolist()
        rows, order = order[:batch], order[batch:]
        loss = model(**collate([examples[row] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    return model.eval()


def sections(data, config, tokenizer, steps):
    model = transformers.BertForSequenceClassification(config)

    def collate(examples):
        coded = tokenizer([e["text"] for e in examples], truncation=True, max_length=64, padding=True, return_tensors="pt")
        return {**coded, "labels": torch.tensor([e["label"] for e in examples])}

    train(model, read_examples(data / "train.jsonl"), collate, steps, 16, 1e-3, min(steps // 10, 100))
    test = read_examples(data / "test.jsonl")
    hits = 0
    with torch.no_grad():
        for begin in range(0, len(test), 50):
            batch = collate(test[begin : begin + 50])
            hits += (model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
    most = collections.Counter(e["label"] for e in test).most_common(1)[0][1]
    print(f"held out: accuracy {100 * hits / len(test):.1f} %, the largest section alone {100 * most / len(test):.1f} %")


def poems(data, config, tokenizer, steps):
    model = Glm(config)
    start = len(tokenizer)  # [sop], [eop], [gMASK] stand behind the vocabulary

    def collate(examples):
        rows = []
        for e in examples:
            source, target = (tokenizer(e[key], add_special_tokens=False)["input_ids"] for key in ("source", "target"))
            context = [tokenizer.cls_token_id, *source, start + 2]
            blank, answer = len(context) - 1, len(target) + 1
            rows.append(
                (
                    [*context, start, *target],
                    [*range(len(context)), *[blank] * answer],
                    [*[0] * len(context), *range(1, answer + 1)],
                    [*[IGNORED] * len(context), *target, start + 1],
                    len(context),
                )
            )
        ids, first, second, labels, separators = zip(*rows, strict=True)
        places = torch.stack([padded(first, 0), padded(second, 0)], 1)
        return {"input_ids": padded(ids, 0), "position_ids": places, "attention_mask": torch.tensor(separators), "labels": padded(labels, IGNORED)}

    train(model, read_examples(data / "train.jsonl"), collate, steps, 16, 2e-3, steps // 10)
    batch = collate(read_examples(data / "test.jsonl"))
    with torch.no_grad():
        print(f"held out: loss {model(**batch).loss.item():.3f} a character")


def overlap(written, wanted):
    """ROUGE-1: the harmonic mean of how much of each text's words is in the other."""
    a, b = (collections.Counter(text.lower().split()) for text in (written, wanted))
    common = sum((a & b).values())
    return 2 * common / max(1, sum(a.values()) + sum(b.values()))


def titles(data, config, tokenizer, steps):
    model = transformers.T5ForConditionalGeneration(config)

    def collate(examples):
        sources = tokenizer([e["source"] for e in examples], truncation=True, max_length=64)["input_ids"]
        targets = tokenizer([e["target"] for e in examples], truncation=True, max_length=64)["input_ids"]
        ids = padded(sources, 0)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded(targets, IGNORED)}

    train(model, read_examples(data / "train.jsonl"), collate, steps, 16, 2e-3, steps // 10)
    test = read_examples(data / "test.jsonl")
    total = tokens = score = 0
    with torch.no_grad():
        for begin in range(0, len(test), 50):
            batch = collate(test[begin : begin + 50])
            count = (batch["labels"] != IGNORED).sum().item()
            total += model(**batch).loss.item() * count
            tokens += count
            out = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=24, do_sample=False)
            for example, ids in zip(test[begin : begin + 50], out, strict=True):
                written = tokenizer.decode(ids, skip_special_tokens=True)
                wanted = tokenizer.decode(tokenizer(example["target"])["input_ids"], skip_special_tokens=True)
                score += overlap(written, wanted)
    print(f"held out: loss {total / tokens:.3f} a token, words in common (ROUGE-1) {100 * score / len(test):.1f} %")


def main():
    kinds = {"poems": (poems, 400), "titles": (titles, 2000), "sections": (sections, 1500)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, help="how many updates (default: as in the example)")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(options.seed)
    transformers.logging.set_verbosity_error()
    if options.kind == "poems":
        config = json.loads((options.data / "config.json").read_text(encoding="utf-8"))
    else:
        config = transformers.AutoConfig.from_pretrained(options.data)
    tokenizer = transformers.BertTokenizer(str(options.data / "vocab.txt"), do_lower_case=True)
    began = time.monotonic()
    run, usual = kinds[options.kind]
    run(options.data, config, tokenizer, options.steps or usual)
    print(f"{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
