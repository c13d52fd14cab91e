#!/usr/bin/env python3
"""Makes tests/goldens/t5 and tests/goldens/mt5: T5 and mT5 by PyTorch and transformers, in the form of tools/goldens.py.

    pip install torch transformers safetensors numpy
    python3 tools/goldens_t5.py [--out tests/goldens]

Each case is a model folder with in.safetensors and out.safetensors; hidden states are encoder_hidden_states.i and
decoder_hidden_states.i, or hidden_states.i of an encoder alone.  The reference is the folder as transformers opens it, in
float64 (but T5's norm, which sums in float32 by its own definition).
t5/generate.json is as gpt2/generate.json: `ids` are the encoder's, `expect` the decoder's without its start token.
t5/buckets.json has the bucket of every distance, for some tables.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import goldens
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import MT5Config, T5Config
from transformers.models.t5.modeling_t5 import T5Attention

IGNORED = goldens.IGNORED


def tiny(kind=T5Config, **changes):
    """Small enough to commit, with sizes that are no multiple of any vector, and heads that are wider than the stream."""
    config = dict(
        vocab_size=47, d_model=10, d_kv=7, d_ff=13, num_layers=2, num_heads=2, decoder_start_token_id=0, dropout_rate=0.1
    )
    config.update(changes)
    return kind(**config)


def random_weights(model, seed):
    """Weights of a size that makes every part matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                draw = 1 + 0.2 * draw
            elif name.endswith(("shared.weight", "lm_head.weight", "embed_tokens.weight")):
                draw = 0.7 * draw
            elif name.endswith(".q.weight"):
                draw = draw * 1.3 / math.sqrt(parameter.shape[1] * model.config.d_kv)
            elif "bias" not in name:
                draw = draw * 1.3 / math.sqrt(parameter.shape[1])
            parameter.copy_(draw)


