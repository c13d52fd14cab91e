#!/usr/bin/env python3
"""`twinkle predict` against the pipelines of transformers: labels, entities, masked words, answers, embeddings, texts.

    TWINKLE=path/to/twinkle [SEED=0] python3 tests/predict.py

Models are random; their tokenizers know the words of the texts.  Scores must be equal to 1e-5, everything else exactly.
"""

import json
import random
import sys

import torch
import transformers
from harness import COUNTS, SEED, WORK, check, close, goldens, new_folder, ok, refuse, save_tokenizer

WORDS = "the a of and paris london anna bob lives in is was city river old big green house tree sings reads book 's , . ! ? ( ) -".split()
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-ORG"]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


def texts(count):
    rng = random.Random(SEED)
    for _ in range(count):
        words = [rng.choice([*WORDS, "Anna", "unknownword", "riverhouse", "Zürich", "東京", "👍", "bigtree"]) for _ in range(rng.randint(1, 12))]
        yield rng.choice([" ", "  ", "\t"]).join(words) + rng.choice(["", ".", " "])


def save_bert(folder, head, **options):
    """A random BERT with a WordPiece tokenizer; model and tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *WORDS[2:], "東", "京", "##tree", "##house"]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in vocabulary), encoding="utf-8")
    config = transformers.BertConfig(vocab_size=len(vocabulary), architectures=[head], **{**SMALL, **options})
    config._attn_implementation = "eager"
    return finish(folder, getattr(transformers, head)(config), transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True))


def save_gpt2(folder, head, **options):
    save_tokenizer(folder, SEED + 3)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, **options)
    config.architectures = [head]
    return finish(folder, getattr(transformers, head)(config), tokenizer)


def finish(folder, model, tokenizer):
    goldens.random_weights(model, SEED + 1)
    model.save_pretrained(folder)
    return model.eval(), tokenizer


def predict(folder, *args):
    return ok("predict", folder, *args, "--json").object()


# ---- labels -----------------------------------------------------------------------------------------------------------


def classes():
    names = {0: "bad", 1: "so so", 2: "good"}
    for head, options in (
        ("single", {}),
        ("multi", {"problem_type": "multi_label_classification"}),
        ("one", {"num_labels": 1}),
        ("regression", {"num_labels": 1, "problem_type": "regression"}),
    ):
        folder = WORK / f"classes-{head}"
        options = options if "num_labels" in options else {"id2label": names, "label2id": {name: i for i, name in names.items()}, **options}
        model, tokenizer = save_bert(folder, "BertForSequenceClassification", **options)
        pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
        for text in texts(6):
            with check(f"classes {head} {text!r}"):
                want = pipe(text)
                want = want[0] if isinstance(want[0], list) else want
                got = predict(folder, "--text", text)["labels"]
                assert [x["label"] for x in got] == [x["label"] for x in want], f"{got} instead of {want}"
                close([x["score"] for x in got], [x["score"] for x in want], 1e-5, "score")
        with check(f"classes of a pair {head}"):
            want = pipe({"text": "anna reads", "text_pair": "the old book ."})
            want = want[0] if isinstance(want[0], list) else want
            got = predict(folder, "--text", "anna reads", "--text2", "the old book .")["labels"]
            close([x["score"] for x in got], [x["score"] for x in want], 1e-5, "score")
    folder = WORK / "classes-gpt2"
    model, tokenizer = save_gpt2(folder, "GPT2ForSequenceClassification", num_labels=4)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for text in texts(4):
        with check(f"classes gpt2 {text!r}"):
            want = pipe(text)
            want = want[0] if isinstance(want[0], list) else want
            got = predict(folder, "--text", text)["labels"]
            assert [x["label"] for x in got] == [x["label"] for x in want], f"{got} instead of {want}"
            close([x["score"] for x in got], [x["score"] for x in want], 1e-5, "score")
    with check("a file of texts"):
        path = WORK / "texts.txt"
        path.write_text("anna reads\n\nbob sings .\r\nthe river", encoding="utf-8")
        lines = ok("predict", WORK / "classes-single", "--file", path, "--json").objects()
        want = [predict(WORK / "classes-single", "--text", text) for text in ("anna reads", "bob sings .", "the river")]
        assert lines == want
        pairs = WORK / "texts.jsonl"
        pairs.write_text('{"text":"anna reads","text2":"the book"}\n{"text":"bob"}\n', encoding="utf-8")
        lines = ok("predict", WORK / "classes-single", "--file", pairs, "--json").objects()
        assert lines == [predict(WORK / "classes-single", "--text", "anna reads", "--text2", "the book"), predict(WORK / "classes-single", "--text", "bob")]
        assert ok("predict", WORK / "classes-single", "--file", path).text.count("so so") == 3


# ---- entities ---------------------------------------------------------------------------------------------------------


def spans(model, tokenizer, text):
    """The entities of a text by the rule of twinkle.h: a word has its first token's tag; B, S and O begin anew, E and S end."""
    coded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    offsets, words = coded.pop("offset_mapping")[0].tolist(), coded.word_ids(0)
    probabilities = model(**coded).logits[0].softmax(-1)
    found, open_ = [], None
    for i, word in enumerate(words):
        if word is None:
            open_ = None
            continue
        begin, end = offsets[i]
        if i and words[i - 1] == word:
            if open_:
                open_["end"] = end
            continue
        score, tag = probabilities[i].max(-1)
        name = model.config.id2label[tag.item()]
        part, kind = (name[0], name[2:]) if name[1:2] == "-" else ("O" if name == "O" else "I", name)
        if open_ and (open_["part"] in "ELSU" or part in "OBSU" or kind != open_["entity_group"]):
            open_ = None
        if part == "O":
            continue
        if not open_:
            open_ = {"entity_group": kind, "start": begin, "scores": []}
            found.append(open_)
        open_.update(end=end, part=part)
        open_["scores"].append(score.item())
    return found


