"""Makes tests/goldens/tokenizers: small tokenizers of every kind, and what `tokenizers` and `sentencepiece` make of some texts.

    python tools/goldens_tokenizers.py          (needs: tokenizers, transformers, sentencepiece)

Each folder is as a model's folder has it, with a cases.json beside: for each text the ids, the offsets in code points
(flat) and the text that comes back, with special tokens and without; and some pairs, cut and padded.  Everything follows from
fixed texts and seeds.
"""
import io
import json
import random
import shutil
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, ByteLevelBPETokenizer, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "tokenizers"

WORDS = """the of and to in a is it was he for that his with as I they we'll don't it's you've can't once upon there little girl named boy dog
cat went wanted said happy house mother play saw big day very friend tree with Hello World 2024 3.14 100,000 naïve café Straße élan Ångström über
Привет мир это тест Ελληνικά κόσμος 中文 字符 我们 测试 日本語 テスト 한국어 שלום مرحبا हिन्दी ไทย 🙂 👍🏽 ﬁne ①②""".split()

TEXTS = [
    "", " ", "  ", "\n", "a", "Hello World", "Hello, world!  It's 3.14 o'clock -- isn't it?", "  leading and trailing  ", "tabs\tand\nlines\r\n\r\nand more\n",
    "don't can't we'll you've I'm he'd they're DON'T 'tis ''s", "naïve café Straße ÅNGSTRÖM İstanbul ΑΣΣ ẞ", "e\u0301 a\u0323\u0302 a\u0302\u0323 \u1100\u1161\u11a8 한국어 각",
    "Привет, мир! Это тест.", "中文字符，我们测试。日本語テスト", "我们 went to 中文 house", "שלום مرحبا हिन्दी क्ष ไทย", "🙂👍🏽👨‍👩‍👧🇩🇪🇫🇷 emoji",
    "ﬁne ①②③ ｆｕｌｌ ﷺ ½ ™", "\u200bzero\u200dwidth\u00adsoft\ufeffbom", "\u2028line\u2029para\u0085nel\u00a0nbsp\u3000wide", "control\x00\x01\x1f\x7f\ufffd",
    "\ue000private \U000e0041tag \u0378unassigned \U0010ffff", "\U0002b820\U0002b920\U00020000 ideographs", "a" * 70, "ab" * 20, " " * 30 + "x", "\n" * 20, "!" * 40, "字" * 20,
    "e" + "\u0301" * 20, "<|endoftext|>once<|endoftext|> upon", "x [MASK] y[SEP]z [CLS]", "a <mask> b<mask>c </s><s><pad>", "<extra_id_0> went <extra_id_1>",
    "hello<sep>world <sep>", "Hello hello HELLO helloHello", "100000 2024-01-02 1,234.5 ²³¼", "$5 #1 @me a_b a.b.c http://x.y/z?q=1&r=2", "«quoted» “curly” ‘single’ …",
    "once upon a time there was a little girl", "It was a day.\n\n  She said:\n\t\"I want to play!\"\n", "ààà ÀÀÀ a\u0300a\u0300", "\u0300\u0301 lone marks", "क्\u200dष ร\u0e33 🏳️‍🌈",
]
PAIRS = [("once upon a time", "a little dog"), ("short", "the big cat went to the house"), ("", "only second"),
         ("中文字符 we'll see", "naïve café <mask> [SEP]")]
WAYS = [{}, {"no_special": True}, {"max_length": 12}, {"max_length": 9, "truncate_left": True}, {"max_length": 14, "truncation": "only_second"},
        {"max_length": 16, "truncation": "only_first"}, {"pad_to": 30}, {"pad_to": 24, "pad_left": True}, {"pad_to_multiple_of": 8}]


def corpus():
    r = random.Random(11)
    lines = [" ".join(WORDS[min(int(r.paretovariate(0.8)) - 1, len(WORDS) - 1)] for _ in range(r.randrange(3, 12))) + r.choice([".", "!", "?", "", "\n"])
             for _ in range(600)]
    return lines + [t for t in TEXTS if len(t) < 60] * 2


