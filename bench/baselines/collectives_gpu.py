#!/usr/bin/env python3
"""torch.distributed's collectives on this machine's GPUs, a process each, in
bfloat16: a Markdown table of time and bus bandwidth, as bench/collectives
prints (docs/perf/collectives.md says what the columns mean).

  collectives_gpu.py [most bytes, 1073741824 by default]

Medians of rounds, by CUDA events on rank 0.
"""
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = [1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20,
         1 << 30]
ROUNDS = 5


def operations(rank, ranks, send, recv):
    """Name -> (factor of the bus bandwidth, call)."""
    part = send.numel() // ranks

    def send_recv():
        if rank % 2:
            dist.recv(recv, rank - 1)
        elif rank + 1 < ranks:
            dist.send(send, rank + 1)

    def exchange():
        for request in dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, send, (rank + 1) % ranks),
                 dist.P2POp(dist.irecv, recv, (rank - 1) % ranks)]):
            request.wait()

    share = (ranks - 1) / ranks
    return {
        "all_reduce": (2 * share, lambda: dist.all_reduce(recv)),
        "all_gather": (share, lambda: dist.all_gather_into_tensor(
            recv[:part * ranks], send[:part])),
        "reduce_scatter": (share, lambda: dist.reduce_scatter_tensor(
            recv[:part], send[:part * ranks])),
        "broadcast": (1, lambda: dist.broadcast(recv, 0)),
        "all_to_all": (share, lambda: dist.all_to_all_single(recv, send)),
        "send_recv": (1, send_recv),
        "exchange": (1, exchange),
    }


def seconds(call, calls):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    dist.barrier()
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls / 1e3


def run(rank, ranks, file, most):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{file}", rank=rank,
                            world_size=ranks)
    if rank == 0:
        print(f"torch {torch.__version__}, {ranks} x "
              f"{torch.cuda.get_device_name()}, NCCL "
              f"{'.'.join(map(str, torch.cuda.nccl.version()))}, bfloat16\n")
        print("| operation | bytes | us | bus GB/s |\n|---|---|---|---|")
    for size in filter(lambda s: s <= most, SIZES):
        send, recv = (torch.rand(size // 2, dtype=torch.bfloat16,
                                 device="cuda") for _ in range(2))
        calls = 100 if size < 16 << 20 else 10 if size < 256 << 20 else 3
        for name, (factor, call) in operations(rank, ranks, send,
                                               recv).items():
            seconds(call, 2)
            median = sorted(seconds(call, calls)
                            for _ in range(ROUNDS))[ROUNDS // 2]
            if rank == 0:
                print(f"| {name} | {size} | {median * 1e6:.1f} | "
                      f"{factor * size / median / 1e9:.2f} |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    bytes_wanted = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    gpus = torch.cuda.device_count()
    if gpus < 2:
        sys.exit(print(f"nothing to measure: found {gpus} GPUs, wanted 2 or "
                       "more"))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (gpus, os.path.join(folder, "store"), bytes_wanted),
                 nprocs=gpus)
