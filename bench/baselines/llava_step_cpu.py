#!/usr/bin/env python3
"""The training step of bench/llava_step in PyTorch + transformers on the CPU.

Reads the JSON line that `llava_step --describe` prints (sizes and batch) on
standard input and prints one JSON line: milliseconds a step and tokens a
second, eager mode, AdamW, the median of many steps.
"""
import json
import os
import resource
import sys
import time

threads = os.environ.get("MIMO_THREADS")
if threads:
    os.environ["OMP_NUM_THREADS"] = threads

import torch
from transformers import (CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration)

spec = json.load(sys.stdin)
torch.manual_seed(0)
lm, vit = spec["language"], spec["vision"]
config = LlavaConfig(
    vision_config=CLIPVisionConfig(
        hidden_size=vit["hidden_size"],
        intermediate_size=vit["ffn_hidden_size"],
        num_hidden_layers=vit["num_layers"],
        num_attention_heads=vit["num_attention_heads"],
        image_size=vit["image_size"], patch_size=vit["patch_size"]),
    text_config=LlamaConfig(
        hidden_size=lm["hidden_size"], intermediate_size=lm["ffn_hidden_size"],
        num_hidden_layers=lm["num_layers"],
        num_attention_heads=lm["num_attention_heads"],
        num_key_value_heads=lm["num_attention_heads"],
        vocab_size=lm["vocab_size"],
        max_position_embeddings=lm["max_sequence_length"]),
    image_token_index=spec["image_token"],
    vision_feature_layer=vit["feature_layer"],
    vision_feature_select_strategy="default")
config._attn_implementation = "sdpa"
model = LlavaForConditionalGeneration(config)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

batch, seq = spec["batch"], spec["seq"]
patches = (vit["image_size"] // vit["patch_size"]) ** 2
ids = torch.randint(5, lm["vocab_size"], (batch, seq))
ids[ids == spec["image_token"]] = 5
ids[:, 1:1 + patches] = spec["image_token"]
labels = ids.clone()
labels[:, :seq - spec["labelled"]] = -100
pixels = torch.randn(batch, 3, vit["image_size"], vit["image_size"])


def step():
    loss = model(input_ids=ids, pixel_values=pixels, labels=labels,
                 use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


for _ in range(5):
    step()
times = []
end = time.perf_counter() + spec.get("seconds", 10)
while time.perf_counter() < end or len(times) < 5:
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
times.sort()
median = times[len(times) // 2]
print(json.dumps({
    "what": "pytorch", "torch": torch.__version__,
    "threads": torch.get_num_threads(), "ms": 1e3 * median,
    "tokens_per_second": batch * seq / median,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