def folder(name):
    path = OUT / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def put(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def flat(offsets):
    return [x for pair in offsets for x in pair]


def cases(path, tokenizer, pad=None):
    """The cases of one of Hugging Face's tokenizers; pairs where it has a padding token.  What is left out is as the ids, as decoded."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    out = {"vocab_size": tokenizer.get_vocab_size(), "texts": [], "pairs": []}
    for text in TEXTS:
        e = tokenizer.encode(text)
        plain, skipped = tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.decode(e.ids)
        case = {"text": text, "ids": e.ids, "plain": plain, "offsets": flat(e.offsets), "decoded": tokenizer.decode(e.ids, skip_special_tokens=False), "skipped": skipped}
        if plain == e.ids:
            del case["plain"]
        if skipped == case["decoded"]:
            del case["skipped"]
        out["texts"].append(case)
    for first, second in PAIRS if pad is not None else []:
        for way in WAYS:
            tokenizer.no_truncation()
            tokenizer.no_padding()
            if "max_length" in way:
                tokenizer.enable_truncation(way["max_length"], strategy=way.get("truncation", "longest_first"),
                                            direction="left" if way.get("truncate_left") else "right")
            if "pad_to" in way or "pad_to_multiple_of" in way:
                tokenizer.enable_padding(direction="left" if way.get("pad_left") else "right", pad_id=pad, length=way.get("pad_to"),
                                         pad_to_multiple_of=way.get("pad_to_multiple_of"))
            try:
                e = tokenizer.encode(first, second, add_special_tokens=not way.get("no_special", False))
                got = {"ids": e.ids, "type_ids": e.type_ids, "attention_mask": e.attention_mask, "special_mask": e.special_tokens_mask, "offsets": flat(e.offsets)}
            except BaseException:                                     # it panics where a text cannot be cut that far
                got = {"error": True}
            out["pairs"].append({"text": first, "pair": second, **way, **got})
    put(path / "cases.json", out)


def sp_cases(path, model, sentinels):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    special = [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if processor.is_control(i) or processor.is_unknown(i)] + ["<extra_id_"]
    out = {"vocab_size": processor.get_piece_size() + sentinels, "texts": [], "pairs": []}
    for text in TEXTS:
        if any(s in text for s in special):
            continue
        ids = processor.encode(text)
        data = text.encode()
        spans = [(len(data[:p.begin].decode(errors="ignore")), len(data[:p.end].decode(errors="ignore"))) for p in processor.encode(text, return_type="proto").pieces]
        out["texts"].append({"text": text, "plain": ids, "plain_offsets": flat(spans), "plain_decoded": processor.decode(ids)})
    put(path / "cases.json", out)


def byte_level(lines):
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(lines, vocab_size=500, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    path = folder("gpt2_files")
    trained.save_model(str(path))
    put(path / "config.json", {"model_type": "gpt2"})
    cases(path, GPT2Tokenizer.from_pretrained(path)._tokenizer)

    path = folder("gpt2_json")
    trained.save(str(path / "tokenizer.json"), pretty=False)
    cases(path, Tokenizer.from_file(str(path / "tokenizer.json")))
    learned = ByteLevelBPETokenizer()                                 # what tw_train_tokenizer must learn from learn.txt
    text = " ".join(lines)[:9000].replace("<|endoftext|>", "")
    learned.train_from_iterator([text], vocab_size=400, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    (path / "learn.txt").write_bytes(text.encode())
    buffer = json.loads(learned.to_str())["model"]
    put(path / "learned.json", {"vocab": [t for t, _ in sorted(buffer["vocab"].items(), key=lambda x: x[1])], "merges": buffer["merges"]})

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(lines, vocab_size=460, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False)
    path = folder("roberta_files")
    trained.save_model(str(path))
    put(path / "config.json", {"model_type": "roberta"})
    cases(path, RobertaTokenizer.from_pretrained(path)._tokenizer, pad=1)

    gpt4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(gpt4), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=440, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False))
    path = folder("split_regex_json")
    t.save(str(path / "tokenizer.json"), pretty=False)
    cases(path, t)


def wordpiece(lines):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name, lower in (("bert_files", True), ("bert_json", False)):
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=lower)
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.decoder = decoders.WordPiece()
        t.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, limit_alphabet=240, show_progress=False))
        path = folder(name)
        if lower:
            vocab = sorted(t.get_vocab().items(), key=lambda x: x[1])
            (path / "vocab.txt").write_text("".join(token + "\n" for token, _ in vocab))
            put(path / "config.json", {"model_type": "bert"})
            t = BertTokenizer.from_pretrained(path)._tokenizer
        else:
            t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
            t.save(str(path / "tokenizer.json"), pretty=False)
        cases(path, t, pad=0)


def sentence_piece(lines):
    rules = OUT / "rules.tsv"                                         # a small character map: the usual ones are 200 KB
    rules.write_text("".join("%s\t%s\n" % (" ".join("%X" % ord(c) for c in a), " ".join("%X" % ord(c) for c in b)) for a, b in [
        ("\t", " "), ("\n", " "), ("\r", ""), ("\u00a0", " "), ("\u3000", " "), ("ﬁ", "fi"), ("①", "1"), ("②", "2"), ("½", "1/2"), ("e\u0301", "é"), ("\u212b", "\u00c5"),
        ("\u0300", ""), ("\u200b", ""), ("ｆ", "f"), ("ｕ", "u"), ("ｌ", "l"), ("™", "TM"), ("\u0e33", "\u0e4d\u0e32")]))
    common = dict(minloglevel=2, normalization_rule_tsv=str(rules), character_coverage=0.985)
    def train(name, **how):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([x.replace("\n", " ") for x in lines]), model_writer=model, **{**common, **how})
        path = folder(name)
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(model.getvalue())
        proto.normalizer_spec.normalization_rule_tsv = ""
        (path / "spiece.model").write_bytes(proto.SerializeToString())
        return path, proto
    path, proto = train("t5_model", model_type="unigram", vocab_size=420, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    put(path / "config.json", {"model_type": "t5"})
    sp_cases(path, path / "spiece.model", 100)

    pieces = [(p.piece, p.score) for p in proto.pieces] + [("<extra_id_%d>" % i, 0.0) for i in (1, 0)]
    t = Tokenizer(models.Unigram(pieces, 2, False))
    t.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                         normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    t.decoder = decoders.Metaspace()
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    t.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>", AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    t.add_tokens([AddedToken("Hello", single_word=True), AddedToken("ÀÀÀ", normalized=True), AddedToken("y[", rstrip=True, normalized=False)])
    path = folder("unigram_json")
    t.save(str(path / "tokenizer.json"), pretty=False)
    cases(path, t, pad=0)

    path, _ = train("sp_bpe_model", model_type="bpe", vocab_size=560, byte_fallback=True, user_defined_symbols=["<sep>", "hello"], remove_extra_whitespaces=False)
    put(path / "config.json", {"model_type": "t5"})
    put(path / "tokenizer_config.json", {"extra_ids": 0, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None})
    sp_cases(path, path / "spiece.model", 0)

    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    t.train_from_iterator(["▁" + w for line in lines for w in line.split()], trainers.BpeTrainer(vocab_size=560, special_tokens=special, limit_alphabet=120, show_progress=False))
    made = json.loads(t.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    t = Tokenizer.from_str(json.dumps(made))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    path = folder("byte_fallback_json")
    t.save(str(path / "tokenizer.json"), pretty=False)
    cases(path, t)
    rules.unlink()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    lines = corpus()
    byte_level(lines)
    wordpiece(lines)
    sentence_piece(lines)
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
