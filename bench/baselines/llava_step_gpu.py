#!/usr/bin/env python3
"""The training step of bench/llava_step in PyTorch + transformers on a GPU.

  llava_step_gpu.py [--compile whole|layers] [--steps N] [STEP | SPEC.json | -]

STEP is one of the two of docs/perf/log.md (7b_stage1, the default, and
7b_8layers_stage2); else the JSON that `llava_step --describe` prints is read
from a file or the first line of standard input. Weights are random and bf16,
drawn on the GPU; SDPA; fused AdamW on the bf16 weights (no fp32 master copies,
no clipping: less work than mimo does); labels on everything after the picture.
Prints one JSON line: the median of N steps after three, each waited for; with
-, one more such line for each further line of standard input.

torch.compile is given the whole model, which takes it minutes with 32 layers,
or layer by layer, which takes a minute.
"""
import argparse
import json
import sys
import time

import torch
import transformers
from transformers import (CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration)

STEPS = {
    "7b_stage1": {"layers": 32, "batch": 8, "seq": 704, "freeze_lm": True},
    "7b_8layers_stage2": {"layers": 8, "batch": 4, "seq": 2048,
                          "freeze_lm": False},
}


def spec_of(step):
    """What `llava_step --describe` says of that step."""
    return {
        "config": step,
        "language": {
            "num_layers": STEPS[step]["layers"], "hidden_size": 4096,
            "ffn_hidden_size": 11008, "num_attention_heads": 32,
            "num_query_groups": 32, "vocab_size": 32064,
            "max_sequence_length": 4096},
        "vision": {
            "num_layers": 24, "hidden_size": 1024, "ffn_hidden_size": 4096,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "feature_layer": -2},
        "freeze_language_model": STEPS[step]["freeze_lm"],
        "freeze_vision": True,
        "image_token": 32000,
        "batch": STEPS[step]["batch"],
        "seq": STEPS[step]["seq"],
        "labelled": STEPS[step]["seq"] - 577,
    }


def build(spec):
    """The model, in training mode, with what the spec freezes frozen."""
    lm, vit = spec["language"], spec["vision"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vit["hidden_size"],
            intermediate_size=vit["ffn_hidden_size"],
            num_hidden_layers=vit["num_layers"],
            num_attention_heads=vit["num_attention_heads"],
            image_size=vit["image_size"], patch_size=vit["patch_size"]),
        text_config=LlamaConfig(
            hidden_size=lm["hidden_size"],
            intermediate_size=lm["ffn_hidden_size"],
            num_hidden_layers=lm["num_layers"],
            num_attention_heads=lm["num_attention_heads"],
            num_key_value_heads=lm["num_query_groups"],
            vocab_size=lm["vocab_size"],
            max_position_embeddings=lm["max_sequence_length"]),
        image_token_index=spec["image_token"],
        vision_feature_layer=vit["feature_layer"])
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model = model.to("cuda", torch.bfloat16)
    model.train()
    model.config.use_cache = False
    for name, p in model.named_parameters():
        if "vision_tower" in name:
            p.requires_grad_(not spec["freeze_vision"])
        elif "projector" not in name:
            p.requires_grad_(not spec["freeze_language_model"])
    return model


def vision_layers(model):
    """The ViT's layers, wherever this version of transformers keeps them."""
    return [m for m in model.modules()
            if type(m).__name__ == "CLIPEncoderLayer"]


def random_batch(spec):
    vit, image = spec["vision"], spec["image_token"]
    batch, seq = spec["batch"], spec["seq"]
    tokens = (vit["image_size"] // vit["patch_size"]) ** 2
    ids = torch.randint(3, image, (batch, seq), device="cuda")
    ids[:, 1:1 + tokens] = image
    labels = ids.clone()
    labels[:, :seq - spec["labelled"]] = -100
    pixels = torch.randn(batch, 3, vit["image_size"], vit["image_size"],
                         device="cuda", dtype=torch.bfloat16)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", default="7b_stage1")
    parser.add_argument("--compile", choices=["whole", "layers"])
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("llava_step_gpu.py: no GPU, wanted one that PyTorch can use")
    if args.step in STEPS:
        spec = spec_of(args.step)
    elif args.step == "-":
        spec = json.loads(sys.stdin.readline())
    else:
        with open(args.step) as file:
            spec = json.load(file)
    start = time.perf_counter()
    torch.manual_seed(0)
    model = build(spec)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    batch = random_batch(spec)
    forward = torch.compile(model) if args.compile == "whole" else model
    if args.compile == "layers":
        for layer in (*model.model.language_model.layers,
                      *vision_layers(model)):
            layer.compile()

    def step():
        forward(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    def seconds():
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    step()
    first = time.perf_counter() - start
    while True:
        seconds(), seconds()
        times = sorted(seconds() for _ in range(args.steps))
        ms = 1e3 * times[len(times) // 2]
        torch.cuda.empty_cache()  # the other side's turn
        print(json.dumps({
            "what": "pytorch", "config": spec["config"],
            "mode": {None: "eager", "whole": "compile",
                     "layers": "compile layers"}[args.compile],
            "device": torch.cuda.get_device_name(), "torch": torch.__version__,
            "transformers": transformers.__version__,
            "batch": spec["batch"], "seq": spec["seq"], "ms": round(ms, 2),
            "fastest_ms": round(1e3 * times[0], 2),
            "tokens_per_second": round(
                spec["batch"] * spec["seq"] / ms * 1e3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "first_step_s": round(first, 1)}), flush=True)
        if args.step != "-" or not sys.stdin.readline():
            break


if __name__ == "__main__":
    main()
