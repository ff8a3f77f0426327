#!/usr/bin/env python3
"""PyTorch's ops on a GPU, one JSON line a figure, for the ops of kernels/.

  kernels_gpu.py [floors] [gemm] [attention] [pointwise]    (all by default)

  floors     device copy, and the rate of an 8192^3 bf16 product
  gemm       the products of the two steps of docs/perf/log.md
  attention  SDPA of cuDNN and of FlashAttention
  pointwise  RMS norm, SiLU-gate, cross-entropy: eager and torch.compile,
             forward and backward together

bf16, random data. Each figure is the median of many runs by CUDA events, the
L2 cache overwritten before each. FLOPs of attention: 4 B N S^2 D forward, half
of it where causal; 2.5 times that backward.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16 = torch.bfloat16


def say(**figures):
    for key, value in figures.items():
        if isinstance(value, float):
            figures[key] = round(value, 4)
    print(json.dumps(figures), flush=True)


def median_ms(run, runs=20):
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    pairs = []
    for _ in range(runs):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return sorted(b.elapsed_time(e) for b, e in pairs)[runs // 2]


def randn(*shape, grad=False):
    return torch.randn(*shape, device="cuda", dtype=BF16, requires_grad=grad)


def gemm_figure(what, m, n, k):
    a, b = randn(m, k), randn(n, k)
    ms = median_ms(lambda: F.linear(a, b))
    say(what=what, m=m, n=n, k=k, ms=ms, tflops=2 * m * n * k / ms / 1e9)


def floors():
    x = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x))
    say(what="copy", tb_per_s=2 * x.numel() / ms / 1e9)
    gemm_figure("gemm_floor", 8192, 8192, 8192)


def gemm():
    # Tokens of stage 1 and 2, then of the ViT; weights of a layer and the head.
    for m, shapes in {
        8192: [(12288, 4096), (4096, 4096), (22016, 4096), (11008, 4096),
               (4096, 11008), (32064, 4096)],
        5632: [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
        4616: [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)],
        18464: [(4096, 1024), (1024, 4096)],
    }.items():
        for n, k in shapes:
            gemm_figure("gemm", m, n, k)


def attention():
    for name, b, n, g, s, d, causal in [
        ("llama", 4, 32, 32, 2048, 128, True),
        ("llama", 2, 32, 32, 4096, 128, True),
        ("llama", 1, 32, 32, 16384, 128, True),
        ("llama_stage1", 8, 32, 32, 704, 128, True),
        ("grouped", 2, 32, 8, 4096, 128, True),
        ("clip", 32, 16, 16, 577, 64, False),
        ("clip_stage1", 8, 16, 16, 577, 64, False),
    ]:
        q = randn(b, n, s, d, grad=True)
        k, v = (randn(b, g, s, d, grad=True) for _ in range(2))
        do = randn(b, n, s, d)
        flop = 4 * b * n * s * s * d * (0.5 if causal else 1)
        for backend in (SDPBackend.CUDNN_ATTENTION,
                        SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                def forward():
                    return F.scaled_dot_product_attention(
                        q, k, v, is_causal=causal, enable_gqa=n != g)
                try:
                    out = forward()
                    fwd = median_ms(forward, 10)
                    bwd = median_ms(lambda: torch.autograd.grad(
                        out, (q, k, v), do, retain_graph=True), 10)
                except RuntimeError as error:
                    say(what="attention", name=name, backend=backend.name,
                        error=str(error).splitlines()[0][:120])
                    continue
            say(what="attention", name=name, backend=backend.name, b=b, n=n,
                g=g, s=s, d=d, causal=causal, forward_ms=fwd, backward_ms=bwd,
                forward_tflops=flop / fwd / 1e9,
                backward_tflops=2.5 * flop / bwd / 1e9)


def rms_norm(x, weight):
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5)
    return (x32 * scale).to(x.dtype) * weight


def silu_gate(gate, up):
    return F.silu(gate) * up


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.float(), labels)


def pointwise():
    tokens, hidden, ffn, vocab = 8192, 4096, 11008, 32064
    labels = torch.randint(vocab, (tokens,), device="cuda")
    cases = [
        (rms_norm, [randn(tokens, hidden, grad=True),
                    randn(hidden, grad=True)], []),
        (silu_gate, [randn(tokens, ffn, grad=True) for _ in range(2)], []),
        (cross_entropy, [randn(tokens, vocab, grad=True)], [labels]),
    ]
    for function, inputs, constants in cases:
        seed = torch.randn_like(function(*inputs, *constants))
        for mode, f in (("eager", function),
                        ("compile", torch.compile(function))):
            ms = median_ms(lambda: torch.autograd.grad(
                f(*inputs, *constants), inputs, seed))
            say(what="pointwise", op=function.__name__, mode=mode, ms=ms)


def main(parts):
    known = {f.__name__: f for f in (floors, gemm, attention, pointwise)}
    if unknown := [p for p in parts if p not in known]:
        sys.exit(f"kernels_gpu.py: {unknown[0]}, wanted one of "
                 + ", ".join(known))
    if not torch.cuda.is_available():
        sys.exit("kernels_gpu.py: no GPU, wanted one that PyTorch can use")
    say(what="device", name=torch.cuda.get_device_name(),
        torch=torch.__version__)
    for part in parts or known:
        known[part]()


if __name__ == "__main__":
    main(sys.argv[1:])
