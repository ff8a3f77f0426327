#!/usr/bin/env python3
"""The training step of llava_step_gpu.py under PyTorch's FSDP2, a process a GPU.

  llava_fsdp2.py [--ranks N] [--compile] [--steps N] < LINE

Standard input is what `llava_step --describe` prints: each rank has that batch.
Language layers are shards by themselves, all else is one more; with --compile
they are compiled one by one. Prints one JSON line: the median of N steps after
three. N ranks: all GPUs, if not said.
"""
import argparse
import json
import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from llava_step_gpu import build, random_batch, vision_layers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:  # starts the others
        line = sys.stdin.readline()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE=str(args.ranks), SPEC=line,
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for other in range(1, args.ranks):
            subprocess.Popen([sys.executable, *sys.argv],
                             env={**os.environ, "RANK": str(other)})
    spec = json.loads(os.environ["SPEC"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)

    start = time.perf_counter()
    torch.manual_seed(0)
    model = build(spec)
    layers = model.model.language_model.layers
    if args.compile:
        for layer in (*layers, *vision_layers(model)):
            layer.compile()
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5,
        fused=True)
    torch.manual_seed(rank)
    batch = random_batch(spec)

    def seconds():
        begin = time.perf_counter()
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = seconds() + time.perf_counter() - start
    seconds(), seconds()
    times = sorted(seconds() for _ in range(args.steps))
    ms = 1e3 * times[len(times) // 2]
    if rank == 0:
        print(json.dumps({
            "what": "fsdp2", "config": spec["config"],
            "layers": spec["language"]["num_layers"],
            "mode": "compile layers" if args.compile else "eager",
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__, "ranks": args.ranks,
            "batch": spec["batch"], "seq": spec["seq"],
            "ms": round(ms, 2), "tokens_per_second": round(
                args.ranks * spec["batch"] * spec["seq"] / ms * 1e3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "first_step_s": round(first, 1)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
