"""Holds random Unicode texts against `tokenizers` and `sentencepiece`: ids, offsets, decoding, pairs, truncation; and what we learn and save.

    python tests/fuzz_tokenizers.py [--texts N] [--seed S] [NAME ...]        (needs: tokenizers, transformers, sentencepiece, a C compiler)

Trains tokenizers of every kind on random text, opens each with twinkle.h (as a shared library that is built for it) and with
the original, and compares.  N texts for each tokenizer; a million in all is --texts 40000.  The last line is `N passed, N failed`.
"""
import argparse
import ctypes
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import sentencepiece                                                   # noqa: E402
import transformers                                                    # noqa: E402
from sentencepiece import sentencepiece_model_pb2                      # noqa: E402
from tokenizers import (AddedToken, ByteLevelBPETokenizer, Regex, Tokenizer, decoders as D, models as M, normalizers as N,  # noqa: E402
                        pre_tokenizers as P, processors, trainers)

TOP = Path(__file__).resolve().parent.parent

# -- random texts: blocks of Unicode by weight, words of many languages, special tokens, long runs ---------------------------------
BLOCKS = [(0x20, 0x7F, 40), (0xA0, 0x250, 8), (0x300, 0x370, 5), (0x370, 0x530, 6), (0x590, 0x700, 5), (0x900, 0xE00, 6), (0xE00, 0xF00, 3),
          (0x1000, 0x1200, 3), (0x1E00, 0x2000, 4), (0x2000, 0x2070, 6), (0x2070, 0x2C00, 5), (0x2E80, 0x3100, 4), (0x3040, 0x3100, 4), (0x4E00, 0x9FFF, 10),
          (0xAC00, 0xD7A4, 4), (0xE000, 0xE010, 1), (0xF900, 0xFB50, 3), (0xFB50, 0x10000, 4), (0x10000, 0x20000, 5), (0x1F000, 0x1FB00, 8),
          (0x20000, 0x30000, 2), (0x2B800, 0x2B930, 1), (0xE0000, 0xE0200, 1), (0, 0x20, 3), (0, 0x110000, 2)]
WEIGHTS = [w for _, _, w in BLOCKS]
WORDS = ("the of and to in Is it's we'll they're don't I'm you've he'd 'tis can't ' '' 's 123 4567 3.14 $5 ... -- !! ?? hello world Hello, WORLD naïve café élan "
         "ÀÉÎ Straße ΑΣΣ İstanbul ﬁne 한국어 中文字符 日本語テキスト ไทย हिन्दी क्ष عربي עברית Привет 🙂 👨\u200d👩\u200d👧 🇩🇪🇫🇷 e\u0301 a\u0323\u0302 \u1100\u1161\u11a8 <mask> "
         "<|endoftext|> [MASK] [SEP] </s> <s> <pad> <unk> <extra_id_0> <sep> \r\n \n\n \t").split(" ")