def make_folder(folder, head, config, seed, *, own_head=False, change=None, dtype=None, keys=None, shards=0):
    """A model folder: as transformers writes it, with a head of its own beside the embedding, or with changed tensors
    (`change`) or config keys (`keys`)."""
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [head]
    model = getattr(transformers, head)(config)
    random_weights(model, seed)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    if own_head or change:
        tensors = load_file(weights)
        if own_head:
            tensors["lm_head.weight"] = torch.randn(
                tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(seed + 1000)
            )
        if change:
            tensors = change(tensors)
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, weights, metadata={"format": "pt"})
    if keys:
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        for key, value in keys.items():
            if value is None:
                settings.pop(key, None)
            else:
                settings[key] = value
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def open_folder(folder, head):
    model = getattr(transformers, head).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def reference_outputs(model, tensors, gradients=True, exact=True):
    """forward() of transformers in evaluation mode, by the names of `twinkle forward --hidden-states --grads`."""
    dtype = torch.float64 if exact else torch.float32
    model = model.to(dtype)
    model.zero_grad()
    arguments = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    result = model(**arguments, output_hidden_states=True, return_dict=True)
    outputs = {}
    for name in ("logits", "last_hidden_state", "start_logits", "end_logits", "encoder_last_hidden_state"):
        if result.get(name) is not None:
            outputs[name] = result[name]
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        for i, hidden in enumerate(result.get(name) or ()):
            outputs[f"{name}.{i}"] = hidden
    if result.get("loss") is not None:
        outputs["loss"] = result["loss"].reshape(1)
        if gradients:
            result["loss"].backward()
            for name, parameter in model.named_parameters():
                outputs[f"grad.{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if not all(t.isfinite().all() for t in outputs.values()):
        raise SystemExit("a reference value is not finite")
    return outputs


def case(out, name, head, config, tensors, seed, *, gradients=True, **form):
    folder = out / config.model_type / name
    make_folder(folder, head, config, seed, **form)
    goldens.write_tensors(folder / "in.safetensors", tensors)
    goldens.write_tensors(
        folder / "out.safetensors", reference_outputs(open_folder(folder, head), tensors, gradients=gradients)
    )


class Inputs:
    """The arguments of one forward call, drawn from a seed.  Tokens are 2 and more: 0 is padding, 1 the end."""

    def __init__(self, config, batch, source, target=0, seed=0):
        self.config, self.batch, self.source, self.target = config, batch, source, target
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {"input_ids": self.integers(2, config.vocab_size, batch, source)}
        if target:
            labels = self.integers(2, config.vocab_size, batch, target)
            if target > 2:
                labels[0, target // 2] = IGNORED  # read as padding, and left out of the loss
                labels[-1, -1] = IGNORED
            self.tensors["labels"] = labels

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def add(self, **tensors):
        self.tensors.update(tensors)
        return self

    def ends(self, *at):
        """The end token, in row i at at[i]."""
        for row, place in enumerate(at):
            self.tensors["input_ids"][row, place] = 1
        return self


def mask(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows])


def make_forward(out):
    lm = "T5ForConditionalGeneration"
    config = tiny()
    case(out, "default", lm, config, Inputs(config, 2, 11, 7, 1).tensors, 1)
    config = tiny(num_layers=1, num_decoder_layers=3)
    case(out, "more_decoder_layers", lm, config, Inputs(config, 1, 5, 9, 2).tensors, 2)
    config = tiny(num_layers=3, num_decoder_layers=1, num_heads=3, d_kv=5)
    case(out, "more_encoder_layers", lm, config, Inputs(config, 2, 6, 4, 3).tensors, 3)
    config = tiny(num_heads=1, d_kv=10, num_layers=1)
    case(out, "one_head", lm, config, Inputs(config, 2, 5, 4, 4).tensors, 4)
    case(out, "one_token", lm, tiny(), Inputs(tiny(), 2, 1, 1, 5).tensors, 5, gradients=False)
    for seed, proj in enumerate(["gated-gelu", "gated-silu", "gelu", "gelu_new", "silu", "gated-relu"], start=10):
        config = tiny(feed_forward_proj=proj, num_layers=1)
        case(out, "ff_" + proj.replace("-", "_"), lm, config, Inputs(config, 1, 7, 5, seed).tensors, seed)
    # the relative bias: other tables, and distances beyond the largest
    config = tiny(num_layers=1, relative_attention_num_buckets=9, relative_attention_max_distance=20)
    case(out, "buckets_9_20", lm, config, Inputs(config, 1, 33, 29, 20).tensors, 20)
    config = tiny(num_layers=1, relative_attention_num_buckets=4, relative_attention_max_distance=3)
    case(out, "buckets_4_3", lm, config, Inputs(config, 1, 9, 8, 21).tensors, 21)
    config = tiny(num_layers=1, relative_attention_num_buckets=50, relative_attention_max_distance=64)
    case(out, "buckets_50_64", lm, config, Inputs(config, 1, 70, 66, 22).tensors, 22, gradients=False)
    config = tiny(num_layers=1, d_model=6, d_kv=3, d_ff=5, vocab_size=11)
    case(out, "long", lm, config, Inputs(config, 1, 300, 280, 23).tensors, 23)
    config = tiny(num_layers=1, layer_norm_epsilon=0.03)
    case(out, "layer_norm_epsilon", lm, config, Inputs(config, 1, 7, 5, 24).tensors, 24)
    # masks
    config = tiny()
    inputs = Inputs(config, 3, 9, 6, 30).add(
        attention_mask=mask("111111111", "111110000", "110000000"), decoder_attention_mask=mask("111111", "111100", "110000")
    )
    case(out, "right_padding", lm, config, inputs.tensors, 30)
    config = tiny(num_layers=1)
    inputs = Inputs(config, 2, 9, 6, 31).add(attention_mask=mask("000111111", "010110101"))
    case(out, "left_padding_and_holes", lm, config, inputs.tensors, 31)
    inputs = Inputs(config, 2, 8, 0, 32)
    inputs.add(decoder_input_ids=inputs.integers(0, 47, 2, 5), decoder_attention_mask=mask("10110", "11011"))
    case(out, "decoder_input_ids", lm, tiny(num_layers=1), inputs.tensors, 32)
    inputs = Inputs(config, 1, 8, 5, 33)
    inputs.add(decoder_input_ids=inputs.integers(0, 47, 1, 5))
    case(out, "decoder_input_ids_and_labels", lm, tiny(num_layers=1), inputs.tensors, 33)
    config = tiny(num_layers=1, decoder_start_token_id=5, pad_token_id=3)
    case(out, "start_and_pad", lm, config, Inputs(config, 2, 8, 5, 34).tensors, 34)
    # head and scaling: the file says whether they are one matrix, the config whether the output is scaled
    same = Inputs(tiny(), 2, 7, 5, 40).tensors
    case(out, "own_head_unscaled", lm, tiny(), same, 40, own_head=True, keys={"tie_word_embeddings": False, "scale_decoder_outputs": None})
    case(out, "own_head_scaled", lm, tiny(), same, 40, gradients=False, own_head=True)
    case(out, "tied_unscaled", lm, tiny(), same, 40, gradients=False, keys={"scale_decoder_outputs": False})
    case(out, "tied_says_false", lm, tiny(), same, 40, gradients=False, keys={"tie_word_embeddings": False, "scale_decoder_outputs": None})
    case(out, "tied_says_nothing", lm, tiny(), same, 40, gradients=False, keys={"tie_word_embeddings": None, "scale_decoder_outputs": None})

    def only_head(tensors):
        tensors["lm_head.weight"] = tensors.pop("shared.weight")
        return tensors

    def all_copies(tensors):
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"].clone()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 2)
        return tensors

    case(out, "only_head_in_file", lm, tiny(), same, 40, gradients=False, change=only_head)
    case(out, "all_copies_in_file", lm, tiny(), same, 40, gradients=False, change=all_copies)
    case(out, "weights_f16", lm, tiny(), same, 40, gradients=False, dtype=torch.float16)
    case(out, "weights_bf16", lm, tiny(), same, 40, gradients=False, dtype=torch.bfloat16)
    case(out, "sharded", lm, tiny(), same, 40, gradients=False, shards="8KB")
    # the other heads
    config = tiny()
    inputs = Inputs(config, 2, 7, 0, 50)
    inputs.add(decoder_input_ids=inputs.integers(0, 47, 2, 4), attention_mask=mask("1111111", "1111000"))
    case(out, "base_model", "T5Model", config, inputs.tensors, 50)
    inputs = Inputs(config, 2, 7, 0, 51).add(attention_mask=mask("1111111", "0011111"))
    case(out, "encoder_model", "T5EncoderModel", tiny(), inputs.tensors, 51)
    sequence = "T5ForSequenceClassification"
    config = tiny(num_labels=3, num_layers=1)
    inputs = Inputs(config, 3, 7, 0, 52).ends(6, 3, 5).add(labels=torch.tensor([2, 0, 1]), attention_mask=mask("1111111", "1111000", "1111110"))
    case(out, "sequence_single_label", sequence, config, inputs.tensors, 52)
    config = tiny(num_labels=4, num_layers=1)
    inputs = Inputs(config, 2, 6, 0, 53).ends(5, 5).ends(2, 1)
    inputs.add(labels=torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]))
    case(out, "sequence_multi_label", sequence, config, inputs.tensors, 53)
    config = tiny(num_labels=1, num_layers=1)
    inputs = Inputs(config, 3, 5, 0, 54).ends(4, 4, 4).add(labels=torch.tensor([0.7, -1.3, 0.2]))
    case(out, "sequence_regression", sequence, config, inputs.tensors, 54)
    config = tiny(num_labels=5, num_layers=2)
    inputs = Inputs(config, 2, 7, 0, 55)
    labels = inputs.integers(0, 5, 2, 7)
    labels[0, 2] = labels[1, 6] = IGNORED
    case(out, "token_classification", "T5ForTokenClassification", config, inputs.add(labels=labels).tensors, 55)
    config = tiny(num_layers=1)
    inputs = Inputs(config, 3, 7, 0, 56)
    inputs.add(start_positions=torch.tensor([1, 4, 30]), end_positions=torch.tensor([3, 7, 6]))
    case(out, "question_answering", "T5ForQuestionAnswering", config, inputs.tensors, 56)

    def with_prefix(tensors):
        return {name if name.startswith("class") else f"transformer.{name}": t for name, t in tensors.items()}

    plain = Inputs(tiny(), 1, 5, 4, 57).tensors
    case(out, "prefixed_names", lm, tiny(), plain, 57, gradients=False, change=with_prefix)

    # mT5: never scaled, other defaults, a head of its own where the file has one
    lm = "MT5ForConditionalGeneration"
    config = tiny(MT5Config)
    case(out, "default", lm, config, Inputs(config, 2, 9, 6, 60).tensors, 60)
    config = tiny(MT5Config, num_layers=1, num_decoder_layers=2)
    case(out, "own_head", lm, config, Inputs(config, 2, 6, 5, 61).tensors, 61, own_head=True, keys={"tie_word_embeddings": False})
    config = tiny(MT5Config, num_layers=1, feed_forward_proj="relu")
    inputs = Inputs(config, 2, 6, 5, 62).add(attention_mask=mask("111111", "111000"))
    case(out, "relu", lm, config, inputs.tensors, 62, keys={"decoder_start_token_id": None})
    config = tiny(MT5Config, num_layers=1)
    inputs = Inputs(config, 2, 6, 0, 63)
    case(out, "base_model", "MT5Model", config, inputs.add(decoder_input_ids=inputs.integers(0, 47, 2, 4)).tensors, 63)
    case(out, "encoder_model", "MT5EncoderModel", tiny(MT5Config), Inputs(tiny(MT5Config), 2, 7, 0, 64).tensors, 64)
    config = tiny(MT5Config, num_labels=3, num_layers=1)
    inputs = Inputs(config, 2, 6, 0, 65).ends(5, 2).add(labels=torch.tensor([2, 0]))
    case(out, "sequence_single_label", "MT5ForSequenceClassification", config, inputs.tensors, 65)
    config = tiny(MT5Config, num_labels=3, num_layers=1)
    inputs = Inputs(config, 2, 6, 0, 66)
    case(out, "token_classification", "MT5ForTokenClassification", config, inputs.add(labels=inputs.integers(0, 3, 2, 6)).tensors, 66)
    config = tiny(MT5Config, num_layers=1)
    inputs = Inputs(config, 2, 6, 0, 67).add(start_positions=torch.tensor([1, 4]), end_positions=torch.tensor([3, 5]))
    case(out, "question_answering", "MT5ForQuestionAnswering", config, inputs.tensors, 67)


