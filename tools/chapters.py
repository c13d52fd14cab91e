#!/usr/bin/env python3
"""chapters.py: the chapters of the two headers, as a map, and as promises that are checked.

    python3 tools/chapters.py            prints the map with line counts; exit status 1 where a promise is broken
    python3 tools/chapters.py --map      prints only the lines that belong into the opening comments

A chapter has a mark and a title.  It begins with a comment like `/* ==== [tw:05] layers ====` among the declarations
and with `/* ==== [tw:05] layers: implementation ====` further down.  The promises:

  1. twinkle.h: the marks of each half stand in order, each once, and both halves have the same.
     twinkle_blas.h is compiled in several passes, so there a chapter's implementation may come in several pieces.
  2. The map in the opening comment has exactly these marks and titles (a title ends at its colon).
  3. No chapter reaches forward: it does not use what a later chapter's implementation defines.  A public function
     belongs to the chapter that declares it, a type to the chapter that first names it (`typedef struct x x;`);
     pointing to a `struct x` that only a later chapter can look into is no use.
"""
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
HEADERS = [("twinkle_blas.h", "twb", "#ifndef TWINKLE_BLAS_IMPLEMENTED"), ("twinkle.h", "tw", "#ifndef TWINKLE_IMPLEMENTED")]
INSIDE_ONLY = {"twb:02", "twb:03"}       # chapters that declare nothing: how kernel sets are made, and chosen
AHEAD = {                                # what an earlier chapter may use of a later one, and why
    "twi_contiguous": "a view whose strides cannot be reshaped is copied, and a copy is an operation with a gradient",
    "TWB_X86": "which kernel sets this compiler can build is asked where the passes begin",
    "TWB_ARM": "the same",
    "twb_rows": "a function there; in [twb:04] a constant of each pass, the rows of a tile",
    "twi_free_model_files": "a model that is freed lets go of the files its weights lie in",
}
PUBLIC = r"^(?:TWDEF|TWBDEF)\b[^;{}()]*?\b(\w+)\s*\("


def without_comments(text):
    """The text with comments and strings blanked out, line for line."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'',
                  lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


class Piece:
    """The text from one mark to the next."""

    def __init__(self, mark, title, line, text):
        self.mark, self.title, self.line, self.text = mark, title, line, text
        self.code = without_comments(text)


def pieces_of(text, prefix, first_line):
    marks = list(re.finditer(r"^/\* ?[-=]{4,} \[(%s:\d\d)\] (?:to \[(%s:\d\d)\])?(.*?)[-= ]*(?:\*/)?$" % (prefix, prefix), text, flags=re.M))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    return [Piece(m[2] or m[1], m[3].split(":")[0].strip(), first_line + text.count("\n", 0, m.start()), text[m.start():end])
            for m, end in zip(marks, ends)]


def defined_in(code):
    """Names of functions, types, tables and macros that an implementation defines."""
    names = re.findall(r"^#\s*define\s+(\w+)", code, flags=re.M)
    names += re.findall(r"^\w[^;{}=()]*?\b(\w+)\s*\([^;{}]*\)\s*\{", code, flags=re.M)
    names += re.findall(r"^static\s+const\s[^;=(]*?\b(\w+)\s*(?:\[[^\]]*\]\s*)*=", code, flags=re.M)
    names += re.findall(r"^\}\s*(\w+)\s*;", code, flags=re.M) + re.findall(r"^typedef struct \w+ (\w+);", code, flags=re.M)
    return {n for n in names if re.match(r"(tw[bi]?|TW[BI]?)_", n)}


def reaches_forward(public, inside):
    home = {}
    for piece in public:
        for name in re.findall(PUBLIC, piece.code, flags=re.M):
            home.setdefault(name, piece.mark)
    for piece in inside:
        for name in defined_in(piece.code):
            home[name] = min(home.get(name, piece.mark), piece.mark)
    problems, said = [], set()
    for piece in inside:
        for match in re.finditer(r"(?<!struct )\b(?:tw[bi]?|TW[BI]?)_\w+\b", piece.code):
            name = match.group()
            if home.get(name, piece.mark) > piece.mark and name not in AHEAD and (name, piece.mark) not in said:
                said.add((name, piece.mark))
                line = piece.line + piece.code.count("\n", 0, match.start())
                problems.append(f"line {line}: [{piece.mark}] uses {name}, which [{home[name]}] defines")
    return problems


def check_header(name, prefix, middle, only_map):
    text = (TOP / name).read_text()
    cut = text.index(middle)
    public, inside = pieces_of(text[:cut], prefix, 1), pieces_of(text[cut:], prefix, 1 + text.count("\n", 0, cut))
    titles, problems = {}, []
    for piece in public + inside:
        if titles.setdefault(piece.mark, piece.title) != piece.title and prefix == "tw":
            problems.append(f"line {piece.line}: [{piece.mark}] is '{piece.title}' here and '{titles[piece.mark]}' among the declarations")
    expected = sorted(titles.items())
    if only_map:
        print("\n".join(f"       [{m}] {t}" for m, t in expected))
        return []
    for half, pieces in [("declarations", public)] + [("implementation", inside)] * (prefix == "tw"):
        marks = [p.mark for p in pieces]
        if marks != sorted(set(marks)):
            problems.append(f"the marks of the {half} are not in order, each once: {' '.join(marks)}")
    for mark in sorted(titles):
        for half, pieces in ("declarations", public), ("implementation", inside):
            if all(p.mark != mark for p in pieces) and not (half == "declarations" and mark in INSIDE_ONLY):
                problems.append(f"[{mark}] {titles[mark]}: missing in the {half}")
    in_map = re.findall(r"\[(%s:\d\d)\] +(.+?)(?= {2,}|\n| +\[)" % prefix, text[:text.index("*/")])
    if in_map != expected:
        problems.append("the map in the opening comment is not that of the text, which is:\n" + "\n".join(f"       [{m}] {t}" for m, t in expected))
    problems += reaches_forward(public, inside)
    print(f"{name}: {text.count(chr(10))} lines; declarations + implementation:")
    for mark, title in expected:
        declared, implemented = (sum(p.text.count("\n") for p in half if p.mark == mark) for half in (public, inside))
        print(f"  [{mark}] {title:50} {declared:5} + {implemented:5}")
    for problem in problems:
        print(f"  {name}: {problem}")
    return problems


def main():
    only_map = "--map" in sys.argv[1:]
    problems = [p for header in HEADERS for p in check_header(*header, only_map)]
    if not only_map:
        print(f"{2 if not problems else 0} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
