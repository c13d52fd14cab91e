#!/usr/bin/env python3
"""Makes the golden values of FlagAI's task models on BERT: flagai_bert/CASE, in the form that goldens.py describes.

    pip install torch transformers safetensors numpy
    git clone https://github.com/FlagAI-Open/FlagAI
    python3 tools/goldens_flagai.py --flagai FlagAI [--out tests/goldens]

The weights keep FlagAI's names (the encoder under "model.", query, key and value in one matrix); the gradients have those
of Hugging Face, which are ours.  The reference runs in float64.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import goldens
import torch
from goldens import write_tensors
from safetensors.torch import save_file

CONFIG = dict(
    model_type="bert",
    vocab_size=53,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    hidden_act="gelu",
    initializer_range=0.02,
    max_position_embeddings=17,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def our_names(name, tensor):
    """A tensor of FlagAI's under Hugging Face's names: query, key and value are the thirds of one."""
    name = "bert." + name.removeprefix("model.") if name.startswith("model.") else name
    if "query_key_value" not in name:
        return {name: tensor}
    parts = tensor.chunk(3, dim=0)
    return {name.replace("query_key_value", part): t for part, t in zip(("query", "key", "value"), parts, strict=True)}


def random_weights(model, seed):
    goldens.random_weights(model, seed)
    if hasattr(model, "crf_layer"):
        generator = torch.Generator().manual_seed(seed + 1)
        model.crf_layer.trans.data.copy_(torch.randn(model.crf_layer.trans.shape, generator=generator))


def loss_of(name, model, inputs, result):
    """FlagAI's own loss; its CRF mixes float32 into everything, so there the same call gets float64."""
    if name != "BertForSequenceLabelingCRF":
        return model(**inputs)["loss"]
    labels = torch.nn.functional.one_hot(inputs["labels"], result["logits"].shape[-1]).double()
    mask = (inputs["input_ids"] > 0).double().unsqueeze(-1)
    return model.crf_layer.compute_loss(result["logits"], labels, mask).mean()


def case(out, flagai, name, head, inputs, seed, fused=True, **options):
    folder = out / "flagai_bert" / name
    folder.mkdir(parents=True)
    config = {**CONFIG, **options, "architectures": [head]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = getattr(flagai, head)({**config, "checkpoint_activations": False})
    random_weights(model, seed)
    weights = dict(model.state_dict())
    if not fused:
        weights = {n: t for name, tensor in weights.items() for n, t in our_names(name, tensor).items()}
    save_file({n: t.contiguous().clone() for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})

    model = model.double().eval()
    arguments = {n: t.double() if t.is_floating_point() else t.contiguous() for n, t in inputs.items()}
    result = model(**{n: t for n, t in arguments.items() if n != "labels"})
    outputs = {"logits": result["logits"]}
    if "labels" in inputs:
        loss = loss_of(head, model, arguments, result)
        loss.backward()
        outputs["loss"] = loss.reshape(1)
        gradients = {}
        for parameter, tensor in model.named_parameters():
            if tensor.grad is not None:  # a pooler that the head does not read: we do not have it
                gradients.update({f"grad.{n}": t for n, t in our_names(parameter, tensor.grad).items()})
        largest = max(t.abs().max() for t in gradients.values())
        outputs.update({n: t if t.abs().max() >= 1e-12 * largest else 0 * t for n, t in gradients.items()})
    write_tensors(folder / "in.safetensors", inputs)
    write_tensors(folder / "out.safetensors", outputs)


def tokens(seed, pads=(0, 3)):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 53, (len(pads), 9), generator=generator)
    for row, count in enumerate(pads):
        ids[row, 9 - count :] = 0
    return ids, generator


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--flagai", type=Path, required=True, help="the folder of FlagAI's source")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    options = parser.parse_args()
    sys.path.insert(0, str(options.flagai))
    import flagai.model.bert_model as flagai

    torch.set_num_threads(1)
    shutil.rmtree(options.out / "flagai_bert", ignore_errors=True)

    ids, generator = tokens(1)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0, 0]])
    source_and_target = {"input_ids": ids, "segment_ids": segments}
    case(options.out, flagai, "seq2seq", "BertForSeq2seq", {**source_and_target, "labels": ids[:, 1:]}, 1)
    ids, generator = tokens(2)
    labels = ids[:, 1:].clone()
    labels[0, 5] = 0  # inside the target: costs nothing and is counted
    case(
        options.out,
        flagai,
        "seq2seq_hole",
        "BertForSeq2seq",
        {"input_ids": ids, "segment_ids": segments, "labels": labels},
        2,
    )
    case(options.out, flagai, "masklm", "BertForMaskLM", {"input_ids": ids, "segment_ids": segments, "labels": ids}, 3)
    pooled = {"input_ids": ids, "segment_ids": segments, "labels": torch.tensor([2, 0])}
    case(options.out, flagai, "classifier", "BertForClsClassifier", pooled, 4, class_num=3)
    case(options.out, flagai, "epsilon", "BertForClsClassifier", pooled, 5, class_num=3, layernorm_epsilon=0.02)
    case(options.out, flagai, "hugging_face_names", "BertForClsClassifier", pooled, 6, fused=False, class_num=3)
    ids, generator = tokens(3, (0, 3, 7))
    labels = torch.randint(0, 5, ids.shape, generator=generator)
    tagged = {"input_ids": ids, "labels": labels}
    case(options.out, flagai, "tags", "BertForSequenceLabeling", tagged, 7, class_num=5)
    case(options.out, flagai, "crf", "BertForSequenceLabelingCRF", tagged, 8, class_num=5)
    spans = torch.zeros(3, 2, 9, 9)
    for row, kind, first, last in ((0, 0, 1, 3), (0, 0, 5, 5), (0, 1, 2, 8), (1, 1, 1, 4), (2, 0, 0, 1)):
        spans[row, kind, first, last] = 1
    case(
        options.out,
        flagai,
        "pointer",
        "BertForSequenceLabelingGP",
        {"input_ids": ids, "labels": spans},
        9,
        class_num=2,
        inner_dim=6,
    )
    whole = {"input_ids": ids, "labels": spans.long()}
    case(options.out, flagai, "pointer_wide", "BertForSequenceLabelingGP", whole, 10, class_num=2, inner_dim=10)
    case(
        options.out,
        flagai,
        "embedding",
        "BertForEmbedding",
        {"input_ids": ids, "segment_ids": torch.zeros_like(ids)},
        11,
    )
    files = [path for path in (options.out / "flagai_bert").rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    print(f"flagai_bert: {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
