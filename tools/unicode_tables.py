"""Prints the Unicode tables of twinkle.h's tokenizer chapter.

A tokenizer that must give the ids of another one has to share its idea of what a letter is, and the parts of
Hugging Face's `tokenizers` were built from several versions of Unicode.  So each table is not read from a
standard but asked of the library itself, code point by code point; only combining classes and grapheme breaks,
which it does not show, come from Python's `unicodedata` and `regex`, and are checked against its behaviour.

    python tools/unicode_tables.py > tables.txt          (needs: tokenizers, regex; a minute)

Format: every table is a list of non-negative integers, and an integer is a few characters of six bits: five of
its bits, the lowest first, and one that says more follow.  The 64 characters are '#'...'d' without '?' and '\\',
so that the text stands in a C string.  A set of code points is its run lengths: gap, run, gap, run, ...
"""
import struct
import sys
import unicodedata

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

EVERY = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, EVERY))
HANGUL = range(0xAC00, 0xAC00 + 11172)


def digits(number):
    out = ""
    while True:
        value = number & 31 | (32 if number > 31 else 0)
        code = 35 + value
        code += code >= 63
        code += code >= 92
        out += chr(code)
        number >>= 5
        if not number:
            return out


def zigzag(number):
    return number * 2 if number >= 0 else -number * 2 - 1


def set_table(members):
    """gap, run, gap, run, ..."""
    numbers, position, members = [], 0, sorted(members)
    i = 0
    while i < len(members):
        j = i
        while j + 1 < len(members) and members[j + 1] == members[j] + 1:
            j += 1
        numbers += [members[i] - position, j - i + 1]
        position = members[j] + 1
        i = j + 1
    return numbers


def removed_by(normalizer):
    left = set(normalizer.normalize_str(TEXT))
    return {c for c in EVERY if chr(c) not in left}


def matching(pattern):
    return removed_by(normalizers.Replace(Regex(pattern), ""))


def map_table(mapping):
    """Runs of code points whose images have one length and move on alike: gap from the end of the run before,
    count, length * 2 + step, then the first image as differences from the last one seen."""
    numbers, position, last = [], 0, 0
    keys = sorted(mapping)
    i = 0
    while i < len(keys):
        first = mapping[keys[i]]
        best, best_step = 1, 0
        for step in (0, 1):
            if step and len(first) != 1:
                continue
            n = 1
            while i + n < len(keys) and keys[i + n] == keys[i] + n and \
                    mapping[keys[i + n]] == ([first[0] + n] if step else first):
                n += 1
            if n > best:
                best, best_step = n, step
        numbers += [keys[i] - position, best, len(first) * 2 + best_step]
        for image in first:
            numbers.append(zigzag(image - last))
            last = image
        position = keys[i] + best
        i += best
    return numbers


def lowercase():
    lower = normalizers.Lowercase()
    found = {}
    for c in EVERY:
        image = lower.normalize_str(chr(c))
        if image != chr(c):
            found[c] = [ord(x) for x in image]
    return found


def decompositions(normalizer):
    found = {}
    for c in EVERY:
        if c in HANGUL:
            continue
        image = normalizer.normalize_str(chr(c))
        if image != chr(c):
            found[c] = [ord(x) for x in image]
    return found


def combining_classes():
    """unicodedata's classes, of the marks that the library also moves: it shows by swapping them with others."""
    nfd = normalizers.NFD()
    found = {}
    for c in EVERY:
        k = unicodedata.combining(chr(c))
        if not k or unicodedata.normalize("NFD", chr(c)) != chr(c):
            continue
        low, high = ("\u0334", 1), ("\u0345", 240)
        moved = (nfd.normalize_str(chr(c) + low[0]) != chr(c) + low[0]) if k > low[1] else \
                (nfd.normalize_str(high[0] + chr(c)) != high[0] + chr(c))
        if moved:
            found[c] = k
    return found


def compositions(nfd):
    """Two-step: which decomposable characters NFC puts together again."""
    nfc = normalizers.NFC()
    return {c for c, image in nfd.items() if len(image) > 1 and nfc.normalize_str("".join(map(chr, image))) == chr(c)}


