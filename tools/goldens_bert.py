#!/usr/bin/env python3
"""Makes the golden values of BERT, RoBERTa and XLM-RoBERTa: bert/CASE and roberta/CASE, in the form that goldens.py describes.

    pip install torch transformers safetensors numpy
    python3 tools/goldens_bert.py [--out tests/goldens]

A whole text's head gives logits and loss; the base model last_hidden_state and pooler_output; BertForPreTraining
prediction_logits and seq_relationship_logits.  Where tokens are padding, `compare` marks the others.
"""

import argparse
import shutil
from pathlib import Path

import goldens
import torch
import transformers
from goldens import IGNORED, Inputs
from transformers import BertConfig, RobertaConfig, XLMRobertaConfig


def tiny(kind=BertConfig, **changes):
    """A config small enough to commit, with sizes that are no multiple of any vector."""
    config = dict(
        vocab_size=53,
        hidden_size=14,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=19,
        max_position_embeddings=17,
    )
    config.update(changes)
    return kind(**config)


def masked_inputs(config, batch, length, seed):
    """Some words are asked for, most are not, as masked language models learn."""
    inputs = Inputs(config, batch, length, seed)
    wanted = inputs.integers(0, 3, batch, length) == 0
    wanted[:, 1] = True
    ids = inputs.tensors["input_ids"]
    return inputs.add(labels=torch.where(wanted, ids, IGNORED), input_ids=torch.where(wanted, 3, ids))


def padded(inputs, side, counts, pad_id):
    """As Inputs.pad, without positions: BERT counts them anyway, RoBERTa counts what is no padding."""
    inputs.pad(side, counts, pad_id)
    inputs.tensors.pop("position_ids", None)
    return inputs


def choices(config, seed):
    inputs = Inputs(config, 2, 7, seed)
    mask = torch.ones(2, 3, 7, dtype=torch.long)
    mask[0, 1, 5:] = 0
    return inputs.add(
        input_ids=inputs.integers(3, config.vocab_size, 2, 3, 7).masked_fill(mask == 0, config.pad_token_id),
        attention_mask=mask,
        labels=torch.tensor([2, 0]),
    )


