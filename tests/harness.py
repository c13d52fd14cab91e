"""What the checks of the `twinkle` program share: running it, judging how it ended, comparing numbers, making models.

The reference loops are those that made the golden values: tools/goldens.py.
"""

import atexit
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import goldens  # noqa: E402  (the path is set just above)

TWINKLE = os.environ.get("TWINKLE", str(ROOT / "twinkle"))
SEED = int(os.environ.get("SEED", "0"))  # another seed makes other models and texts
WORK = Path(tempfile.mkdtemp(prefix="twinkle-contract-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
SECONDS = 60  # what any run may take
COUNTS = collections.Counter()  # passed, failed
REFUSAL_SECONDS = 5  # what a refusal may take, on a machine that does other things too


# ---- running the program ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def check(name):
    """Counts one check; whatever is raised inside is its failure."""
    try:
        yield
        COUNTS["passed"] += 1
    except Exception as error:  # a check may fail in any way, and the others still run
        COUNTS["failed"] += 1
        print(f"FAIL {name}: {str(error).strip() or type(error).__name__}", flush=True)


class Result:
    """What one run left: exit status (negative: a signal), stdout, stderr, seconds."""

    def __init__(self, status, out, err, seconds):
        self.status, self.out, self.err, self.seconds = status, out, err, seconds

    @property
    def text(self):
        return self.out.decode("utf-8")

    def objects(self):
        """--json: one object a line."""
        return [json.loads(line) for line in self.text.splitlines()]

    def object(self):
        objects = self.objects()
        assert len(objects) == 1, f"{len(objects)} lines of JSON instead of one"
        assert isinstance(objects[0], dict), "the line of JSON is no object"
        return objects[0]


def run(*args, before=None, **environment):
    """One run of the program, without input; `before` runs in the new process."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [TWINKLE, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            preexec_fn=before,
            env={**os.environ, **environment},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"`{shown(args)}` still runs after {SECONDS} s") from None
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def shown(args):
    """A command line, short and printable."""
    words = (str(word).replace(f"{WORK}/", "") for word in args)
    text = " ".join(word if word.isprintable() and word and " " not in word else repr(word) for word in words)
    return text if len(text) < 160 else text[:157] + "..."


def ok(*args, **options):
    """A run that must succeed."""
    result = run(*args, **options)
    assert result.status == 0, (
        f"`{shown(args)}` ended with {result.status}: {result.err.decode('utf-8', 'replace').strip()[:300]}"
    )
    return result


def refuse(*args, status=1, **options):
    """A run that must fail with this exit status, in time, with one clean line on stderr."""
    result = run(*args, **options)
    assert result.status == status, f"`{shown(args)}` ended with {result.status} instead of {status}"
    error_line(result)
    assert result.seconds < REFUSAL_SECONDS, f"`{shown(args)}` took {result.seconds:.1f} s to fail"
    return result


def survive(*args, **options):
    """A run that may go either way, but must not crash."""
    result = run(*args, **options)
    assert result.status in (0, 1), f"`{shown(args)}` ended with {result.status}"
    if result.status:
        error_line(result)
    return result


def error_line(result):
    text = result.err.decode("utf-8")  # a wrong byte raises here
    lines = text.splitlines()
    assert len(lines) == 1, f"{len(lines)} lines on stderr instead of one: {text[:200]!r}"
    assert text.endswith("\n"), "the line on stderr has no end"
    assert lines[0].startswith("twinkle: "), f"stderr says {lines[0][:80]!r}"
    assert lines[0][9:].strip(), "the error says nothing"
    assert lines[0].isprintable(), f"control characters on stderr: {lines[0][:200]!r}"


# ---- comparing ----------------------------------------------------------------------------------------------------


def compare(actual, expected, everything=True):
    """Named tensors against their reference, with the tolerances of the contract."""
    compare_rows = expected.get("compare")
    expected = {name: tensor for name, tensor in expected.items() if name != "compare"}
    missing = sorted(expected.keys() - actual.keys())
    assert not missing, f"not in the output: {missing[:4]}"
    if everything:
        more = sorted(actual.keys() - expected.keys())
        assert not more, f"in the output, but not asked for: {more[:4]}"
    largest_gradient = max(
        (t.abs().max().item() for name, t in expected.items() if name.startswith("grad.")), default=0
    )
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == torch.float32, f"{name} is {got.dtype}"
        assert got.shape == want.shape, f"{name} is {list(got.shape)}, expected {list(want.shape)}"
        gradient = name.startswith("grad.")
        assert got.isfinite().all(), f"{name} is not finite"
        if compare_rows is not None and not gradient and want.shape[:2] == compare_rows.shape:
            got, want = got[compare_rows != 0], want[compare_rows != 0]
        got, want = got.double(), want.double()
        # some gradients are zero in exact arithmetic, so their own size says nothing: a floor from the others
        floor = (1e-3 if want.any() else 1e-2) * largest_gradient
        scale = max(want.abs().max().item(), floor if gradient else 0)
        error = (got - want).abs().max().item()
        tolerance = 1e-4 if gradient else 1e-5
        assert error <= tolerance * scale, (
            f"{name} is off by {error / scale if scale else error:.1e} of its largest value"
        )


def close(actual, expected, tolerance, what):
    worst = max(abs(a - b) for a, b in zip(actual, expected, strict=True))
    assert worst <= tolerance, f"{what}: off by {worst:.1e}, {tolerance:.0e} allowed"


def forward(model, tensors, *flags, out=None):
    """`twinkle forward` on these inputs: its outputs."""
    source, target = WORK / "in.safetensors", out or WORK / "out.safetensors"
    target.unlink(missing_ok=True)
    goldens.write_tensors(source, tensors)
    ok("forward", model, "--in", source, "--out", target, *flags)
    return load_file(target)


def values_in(thing):
    """Every number inside a JSON value."""
    if isinstance(thing, dict):
        for value in thing.values():
            yield from values_in(value)
    elif isinstance(thing, list):
        for value in thing:
            yield from values_in(value)
    elif isinstance(thing, (int, float)) and not isinstance(thing, bool):
        yield thing


# ---- making models and tokenizers ---------------------------------------------------------------------------------


def new_folder(name):
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save_random_model(folder, head="GPT2LMHeadModel", seed=1, **options):
    """A folder with a random GPT-2, saved by transformers; the model."""
    config = goldens.tiny(**options)
    config.architectures = [head]
    config._attn_implementation = "eager"
    model = getattr(transformers, head)(config)
    goldens.random_weights(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    goldens.save_model(model, folder)
    return model.eval()


def tokenizer_corpus(seed):
    """Words of random letters of several scripts, with punctuation: enough for a few hundred merges."""
    rng = random.Random(seed)
    letters = ["abcdefghij", "klmnopqrst", "éüñß", "привет", "中文字符", "0123456789"]
    words = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 7))) for alphabet in letters for _ in range(25)]
    lines = []
    for _ in range(200):
        line = " ".join(rng.choice(words) for _ in range(rng.randint(3, 12)))
        lines.append(line + rng.choice([".\n", "!\n", "\n", ", and\n", "'s\n", "  \n"]))
    return lines


def save_tokenizer(folder, seed, layout="tokenizer.json", vocabulary=420, template=False):
    """A byte-level BPE trained on the fly, in either layout; the `tokenizers` object."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=byte_level.alphabet(),
    )
    tokenizer.train_from_iterator(tokenizer_corpus(seed), trainer)
    if template:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B:1", special_tokens=[("<|endoftext|>", 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "tokenizer.json":
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.model.save(str(folder))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    return tokenizer


def random_text(rng):
    """A string that mixes scripts, spaces, digits, marks, emoji and anything else that Unicode has."""
    ranges = [
        (0x20, 0x7F),
        (0x20, 0x7F),
        (0x61, 0x7B),
        (0xA0, 0x250),
        (0x300, 0x370),
        (0x370, 0x600),
        (0x900, 0xA00),
        (0x2000, 0x2070),
        (0x3040, 0x30FF),
        (0x4E00, 0x4F00),
        (0xAC00, 0xAD00),
        (0x1F300, 0x1F700),
        (0x1, 0x20),
        (0x1, 0xD800),
        (0xE000, 0x110000),
    ]
    pieces = []
    for _ in range(rng.randint(0, 30)):
        low, high = rng.choice(ranges)
        pieces.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 4))))
        pieces.append(
            rng.choice(["", "", " ", "  ", "\n", "\t", "'s", "'LL", "<|endoftext|>", "12", "\u00a0", "\u3000 "])
        )
    return "".join(pieces)


def write_config(config, name):
    """The configuration as a file, with a fresh output folder unless it has one; (file, folder)."""
    config = {"output_dir": str(WORK / f"run-{name}"), "logging_steps": 1, **config}
    path = WORK / f"{name}.json"
    path.write_text(json.dumps(config))
    return path, Path(config["output_dir"])