def make_buckets(out):
    """[{"both_ways", "buckets", "max_distance", "first", "bucket": of the distances from `first` on}]"""
    rows = []
    for both_ways in (True, False):
        for buckets, furthest in [(32, 128), (8, 20), (4, 3), (9, 20), (50, 64), (64, 256), (16, 1024), (128, 4096), (33, 100)]:
            distance = torch.arange(-2 * min(furthest, 200), 2 * min(furthest, 200) + 1)
            bucket = T5Attention._relative_position_bucket(distance, both_ways, buckets, furthest).tolist()
            rows.append(dict(both_ways=both_ways, buckets=buckets, max_distance=furthest, first=int(distance[0]), bucket=bucket))
    goldens.write_json(out / "t5" / "buckets.json", rows)


def trained_model(config, seed, steps=300):
    """A model that has learnt to write its source backwards, every second token changed, so that its choices are clear."""
    torch.manual_seed(seed)
    model = getattr(transformers, config.architectures[0])(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        length = int(torch.randint(3, 11, (1,), generator=generator))
        ids = torch.randint(2, config.vocab_size, (16, length), generator=generator)
        labels = ids.flip(1).clone()
        labels[:, 1::2] = (labels[:, 1::2] * 3 + 1) % (config.vocab_size - 2) + 2
        ends = torch.ones(16, 1, dtype=torch.long)
        loss = model(input_ids=torch.cat([ids, ends], 1), labels=torch.cat([labels, ends], 1)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval().double()


def generate_ids(model, ids, args, noise=None):
    """(the decoder's new ids, beam score or None) from generate() of transformers."""
    config = model.config
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    source = torch.tensor([ids])
    result = model.generate(
        source,
        attention_mask=torch.ones_like(source),
        logits_processor=transformers.LogitsProcessorList([noise] if noise is not None else []),
        return_dict_in_generate=True,
        output_scores=True,
        **{"do_sample": False, **args},
    )
    score = float(result.sequences_scores[0]) if result.get("sequences_scores") is not None else None
    if noise is None and score is None:
        for step in result.scores:
            best = step[0].topk(2).values
            if best[0] - best[1] <= 1e-3:
                raise goldens.NearTie
    return result.sequences[0, 1:].tolist(), score


def safe_generation(model, ids, args, trials=6):
    return goldens.safe_generation(model, ids, args, trials, generate_ids)


def make_generate(out):
    base = dict(vocab_size=53, d_model=24, d_kv=7, d_ff=40, num_heads=3, num_layers=2, decoder_start_token_id=0)
    models = {
        "generate": T5Config(**base, architectures=["T5ForConditionalGeneration"]),
        "generate_gated": T5Config(
            **{**base, "num_decoder_layers": 1, "decoder_start_token_id": 4},
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            architectures=["T5ForConditionalGeneration"],
        ),
        "generate_mt5": MT5Config(**base, architectures=["MT5ForConditionalGeneration"]),
    }
    no_end = {"min_new_tokens": 20, "max_new_tokens": 20}
    settings = [
        {"max_new_tokens": 1},
        {"max_new_tokens": 20},
        {"max_new_tokens": 20, "min_new_tokens": 14},
        {"max_new_tokens": 16, "eos_token_id": 7},
        {"max_new_tokens": 20, "repetition_penalty": 1.3},
        {**no_end, "no_repeat_ngram_size": 2},
        {**no_end, "no_repeat_ngram_size": 1},
        {"max_new_tokens": 12, "num_beams": 2},
        {"max_new_tokens": 20, "num_beams": 4},
        {"max_new_tokens": 20, "num_beams": 5, "early_stopping": True},
        {"max_new_tokens": 20, "num_beams": 3, "length_penalty": 0.0},
        {"max_new_tokens": 20, "num_beams": 3, "length_penalty": 2.0},
        {"max_new_tokens": 20, "num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
        {"max_new_tokens": 18, "num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 15},
        {"max_new_tokens": 18, "num_beams": 3, "repetition_penalty": 1.2},
        {**no_end, "num_beams": 3},
    ]
    rows = []
    for seed, (name, config) in enumerate(models.items(), start=170):
        model = trained_model(config, seed)
        folder = out / "t5" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.float().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = open_folder(folder, config.architectures[0]).double()
        generator = torch.Generator().manual_seed(seed)
        for args in settings:
            found, attempts = 0, 0
            while found < 2 and attempts < 60:
                attempts += 1
                length = int(torch.randint(1, 12, (1,), generator=generator))
                ids = torch.randint(2, config.vocab_size, (length,), generator=generator).tolist() + [1] * (attempts % 4 != 0)
                result = safe_generation(model, ids, args)
                if result is None:
                    continue
                row = {"model": f"t5/{name}", "ids": ids, "args": args, "expect": result[0]}
                if result[1] is not None:
                    row["score"] = result[1]
                rows.append(row)
                found += 1
            if not found:
                raise SystemExit(f"generate: no source without a near tie for {args}")
    goldens.write_json(out / "t5" / "generate.json", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    parser.add_argument("--only", default="forward,generate", help="forward, generate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "forward" in options.only:
        for path in [p for kind in ("t5", "mt5") for p in (options.out / kind).glob("*") if not p.name.startswith("generate")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        make_forward(options.out)
        make_buckets(options.out)
    if "generate" in options.only:
        make_generate(options.out)
    paths = [p for kind in ("t5", "mt5") for p in (options.out / kind).rglob("*")]
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    print(f"{options.out}: {sum(p.stat().st_size for p in paths if p.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