def entities():
    for labels in (LABELS, LABELS[:5], ["O", "PER", "LOC"]):
        folder = WORK / f"entities-{len(labels)}"
        names = dict(enumerate(labels))
        model, tokenizer = save_bert(folder, "BertForTokenClassification", id2label=names, label2id={name: i for i, name in names.items()})
        for text in texts(12):
            with check(f"entities {len(labels)} {text!r}"):
                got, want = predict(folder, "--text", text)["entities"], spans(model, tokenizer, text)
                assert [(x["entity_group"], x["start"], x["end"]) for x in got] == [(x["entity_group"], x["start"], x["end"]) for x in want], f"{got} instead of {want}"
                close([0, *(x["score"] for x in got)], [0, *(sum(x["scores"]) / len(x["scores"]) for x in want)], 1e-5, "score")
                for x in got:
                    assert x["word"] == text[x["start"] : x["end"]]
                    assert x["word"] == text.encode()[x["start_byte"] : x["end_byte"]].decode()
            if labels is not LABELS:  # transformers knows no tags for the end and for single words
                with check(f"entities by the pipeline {len(labels)} {text!r}"):
                    pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first")
                    want = [(x["entity_group"], x["start"], x["end"]) for x in pipe(text)]
                    got = [(x["entity_group"], x["start"], x["end"]) for x in predict(folder, "--text", text)["entities"]]
                    assert got == want, f"{got} instead of {want}"


# ---- masked words -------------------------------------------------------------------------------------------------------


def masked():
    folder = WORK / "masked"
    model, tokenizer = save_bert(folder, "BertForMaskedLM")
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    for text in ("anna reads the [MASK] .", "[MASK]", "the [MASK] of [MASK] sings"):
        with check(f"masked {text!r}"):
            want, got = pipe(text, top_k=7), predict(folder, "--text", text, "--top-k", 7)["candidates"]
            want, got = (want, got) if isinstance(want[0], list) else ([want], [got])
            assert len(got) == len(want)
            for one, other in zip(got, want, strict=True):
                assert [(x["token"], x["token_str"]) for x in one] == [(x["token"], x["token_str"]) for x in other], f"{one} instead of {other}"
                close([x["score"] for x in one], [x["score"] for x in other], 1e-5, "score")
    with check("masked: as many candidates as asked for, five where nobody asks"):
        assert len(predict(folder, "--text", "[MASK]")["candidates"]) == 5
        assert len(predict(folder, "--text", "[MASK]", "--top-k", 100000)["candidates"]) == len(tokenizer)
    with check("masked: no mask"):
        refuse("predict", folder, "--text", "anna reads")


# ---- answers ------------------------------------------------------------------------------------------------------------


def best_answer(model, tokenizer, question, context):
    coded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    offsets, words, parts = coded.pop("offset_mapping")[0].tolist(), coded.word_ids(0), coded.sequence_ids(0)
    out = model(**coded)
    allowed = torch.tensor([part == 1 or ids == tokenizer.cls_token_id for part, ids in zip(parts, coded["input_ids"][0].tolist(), strict=True)])
    start, end = (logits[0].masked_fill(~allowed, -1e30).softmax(-1) for logits in (out.start_logits, out.end_logits))
    best = max(
        ((start[i] * end[k]).item(), i, k)
        for i in range(len(parts))
        for k in range(i, min(len(parts), i + 15))
        if parts[i] == 1 and parts[k] == 1
    )
    score, i, k = best
    while parts[i - 1] == 1 and words[i - 1] == words[i]:
        i -= 1
    while k + 1 < len(parts) and parts[k + 1] == 1 and words[k + 1] == words[k]:
        k += 1
    return score, offsets[i][0], offsets[k][1]


