#!/usr/bin/env python3
"""Makes the data of the examples that learn from what Debian carries: poems, titles, sections.

    python3 tools/real_data.py poems    --to examples/build/data/poems       for examples/poems.c
    python3 tools/real_data.py titles   --to examples/build/data/titles      for examples/titles.c
    python3 tools/real_data.py sections --to examples/build/data/sections    for examples/sections.c

A folder gets train.jsonl and test.jsonl, an example a line, and config.json and vocab.txt of the model that learns from them.

poems     the Tang and Song poems of the package fortunes-zh (/usr/share/games/fortunes): author and title -> poem.
titles    the packages of Debian's lists: description -> its one-line title.
sections  the same: title and description -> section.  (The package's name, which says it too often, is left out.)

What is held out as test.jsonl is decided by a hash, of the poem or of the source package: packages from one source have
nearly the same description, so they stand on one side.  The same lists give the same files.
"""

import argparse
import collections
import glob
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

FORTUNES = Path("/usr/share/games/fortunes")
LISTS = Path("/var/lib/apt/lists")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # the first tokens of a vocabulary


def share(key):
    """A number from 0 to 1 that stays the same for a key."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def write_examples(folder, train, test):
    for name, examples in (("train.jsonl", train), ("test.jsonl", test)):
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        (folder / name).write_text("".join(lines), encoding="utf-8")
    print(f"{folder}: {len(train)} examples to learn from, {len(test)} held out")


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_vocabulary(folder, texts, size, rarest=2):
    """A WordPiece vocabulary: special tokens, the characters alone and inside a word, then the most frequent words.

    What is there less than `rarest` times is left out.  Returns how many there are."""
    words = collections.Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    letters = collections.Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    common = [letter for letter, count in letters.most_common() if count >= rarest]
    tokens = [*SPECIAL, *common, *("##" + letter for letter in common if letter.isalnum() and ord(letter) < 0x3000)]
    known = set(tokens)
    for word, count in words.most_common():
        if len(tokens) >= size or count < rarest:
            break
        if word not in known:
            tokens.append(word)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return len(tokens)


# ---- poems ------------------------------------------------------------------------------------------------------------


def read_poems():
    """(author, title, poem) of every poem; a poem is one line."""
    for name in ("tang300", "song100"):
        path = FORTUNES / name
        if not path.exists():
            sys.exit(f"{path} is not there: install the package fortunes-zh")
        text = re.sub(r"\x1b\[[0-9;]*m", "", path.read_text(encoding="utf-8"))
        for entry in text.split("\n%\n"):
            lines = [line.strip() for line in entry.strip().splitlines()]
            if len(lines) < 3 or "作者" not in lines[1]:
                continue
            title = re.sub(r"题目[:：]|[《》]", "", lines[0])
            author = re.sub(r"作者[:：]|（.*", "", lines[1])
            yield author, title, "".join(lines[2:])


def poems(folder):
    """Short ones, of at most 72 characters: four or eight lines."""
    train, test, seen = [], [], set()
    for author, title, poem in read_poems():
        if len(poem) > 72 or len(title) > 16 or poem in seen:
            continue
        seen.add(poem)
        example = {"source": f"{author}《{title}》", "target": poem}
        (test if share(poem) < 0.1 else train).append(example)
    write_examples(folder, train, test)
    texts = [example["source"] + example["target"] for example in train]
    size = write_vocabulary(folder, texts, 4000, rarest=1)
    write_config(
        folder,
        {
            "model_type": "glm",
            "architectures": ["GLMForSeq2Seq"],
            "num_layers": 3,
            "vocab_size": size + 4,  # [sop], [eop], [gMASK] and [sMASK] stand behind the vocabulary
            "hidden_size": 128,
            "num_attention_heads": 4,
            "embedding_dropout_prob": 0.1,
            "attention_dropout_prob": 0.1,
            "output_dropout_prob": 0.1,
            "max_sequence_length": 128,
            "max_memory_length": 0,
            "checkpoint_activations": False,
            "checkpoint_num_layers": 1,
            "parallel_output": True,
            "relative_encoding": False,
            "block_position_encoding": True,
            "output_predict": True,
            "spell_length": None,
            "spell_func": "lstm",
            "attention_scale": 1.0,
        },
    )


# ---- packages ---------------------------------------------------------------------------------------------------------


def read_stanzas(lists, pattern):
    """The paragraphs of Debian's lists as dictionaries."""
    for path in sorted(glob.glob(str(lists / pattern))):
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], check=True, capture_output=True).stdout.decode()
        for stanza in text.split("\n\n"):
            yield dict(re.findall(r"^([\w-]+): ?(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE))


def fetch_lists(folder):
    """The lists with the long descriptions, which small installations leave out."""
    if glob.glob(str(LISTS / "*Translation-en*")):
        return LISTS
    lists = folder / "apt"
    if not glob.glob(str(lists / "*Translation-en*")):
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = {"Dir::State::lists": lists.resolve(), "Dir::Cache": (folder / "cache").resolve(), "Acquire::Languages": "en"}
        subprocess.run(["apt-get", *(f"-o{key}={value}" for key, value in options.items()), "-q", "update"], check=True)
    return lists


def read_packages(folder):
    """(source package, section, title, first paragraph of the description), each description once."""
    lists = fetch_lists(folder)
    long = {}
    for stanza in read_stanzas(lists, "*Translation-en*"):
        long[stanza.get("Description-md5")] = stanza.get("Description-en", "")
    seen = set()
    for stanza in read_stanzas(lists, "*_Packages*"):
        title, _, rest = long.get(stanza.get("Description-md5"), "").partition("\n")
        paragraph = " ".join(" ".join(line.strip() for line in re.split(r"\n \.", rest)[0].splitlines()).split())
        section = stanza.get("Section", "").rsplit("/", 1)[-1]
        if not title or len(paragraph) < 40 or paragraph in seen or "transitional" in title or section in ("", "debug", "oldlibs"):
            continue
        seen.add(paragraph)
        yield stanza.get("Source", stanza["Package"]).split()[0], section, title, paragraph


def split(examples, held_out, most):
    """By source package; at most `most` to learn from, picked by hash, in an order without meaning."""
    examples = sorted(examples, key=lambda item: share(json.dumps(item[1])))
    test = [example for source, example in examples if share(source) < held_out]
    train = [example for source, example in examples if share(source) >= held_out]
    return train[:most], test[:1000]


def titles(folder):
    examples = []
    for source, _, title, paragraph in read_packages(folder):
        title = re.sub(r" \(.*\)$| - .*$", "", title)
        if 10 <= len(title) <= 60 and len(paragraph) >= 80:
            examples.append((source, {"source": paragraph[:240].rsplit(" ", 1)[0], "target": title}))
    train, test = split(examples, 0.05, 24000)
    write_examples(folder, train, test[:300])
    texts = [example["source"] + " " + example["target"] for example in train]
    size = write_vocabulary(folder, texts, 5000)
    write_config(
        folder,
        {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "vocab_size": size,
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 256,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": 0.0,
            "layer_norm_epsilon": 1e-6,
            "initializer_factor": 1.0,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": 3,  # [SEP]: the tokenizer is BERT's, so a title is [CLS] words [SEP]
        },
    )


def sections(folder):
    packages = list(read_packages(folder))
    sizes = collections.Counter(section for _, section, _, _ in packages)
    labels = sorted(section for section, count in sizes.items() if count >= 200)
    examples = [
        (source, {"text": f"{title}. {paragraph}"[:300], "label": labels.index(section)})
        for source, section, title, paragraph in packages
        if section in labels
    ]
    train, test = split(examples, 0.1, 24000)
    write_examples(folder, train, test)
    size = write_vocabulary(folder, [example["text"] for example in train], 6000)
    write_config(
        folder,
        {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification"],
            "vocab_size": size,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_position_embeddings": 64,
            "type_vocab_size": 2,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": 0,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        },
    )


def main():
    kinds = {"poems": poems, "titles": titles, "sections": sections}
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    kinds[options.kind](options.to)


if __name__ == "__main__":
    main()
