#!/usr/bin/env python3
"""Makes the golden values for low precision: quantized blocks by llama.cpp's own Python package, and training in bf16 by torch.

    pip install torch transformers safetensors numpy gguf
    python3 tools/goldens_low_precision.py [--out tests/goldens]

quantized.safetensors     rows [6,96] F32, and for q8_0 and q4_0: NAME.blocks U8, what gguf makes of them, and NAME.values F32,
                          what gguf reads from those blocks.  (q4_0's scales are a matter of taste: only reading is compared.)
bf16_linear.safetensors   x [2,5,33], weight [21,33], dy [2,5,21], and what torch.autocast(bfloat16) makes of them: y, dx, dweight
train/bf16.json           {"config", "losses", "f32_losses"}: train/model trained under torch.autocast(bfloat16), and without
"""
import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

import goldens


def make_blocks(out):
    random = np.random.default_rng(7)
    rows = random.standard_normal((6, 96)).astype(np.float32)
    rows[1] *= 1e-3
    rows[2] = np.where(random.random(96) < 0.5, -1, 1)       # every value at an end of the scale
    rows[3, :32] = 0
    rows[4] = np.round(rows[4] * 40) / 80                    # many halves to round
    rows[5, ::7] *= 50
    tensors = {"rows": rows}
    for name, kind in (("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)):
        blocks = gguf.quants.quantize(rows, kind)
        tensors[name + ".blocks"] = np.ascontiguousarray(blocks, dtype=np.uint8)
        tensors[name + ".values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    save_file(tensors, out / "quantized.safetensors")


def make_linear(out):
    draw = torch.Generator().manual_seed(11)
    x, weight, dy = (torch.randn(shape, generator=draw) for shape in ((2, 5, 33), (21, 33), (2, 5, 21)))
    x.requires_grad_(True)
    weight.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.nn.functional.linear(x, weight)
    assert y.dtype == torch.bfloat16
    (y.float() * dy).sum().backward()
    tensors = {"x": x, "weight": weight, "dy": dy, "y": y.float(), "dx": x.grad, "dweight": weight.grad}
    save_file({name: t.detach().numpy() for name, t in tensors.items()}, out / "bf16_linear.safetensors")


def make_training(out):
    folder = out / "train"
    config = {
        "model": "model", "train_file": "even.safetensors", "max_steps": 40, "shuffle": False, "logging_steps": 1, "seed": 1, "bf16": True,
        "optim": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1, "per_device_train_batch_size": 2, "lr_scheduler_type": "linear", "warmup_steps": 5,
        "max_grad_norm": 1.0,
    }
    data = load_file(folder / "even.safetensors")
    plain = goldens.train(goldens.open_model(folder / "model"), data, config)[0]
    model = goldens.open_model(folder / "model")
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # anew each step: within one, cast weights are kept
    rounded = goldens.train(model, data, config)[0]
    (folder / "bf16.json").write_text(json.dumps({"config": config, "losses": rounded, "f32_losses": plain}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "goldens")
    place = parser.parse_args().out
    torch.set_num_threads(1)
    make_blocks(place)
    make_linear(place)
    make_training(place)