def answers():
    folder = WORK / "answers"
    model, tokenizer = save_bert(folder, "BertForQuestionAnswering")
    questions = list(texts(10))
    for question, context in zip(questions[:5], questions[5:], strict=True):
        with check(f"answers {question!r} {context!r}"):
            score, begin, end = best_answer(model, tokenizer, question, context)
            got = predict(folder, "--text", question, "--text2", context)
            assert (got["start"], got["end"], got["answer"]) == (begin, end, context[begin:end]), f"{got} instead of {(begin, end)}"
            close([got["score"]], [score], 1e-5, "score")
    with check("answers: no text to look in"):
        refuse("predict", folder, "--text", "who ?")
        refuse("predict", folder, "--text", "who ?", "--text2", "")


# ---- embeddings and texts -------------------------------------------------------------------------------------------------


def embeddings():
    for name, make in (("bert", lambda folder: save_bert(folder, "BertModel")), ("gpt2", lambda folder: save_gpt2(folder, "GPT2Model"))):
        folder = WORK / f"embedding-{name}"
        model, tokenizer = make(folder)
        for text in texts(5):
            with check(f"embedding {name} {text!r}"):
                hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
                close(predict(folder, "--text", text)["embedding"], (hidden / hidden.norm()).tolist(), 1e-5, "embedding")


def written():
    folder = WORK / "written"
    model, tokenizer = save_gpt2(folder, "GPT2LMHeadModel")
    for text in ("anna reads", "the 中 river"):
        with check(f"text {text!r}"):
            coded = tokenizer(text, return_tensors="pt")
            ids = model.generate(coded["input_ids"], max_new_tokens=12, do_sample=False)[0, coded["input_ids"].shape[1] :]
            got = predict(folder, "--text", text, "--max-new-tokens", 12)["text"]
            assert got == tokenizer.decode(ids, skip_special_tokens=True), got


    folder = WORK / "written-t5"
    save_tokenizer(folder, SEED + 4)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    config.architectures = ["T5ForConditionalGeneration"]
    model, tokenizer = finish(folder, transformers.T5ForConditionalGeneration(config), tokenizer)
    for beams in (1, 3):
        with check(f"text of T5 with {beams} beams"):
            ids = model.generate(tokenizer("the 中 river", return_tensors="pt")["input_ids"], max_new_tokens=12, do_sample=False, num_beams=beams)[0, 1:]
            got = predict(folder, "--text", "the 中 river", "--max-new-tokens", 12, "--num-beams", beams)["text"]
            assert got == tokenizer.decode(ids, skip_special_tokens=True), got


def refusals():
    folder = WORK / "classes-single"
    with check("command line"):
        refuse("predict", status=2)
        refuse("predict", folder, status=2)
        refuse("predict", folder, "--text", "a", "--file", "b", status=2)
        refuse("predict", folder, "--text", "a", "--top-k", "0", status=2)
    with check("a text that is too long"):
        refuse("predict", folder, "--text", "anna " * 63)
        ok("predict", folder, "--text", "anna " * 62)
    with check("files"):
        refuse("predict", folder, "--file", WORK / "none")
        for number, text in enumerate(("x\n", '{"label":1}\n', '{"text":3}\n', '{"text":"a"}\n{\n')):
            path = WORK / f"bad{number}.jsonl"
            path.write_text(text, encoding="utf-8")
            refuse("predict", folder, "--file", path)
        (WORK / "nul.txt").write_bytes(b"a\0b\n")
        refuse("predict", folder, "--file", WORK / "nul.txt")
    with check("no tokenizer"):
        bare = new_folder("bare")
        for name in ("config.json", "model.safetensors"):
            (bare / name).write_bytes((folder / name).read_bytes())
        refuse("predict", bare, "--text", "anna")
    with check("labels that are no names"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["id2label"] = {"0": 1, "1": None, "2": "good"}
        (bare / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (bare / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
        assert {x["label"] for x in predict(bare, "--text", "anna")["labels"]} == {"LABEL_0", "LABEL_1", "good"}


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    for group in (classes, entities, masked, answers, embeddings, written, refusals):
        group()
    print(f"{COUNTS['passed']} passed, {COUNTS['failed']} failed")
    return 1 if COUNTS["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