def charsmap(keys):
    """A SentencePiece character map that replaces each key by X: its trie has a block of 256 units a node."""
    root = {}
    for key in keys:
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = None
    blocks, queue = [[0] * 256, [0] * 256], [(root, 1)]
    def leading_to(block, position):          # a unit says where its children are by what to XOR its own position with
        return (block * 256 ^ position) << 10
    blocks[0][0] = leading_to(1, 0)
    while queue:
        node, block = queue.pop()
        for byte, child in node.items():
            if child is None:
                blocks[block][0] = 1 << 31
                continue
            blocks.append([0] * 256)
            blocks[block][byte] = leading_to(len(blocks) - 1, block * 256 + byte) | byte | (0 in child) << 8
            queue.append((child, len(blocks) - 1))
    trie = b"".join(struct.pack("<256I", *b) for b in blocks)
    blob = struct.pack("<I", len(trie)) + trie + b"X\0"
    return normalizers.Precompiled(blob)


def grapheme_sets():
    names = {}
    one = charsmap(["a"])
    joined = {c for c in EVERY if one.normalize_str("a" + chr(c)) == "X"}
    want = {c for c in EVERY if regex.fullmatch(r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]", chr(c))}
    print("grapheme extenders: library", len(joined), "regex", len(want), "differ", sorted(map(hex, joined ^ want))[:60],
          file=sys.stderr)
    names["GRAPHEME_EXTEND"] = joined
    names["GRAPHEME_PREPEND"] = {c for c in EVERY if regex.fullmatch(r"\p{GCB=Prepend}", chr(c))}
    names["GRAPHEME_CONTROL"] = {c for c in EVERY if regex.fullmatch(r"[\p{GCB=Control}\p{GCB=CR}\p{GCB=LF}]", chr(c))}
    names["PICTOGRAPH"] = {c for c in EVERY if regex.fullmatch(r"\p{Extended_Pictographic}", chr(c))}
    names["CONJUNCT_CONSONANT"] = {c for c in EVERY if regex.fullmatch(r"\p{InCB=Consonant}", chr(c))}
    names["CONJUNCT_EXTEND"] = {c for c in EVERY if regex.fullmatch(r"[\p{InCB=Extend}]", chr(c))}
    names["CONJUNCT_LINKER"] = {c for c in EVERY if regex.fullmatch(r"\p{InCB=Linker}", chr(c))}
    return names


def main():
    tables = {}
    tables["LETTER"] = set_table(matching(r"\p{L}"))
    tables["NUMBER"] = set_table(matching(r"\p{N}"))
    tables["DIGIT"] = set_table(matching(r"\d"))
    glued = " ".join("a" + chr(c) for c in EVERY)
    word = pre_tokenizers.Whitespace()
    tables["WORD"] = set_table({ord(x[1]) for x, _ in word.pre_tokenize_str(glued) if len(x) == 2 and x[0] == "a"})
    alone = pre_tokenizers.Digits(individual_digits=True)
    numeric = {ord(x) for x, _ in alone.pre_tokenize_str("".join("aa" + chr(c) for c in EVERY)) if len(x) == 1}
    tables["NUMERIC"] = set_table(numeric - {ord("a")})
    punctuation = pre_tokenizers.Punctuation()
    found = {ord(x) for x, _ in punctuation.pre_tokenize_str("".join("aa" + chr(c) for c in EVERY)) if len(x) == 1}
    tables["PUNCTUATION"] = set_table(found)
    clean = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    tables["CONTROL"] = set_table({c for c in removed_by(clean) if clean.normalize_str(chr(c)) == ""})
    strip = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    nfd = decompositions(normalizers.NFD())
    tables["NONSPACING"] = set_table({c for c in EVERY if c not in nfd and strip.normalize_str(chr(c)) == ""})
    tables["MARK"] = set_table(removed_by(normalizers.StripAccents()))
    tables["LOWER"] = map_table(lowercase())
    tables["CANONICAL"] = map_table(nfd)
    nfkd = decompositions(normalizers.NFKD())
    tables["COMPATIBLE"] = map_table({c: image for c, image in nfkd.items() if nfd.get(c) != image})
    tables["COMPOSED"] = set_table(compositions(nfd))
    classes = combining_classes()
    tables["CLASSES"] = []
    for k in sorted(set(classes.values())):
        runs = set_table({c for c in classes if classes[c] == k})
        tables["CLASSES"] += [k, len(runs) // 2] + runs
    for name, members in grapheme_sets().items():
        tables[name] = set_table(members)
    total = 0
    for name, numbers in tables.items():
        text = "".join(map(digits, numbers))
        total += len(text)
        print("static const char *const twi_unicode_%s[] = {      /* %d numbers */" % (name.lower(), len(numbers)))
        for i in range(0, len(text), 112):
            print('    "%s",' % text[i:i + 112].replace('"', '\\"'))
        print("    NULL };")
    print("/* %d characters */" % total)


if __name__ == "__main__":
    main()