def heads(case, prefix, kind):
    """What BERT and RoBERTa have in common."""

    def named(name):
        return prefix + name

    config = tiny(kind, num_hidden_layers=1)
    case("base_model", named("Model"), config, Inputs(config, 2, 9, 50))
    config = tiny(kind, num_labels=3)
    inputs = Inputs(config, 3, 9, 51).add(labels=torch.tensor([2, 0, 1]))
    case(
        "sequence_single_label",
        named("ForSequenceClassification"),
        config,
        padded(inputs, "right", [0, 4, 7], config.pad_token_id),
    )
    config = tiny(kind, num_labels=4, num_hidden_layers=1, classifier_dropout=0.3)
    inputs = Inputs(config, 2, 9, 52).add(labels=torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]))
    case("sequence_multi_label", named("ForSequenceClassification"), config, inputs)
    config = tiny(kind, num_labels=1, num_hidden_layers=1)
    inputs = Inputs(config, 3, 7, 53).add(labels=torch.tensor([0.7, -1.3, 0.2]))
    case("sequence_regression", named("ForSequenceClassification"), config, inputs)
    config = tiny(kind, num_labels=2, problem_type="regression", num_hidden_layers=1)
    inputs = Inputs(config, 2, 7, 54).add(labels=torch.tensor([[0.4, -0.9], [0.0, 1.2]]))
    case("sequence_regression_of_two", named("ForSequenceClassification"), config, inputs)
    config = tiny(kind, num_labels=5, num_hidden_layers=1)
    case(
        "token_classification",
        named("ForTokenClassification"),
        config,
        Inputs(config, 2, 9, 55).token_labels(classes=5),
    )
    config = tiny(kind, num_hidden_layers=1)
    inputs = Inputs(config, 3, 9, 56)
    inputs.add(start_positions=torch.tensor([1, 4, 30]), end_positions=torch.tensor([3, 9, 8]))
    case("question_answering", named("ForQuestionAnswering"), config, inputs)
    config = tiny(kind, num_hidden_layers=1, classifier_dropout=0.2)
    case("multiple_choice", named("ForMultipleChoice"), config, choices(config, 57))

    causal = {"Bert": "BertLMHeadModel"}.get(prefix, named("ForCausalLM"))
    config = tiny(kind, is_decoder=True, use_cache=False)
    inputs = Inputs(config, 2, 9, 58).token_labels()
    case("decoder", causal, config, padded(inputs, "right", [0, 3], config.pad_token_id))
    config = tiny(kind, is_decoder=True, add_cross_attention=True, num_hidden_layers=1, use_cache=False)
    inputs = Inputs(config, 2, 7, 59).token_labels()
    inputs.add(encoder_hidden_states=inputs.floats(2, 5, config.hidden_size))
    inputs.add(encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    case("cross_attention", causal, config, inputs)

    masked = named("ForMaskedLM")
    config = tiny(kind, hidden_size=20, intermediate_size=80, vocab_size=67)
    case("default", masked, config, masked_inputs(config, 2, 13, 1))
    config = tiny(
        kind, hidden_size=28, num_attention_heads=4, intermediate_size=9, vocab_size=103, max_position_embeddings=66
    )
    case("long", masked, config, masked_inputs(config, 1, 63, 2), gradients=False)
    config = tiny(kind)
    case("one_token", masked, config, Inputs(config, 1, 1, 3))
    for seed, (name, option) in enumerate(
        {
            "layer_norm_eps": dict(layer_norm_eps=0.03),
            "untied_head": dict(tie_word_embeddings=False),
            "one_token_type": dict(type_vocab_size=1, num_attention_heads=1),
        }.items(),
        start=30,
    ):
        config = tiny(kind, num_hidden_layers=1, **option)
        case(name, masked, config, masked_inputs(config, 2, 9, seed))
    config = tiny(kind, num_hidden_layers=1, type_vocab_size=3)
    inputs = masked_inputs(config, 2, 9, 40)
    case("token_type_ids", masked, config, inputs.add(token_type_ids=inputs.integers(0, 3, 2, 9)))
    config = tiny(kind, num_hidden_layers=1)
    inputs = masked_inputs(config, 2, 9, 41)
    case(
        "position_ids",
        masked,
        config,
        inputs.add(position_ids=torch.stack([torch.arange(9) + 8, torch.arange(9).flip(0)])),
    )
    config = tiny(kind)
    case(
        "right_padding",
        masked,
        config,
        padded(masked_inputs(config, 3, 9, 42), "right", [0, 4, 7], config.pad_token_id),
    )
    case(
        "left_padding", masked, config, padded(masked_inputs(config, 3, 9, 43), "left", [3, 0, 7], config.pad_token_id)
    )
    config = tiny(kind, num_hidden_layers=1)
    inputs = masked_inputs(config, 1, 9, 44)
    case("mask_with_holes", masked, config, inputs.add(attention_mask=torch.tensor([[1, 1, 0, 0, 1, 1, 0, 1, 1]])))
    # padding that nobody hides takes part, but its embeddings have no gradient; with another id than the usual one
    config = tiny(kind, num_hidden_layers=1, pad_token_id=5)
    inputs = masked_inputs(config, 2, 9, 45)
    inputs.tensors["input_ids"][0, 6:] = inputs.tensors["input_ids"][1, 2] = 5
    case("padding_in_sight", masked, config, inputs)

    # the same weights in other files; their gradients say nothing new
    same = masked_inputs(tiny(kind), 2, 9, 60)
    for name, dtype in (("weights_f16", torch.float16), ("weights_bf16", torch.bfloat16)):
        case(name, masked, tiny(kind), same, dtype=dtype, gradients=False, seed=60)
    case("sharded", masked, tiny(kind), same, gradients=False, shards="8KB", seed=60)
    case("old_names", masked, tiny(kind), same, gradients=False, change=old_names, seed=60)
    case("tied_twice_and_unknown", masked, tiny(kind), same, gradients=False, change=tied_twice_and_unknown, seed=60)
    ids = Inputs(tiny(kind), 2, 9, 61)
    base = getattr(transformers, named("Model")).base_model_prefix
    case(
        "base_from_head",
        named("Model"),
        tiny(kind),
        ids,
        gradients=False,
        change=lambda tensors: {f"{base}.{name}": t for name, t in tensors.items()},
        seed=60,
    )
    case("base_without_pooler", named("Model"), tiny(kind), ids, gradients=False, add_pooling_layer=False, seed=60)


def old_names(tensors):
    """The names of the first BERT checkpoints: no prefix, gamma and beta, a buffer that is no parameter."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.").removeprefix("roberta.")
        if "LayerNorm" in name or "layer_norm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[name] = tensor
    positions = renamed["embeddings.position_embeddings.weight"].shape[0]
    renamed["embeddings.position_ids"] = torch.arange(positions).expand(1, -1)
    return renamed


def tied_twice_and_unknown(tensors):
    """The tied head written out a second time, a head that this model lacks, and tensors that no BERT has."""
    more = dict(tensors)
    if "cls.predictions.bias" in tensors:
        more["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        more["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        more["cls.seq_relationship.weight"] = torch.ones(2, 14)
    else:
        more["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
        more["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    more["some.counter"] = torch.tensor([3])
    more["some.flags"] = torch.tensor([True, False, True])
    return more


def make_bert(case):
    heads(case, "Bert", BertConfig)
    for seed, activation in enumerate(
        ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh"], start=10
    ):
        config = tiny(hidden_act=activation, num_hidden_layers=1, hidden_size=10, vocab_size=29)
        case(f"activation_{activation}", "BertForMaskedLM", config, masked_inputs(config, 1, 11, seed))
    config = tiny(num_hidden_layers=1)
    inputs = masked_inputs(config, 2, 9, 70).add(next_sentence_label=torch.tensor([1, 0]))
    case("pretraining", "BertForPreTraining", config, inputs)
    inputs = Inputs(config, 3, 9, 71).add(labels=torch.tensor([1, 0, 1]))
    inputs.add(token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]] * 3))
    case("next_sentence", "BertForNextSentencePrediction", config, inputs)
    config = tiny(num_hidden_layers=1, pad_token_id=None)
    case("no_pad_token", "BertForMaskedLM", config, masked_inputs(config, 2, 9, 72))


def make_roberta(case):
    heads(case, "Roberta", RobertaConfig)
    config = tiny(RobertaConfig, num_hidden_layers=1, hidden_act="relu")  # the head for masked words keeps GELU
    case("activation_relu", "RobertaForMaskedLM", config, masked_inputs(config, 2, 9, 70))
    config = tiny(XLMRobertaConfig, num_hidden_layers=1, layer_norm_eps=1e-5, type_vocab_size=1)
    case("xlm_masked", "XLMRobertaForMaskedLM", config, padded(masked_inputs(config, 2, 9, 71), "right", [0, 3], 1))
    config = tiny(XLMRobertaConfig, num_hidden_layers=1, num_labels=3)
    inputs = Inputs(config, 2, 9, 72).add(labels=torch.tensor([2, 0]))
    case("xlm_sequence", "XLMRobertaForSequenceClassification", config, padded(inputs, "right", [2, 0], 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for family, make in (("bert", make_bert), ("roberta", make_roberta)):
        shutil.rmtree(options.out / family, ignore_errors=True)

        def case(name, head, config, inputs, seed=None, family=family, **more):
            seed = inputs.generator.initial_seed() if seed is None else seed
            for weights in range(seed, seed + 40000, 1000):  # the first where float32 keeps well inside the tolerances
                try:
                    goldens.forward_case(
                        options.out, name, head, config, inputs.tensors, weights, family=family, **more
                    )
                    break
                except SystemExit:
                    shutil.rmtree(options.out / family / name)
            else:
                raise SystemExit(f"{name}: no weights will do")

        make(case)
        files = [path for path in (options.out / family).rglob("*") if path.is_file()]
        for path in files:
            path.chmod(0o644)
        print(f"{family}: {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