def character(r):
    low, high, _ = r.choices(BLOCKS, WEIGHTS)[0]
    while True:
        c = r.randrange(low, high)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def text(r):
    kind, n = r.random(), int(r.expovariate(1 / 12)) + (60 if r.random() > 0.97 else 0)
    if kind < 0.45:
        return "".join(character(r) for _ in range(n))
    if kind < 0.75:
        return "".join(r.choice([" ", " ", "  ", "\n", ""]) + (r.choice(WORDS) if r.random() < 0.75 else "".join(character(r) for _ in range(r.randrange(1, 6))))
                       for _ in range(n // 3 + 1))
    if kind < 0.9:
        few = [character(r) for _ in range(8)] + [" ", "'", "a"]
        return "".join(r.choice(few) for _ in range(n))
    return r.choice([character(r), " ", "\n", "a", "\u0301", "é", "字", "'", " '", "!"]) * r.randrange(1, 80) + r.choice(["", " ", "x", " x"])


def corpus(seed, length):
    r = random.Random(seed)
    words = ([r.choice(WORDS) for _ in range(2000)] + ["".join(r.choice("etaoinshrdlu") for _ in range(r.randrange(1, 9))) for _ in range(3000)]
             + ["".join(character(r) for _ in range(r.randrange(1, 5))) for _ in range(2000)])
    out, n = [], 0
    while n < length:
        out.append(words[min(int(r.paretovariate(0.6)), len(words) - 1)] if r.random() < 0.7 else r.choice(words))
        n += len(out[-1]) + 1
    return " ".join(out)


# -- twinkle.h through ctypes --------------------------------------------------------------------------------------------------------
class Desc(ctypes.Structure):
    _fields_ = [("no_special", ctypes.c_bool), ("pair", ctypes.c_char_p), ("pair_length", ctypes.c_size_t), ("max_length", ctypes.c_int64),
                ("truncation", ctypes.c_int), ("truncate_left", ctypes.c_bool), ("pad_to", ctypes.c_int64), ("pad_to_multiple_of", ctypes.c_int64), ("pad_left", ctypes.c_bool)]


class Encoding(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int64)] + [(n, ctypes.POINTER(ctypes.c_int32)) for n in ("ids", "type_ids", "attention_mask", "special_mask", "words")] \
        + [("offsets", ctypes.POINTER(ctypes.c_int64))]


def build(folder):
    source, library = folder / "library.c", folder / "library.so"
    source.write_text('#define TWINKLE_IMPLEMENTATION\n#include "twinkle.h"\n')
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-I%s" % TOP, str(source), "-o", str(library), "-lm"], check=True)
    lib, pointer = ctypes.CDLL(str(library)), ctypes.c_void_p
    for name, result, arguments in [
            ("tw_create", pointer, [pointer]), ("tw_error", ctypes.c_char_p, [pointer]), ("tw_clear_error", None, [pointer]), ("tw_destroy", None, [pointer]),
            ("tw_load_tokenizer", pointer, [pointer, ctypes.c_char_p]), ("tw_save_tokenizer", ctypes.c_bool, [pointer, ctypes.c_char_p]),
            ("tw_tokenize", ctypes.c_int64, [pointer, ctypes.c_char_p, ctypes.c_size_t, pointer, pointer]), ("tw_vocab_size", ctypes.c_int64, [pointer]),
            ("tw_token", ctypes.c_char_p, [pointer, ctypes.c_int32]), ("tw_special_id", ctypes.c_int32, [pointer, ctypes.c_char_p]),
            ("tw_detokenize_length", ctypes.POINTER(ctypes.c_char), [pointer, pointer, ctypes.c_int64, ctypes.c_bool, ctypes.POINTER(ctypes.c_size_t)]),
            ("tw_train_tokenizer", pointer, [pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64, pointer])]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Own:
    def __init__(self, lib, make):
        self.lib, self.tw, self.encoding = lib, lib.tw_create(None), Encoding()
        self.pointer = make(self.tw)
        if not self.pointer:
            raise RuntimeError(lib.tw_error(self.tw).decode())

    def encode(self, string, desc=None):
        data = string.encode()
        if self.lib.tw_tokenize(self.pointer, data, len(data), ctypes.byref(desc) if desc else None, ctypes.byref(self.encoding)) < 0:
            self.lib.tw_clear_error(self.tw)
            return None
        return self.encoding

    def ids(self, string, special=True):
        e = self.encode(string, Desc(no_special=not special))
        return e and e.ids[:e.count]

    def offsets(self):
        flat = self.encoding.offsets[:2 * self.encoding.count]
        return list(zip(flat[0::2], flat[1::2]))

    def decode(self, ids, skip):
        array, length = (ctypes.c_int32 * max(1, len(ids)))(*ids), ctypes.c_size_t()
        return ctypes.string_at(self.lib.tw_detokenize_length(self.pointer, array, len(ids), skip, ctypes.byref(length)), length.value)


# -- tokenizers of every kind ----------------------------------------------------------------------------------------------------------
def make_all(folder, wanted):
    """name -> the original: a Tokenizer, or a SentencePieceProcessor."""
    whole = corpus(7, 300000)
    lines = [whole[i:i + 400] for i in range(0, len(whole), 400)]
    made = {}

    def path(name):
        (folder / name).mkdir()
        return folder / name

    def keep(name, tokenizer):
        tokenizer.save(str(path(name) / "tokenizer.json"))
        made[name] = Tokenizer.from_file(str(folder / name / "tokenizer.json"))    # as it reads it, to the last bit of a score

    def changed(tokenizer, **settings):
        value = json.loads(tokenizer.to_str())
        value["model"].update(settings)
        return Tokenizer.from_str(json.dumps(value))

    def byte_level(name, normalizer, splitter, post=None, **settings):
        t = Tokenizer(M.BPE())
        t.normalizer, t.pre_tokenizer, t.decoder = normalizer, splitter, D.ByteLevel()
        t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=2500, initial_alphabet=P.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False))
        t = changed(t, **settings)
        t.post_processor = post
        keep(name, t)

    for name, special, kind in (("gpt2", ["<|endoftext|>"], "GPT2Tokenizer"), ("roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "RobertaTokenizer")):
        t = ByteLevelBPETokenizer()
        t.train_from_iterator([whole], vocab_size=3000, min_frequency=2, special_tokens=special, show_progress=False)
        t.save_model(str(path(name)))
        (folder / name / "config.json").write_text(json.dumps({"model_type": name}))
        made[name] = getattr(transformers, kind).from_pretrained(folder / name)._tokenizer
    for name, lower in (("bert", True), ("bert_cased", False)):
        t = Tokenizer(M.WordPiece(unk_token="[UNK]"))
        t.normalizer, t.pre_tokenizer, t.decoder = N.BertNormalizer(lowercase=lower), P.BertPreTokenizer(), D.WordPiece()
        t.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=1200, show_progress=False))
        vocab = sorted(t.get_vocab().items(), key=lambda x: x[1])
        (path(name) / "vocab.txt").write_text("".join(token + "\n" for token, _ in vocab))
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        made[name] = transformers.BertTokenizer.from_pretrained(folder / name)._tokenizer
    gpt4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytes_only = P.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level("gpt4_pattern", None, P.Sequence([P.Split(Regex(gpt4), "isolated"), bytes_only]), processors.ByteLevel(trim_offsets=True, add_prefix_space=False), ignore_merges=True)
    byte_level("nfc", N.NFC(), P.Sequence([P.Split(Regex(gpt4.replace("{1,3}", "")), "isolated"), bytes_only]))
    byte_level("prefix_space", None, P.ByteLevel(add_prefix_space=True), processors.RobertaProcessing(("<|endoftext|>", 0), ("<|endoftext|>", 0), True, True))
    byte_level("nfkc_digits", N.NFKC(), P.Sequence([P.Digits(True), P.Punctuation("merged_with_previous"), P.ByteLevel(add_prefix_space=True)]))
    byte_level("nfkd_contiguous", N.NFKD(), P.Sequence([P.Digits(), P.Punctuation("contiguous"), P.Split(" ", "merged_with_next"), P.ByteLevel(add_prefix_space=False)]))
    byte_level("nfd_words", N.NFD(), P.Sequence([P.Whitespace(), bytes_only]))
    byte_level("bytes_normalized", N.Sequence([N.Lowercase(), N.ByteLevel()]), P.Split(Regex(r"\w+|[^\w\s]+|\s+"), "removed", invert=True))
    for k, (normalizer, splitter) in enumerate([
            (None, P.Sequence([P.WhitespaceSplit(), P.Punctuation("removed")])), (N.Sequence([N.NFKC(), N.StripAccents()]), P.CharDelimiterSplit("e")),
            (N.Strip(), P.FixedLength(3)), (N.Lowercase(), P.Split(Regex(r"(?i:ab|[a-m]{2,3})|\d{2}|(?=x)x."), "merged_with_previous"))]):
        t = Tokenizer(M.WordLevel(unk_token="[UNK]"))
        t.normalizer, t.pre_tokenizer = normalizer, splitter
        t.train_from_iterator(lines, trainers.WordLevelTrainer(vocab_size=3000, special_tokens=["[UNK]"], show_progress=False))
        keep("word_level_%d" % k, t)
    t = Tokenizer(M.BPE(unk_token="[UNK]", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    t.pre_tokenizer, t.decoder = P.Whitespace(), D.BPEDecoder()
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=3000, special_tokens=["[UNK]"], continuing_subword_prefix="##", end_of_word_suffix="</w>", limit_alphabet=300, show_progress=False))
    keep("bpe_affixes", t)
    t = Tokenizer(M.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])
    t.train_from_iterator(["▁" + w for line in lines for w in line.split()], trainers.BpeTrainer(
        vocab_size=2500, special_tokens=["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)], limit_alphabet=500, show_progress=False))
    t = changed(t, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    t.decoder = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    keep("byte_fallback", t)

    def piece(name, **how):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([x.replace("\n", " ") for x in lines]), model_writer=model, minloglevel=2, max_sentence_length=100000,
                                                 vocab_size=4000, character_coverage=how.pop("character_coverage", 0.99), **how)
        (path(name) / "spiece.model").write_bytes(model.getvalue())
        made[name] = sentencepiece.SentencePieceProcessor(model_file=str(folder / name / "spiece.model"))
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(model.getvalue())
        return proto
    t5 = piece("sp_unigram", model_type="unigram", hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    fallback = piece("sp_unigram_bytes", model_type="unigram", hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="nfkc_cf", character_coverage=0.98)
    piece("sp_unigram_user", model_type="unigram", hard_vocab_limit=False, user_defined_symbols=["<sep>", "hello", "字", "é"], add_dummy_prefix=False, split_by_whitespace=False)
    piece("sp_bpe", model_type="bpe", user_defined_symbols=["<sep>", "<cls>x"])
    piece("sp_bpe_bytes", model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    piece("sp_bpe_suffix", model_type="bpe", treat_whitespace_as_suffix=True, normalization_rule_name="nmt_nfkc_cf")
    charsmap = t5.normalizer_spec.precompiled_charsmap
    vocab = [(p.piece, p.score) for p in t5.pieces] + [("<extra_id_%d>" % i, 0.0) for i in range(9, -1, -1)]
    t = Tokenizer(M.Unigram(vocab, 2, False))
    t.normalizer, t.pre_tokenizer, t.decoder = N.Precompiled(charsmap), P.Sequence([P.WhitespaceSplit(), P.Metaspace(prepend_scheme="always")]), D.Metaspace()
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    t.add_special_tokens(["<pad>", "</s>", "<unk>"] + ["<extra_id_%d>" % i for i in range(9, -1, -1)])
    keep("t5", t)
    t = Tokenizer(M.Unigram(vocab, 2, False))
    t.normalizer = N.Sequence([N.Replace("``", '"'), N.Replace("''", '"'), N.NFKD(), N.StripAccents(), N.Lowercase(), N.Precompiled(charsmap), N.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer, t.decoder = P.Metaspace(prepend_scheme="first"), D.Metaspace(prepend_scheme="first")
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s>:1 $A:2 </s>:3 $B:1 </s>:1", special_tokens=[("</s>", 1), ("<s>", 3)])
    t.add_special_tokens(["</s>", AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    t.add_tokens([AddedToken("Hello", single_word=True), AddedToken("ÀÉ", normalized=True), AddedToken("x ", rstrip=True, normalized=False)])
    keep("albert", t)
    t = Tokenizer(M.Unigram([(p.piece, p.score) for p in fallback.pieces], 0, True))
    t.normalizer, t.pre_tokenizer = N.Sequence([N.Nmt(), N.NFKC(), N.Strip()]), P.Metaspace(split=False, prepend_scheme="never")
    t.decoder = D.Sequence([D.ByteFallback(), D.Metaspace(prepend_scheme="never"), D.Fuse(), D.Strip(" ", 1, 0)])
    keep("unigram_bytes", t)
    return {name: made[name] for name in made if not wanted or name in wanted}


# -- comparing ---------------------------------------------------------------------------------------------------------------------------
passed, failed = 0, 0


def check(good, *what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good and failed < 40:
        print(*what, flush=True)


def compare_texts(name, own, original, count, r):
    is_sp = isinstance(original, sentencepiece.SentencePieceProcessor)
    special = [original.id_to_piece(i) for i in range(original.get_piece_size()) if original.is_control(i) or original.is_unknown(i)] + ["<extra_id_", "<pad>", "</s>"] if is_sp else []
    for start in range(0, count, 500):
        texts = [text(r) for _ in range(min(500, count - start))]
        if is_sp:                                                      # which does not look for special tokens
            texts = [x for x in texts if not any(s in x for s in special)]
            for x, ids in zip(texts, original.encode(texts, num_threads=1)):
                check(own.ids(x, False) == ids, name, "ids of", repr(x))
                if start % 5000 == 0:
                    data, offsets = x.encode(), own.offsets()
                    want = [(len(data[:p.begin].decode(errors="ignore")), len(data[:p.end].decode(errors="ignore"))) for p in original.encode(x, return_type="proto").pieces]
                    check(offsets == want, name, "offsets of", repr(x))
                    check(own.decode(ids, False) == original.decode(ids).encode(), name, "decoding of", repr(x))
            continue
        bare = start % 1000 != 0
        for x, e in zip(texts, original.encode_batch(texts, add_special_tokens=not bare)):
            check(own.ids(x, not bare) == e.ids, name, "ids of", repr(x))
            check(own.offsets() == e.offsets, name, "offsets of", repr(x))
            for skip in (False, True):
                check(own.decode(e.ids, skip) == original.decode(e.ids, skip_special_tokens=skip).encode(), name, "decoding of", repr(x))


def compare_pairs(name, own, original, count, r):
    ways, pad = ["longest_first", "only_first", "only_second"], own.lib.tw_special_id(own.pointer, b"pad")
    for _ in range(count):
        a, b, room, way, left = text(r), text(r), r.choice([0, 9, 15, 16, 33, 64]), r.randrange(3), r.random() < 0.4
        length, multiple, pad_left = (r.choice([0, 0, 20, 40]), r.choice([0, 0, 8]), r.random() < 0.4) if pad >= 0 else (0, 0, False)
        original.enable_truncation(room, strategy=ways[way], direction="left" if left else "right") if room else original.no_truncation()
        original.enable_padding(direction="left" if pad_left else "right", pad_id=pad, length=length or None, pad_to_multiple_of=multiple or None) \
            if length or multiple else original.no_padding()
        try:
            e = original.encode(a, b)
        except Exception:                                              # that text alone cannot be cut so far
            e = None
        data = b.encode()
        got = own.encode(a, Desc(pair=data, pair_length=len(data), max_length=room, truncation=way, truncate_left=left, pad_to=length, pad_to_multiple_of=multiple, pad_left=pad_left))
        n = got.count if got else 0
        check(got is None if e is None else got and (got.ids[:n], got.type_ids[:n], got.attention_mask[:n], got.special_mask[:n], own.offsets())
              == (e.ids, e.type_ids, e.attention_mask, e.special_tokens_mask, e.offsets), name, "pair", repr(a), repr(b), room, ways[way], left, length, multiple)
    original.no_truncation()
    original.no_padding()


def compare_learned(lib, folder, seed):
    for k, (length, size) in enumerate(((100000, 800), (400000, 3000), (1500000, 8000))):
        string = corpus(seed + k, length).replace("<|endoftext|>", "")
        data = string.encode()
        t = ByteLevelBPETokenizer()
        t.train_from_iterator([string], vocab_size=size, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
        own = Own(lib, lambda tw: lib.tw_train_tokenizer(tw, data, len(data), size, None))
        check(t.get_vocab() == {lib.tw_token(own.pointer, i).decode(): i for i in range(lib.tw_vocab_size(own.pointer))}, "learned vocabulary", k)
        target = folder / ("learned_%d" % k)
        check(lib.tw_save_tokenizer(own.pointer, str(target).encode()), "saving", lib.tw_error(own.tw))
        sample = string[1000:9000] + "<|endoftext|> é 字"
        check(Tokenizer.from_file(str(target / "tokenizer.json")).encode(sample).ids == transformers.AutoTokenizer.from_pretrained(target)(sample)["input_ids"]
              == own.ids(sample), "what was learned and saved, opened elsewhere", k)
        lib.tw_destroy(own.tw)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--texts", type=int, default=4000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("names", nargs="*")
    a = arguments.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        lib = build(folder)
        for name, original in make_all(folder, a.names).items():
            r, before = random.Random("%s %d" % (name, a.seed)), failed
            own = Own(lib, lambda tw: lib.tw_load_tokenizer(tw, str(folder / name).encode()))
            compare_texts(name, own, original, a.texts, r)
            if not isinstance(original, sentencepiece.SentencePieceProcessor):
                compare_pairs(name, own, original, a.texts // 10, r)
            lib.tw_destroy(own.tw)
            print("%-18s %d texts, %d failures" % (name, a.texts, failed - before), flush=True)
        if not a.names:
            compare_learned(lib, folder, a.seed)
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
