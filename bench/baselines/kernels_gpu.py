#!/usr/bin/env python3
"""PyTorch's ops on a GPU, one JSON line a figure, for the ops of kernels/.

  kernels_gpu.py [-] [floors] [gemm] [attention] [pointwise]  (all by default)

  floors     device copy, and the rate of an 8192^3 bf16 product
  gemm       the products of gemm_bench: forward and both gradients, the
             weight's in float32 and in bf16
  attention  SDPA of cuDNN and of FlashAttention, at the shapes of
             attention_cuda_bench; also in a fixed order, where it is offered
  pointwise  RMS norm, SiLU-gate, cross-entropy: eager and torch.compile,
             forward and backward together

With -, waits for a line of standard input before each round of all figures and
ends a round with {"what": "end"}.

bf16, random data, all as kernels/testing/cuda_bench.h has it: a figure is the
median by CUDA events of a fifth of a second, after as long to warm up, the L2
cache overwritten before each run. FLOPs of attention: 4 B N S^2 D forward, half
of it where causal; 2.5 times that backward.
"""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16 = torch.bfloat16
SECONDS = 0.2
# Those of gemm_bench: tokens T, features F, hidden H.
LAYERS = {
    "square": (8192, 8192, 8192), "up": (8192, 11008, 4096),
    "gate_up": (8192, 22016, 4096), "down": (8192, 4096, 11008),
    "qkv": (8192, 12288, 4096), "out": (8192, 4096, 4096),
    "head": (8192, 32064, 4096), "clip_fc1": (18464, 4096, 1024),
    "clip_fc2": (18464, 1024, 4096), "clip_qkv": (18464, 3072, 1024),
    "projector": (4608, 4096, 1024),
}
# Those of attention_cuda_bench: batch, heads, key heads, tokens, head size.
ATTENTION = {
    "b4_h32_s2048_d128": (4, 32, 32, 2048, 128),
    "b2_h32_s4096_d128": (2, 32, 32, 4096, 128),
    "b1_h32_s8192_d128": (1, 32, 32, 8192, 128),
    "b1_h32_s16384_d128": (1, 32, 32, 16384, 128),
    "b2_h32_kv8_s4096_d128": (2, 32, 8, 4096, 128),
    "b8_h32_s704_d128": (8, 32, 32, 704, 128),
    "b32_h16_s577_d64_full": (32, 16, 16, 577, 64),
}
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION}
# Its memory need not be filled to be in a fixed order.
torch.utils.deterministic.fill_uninitialized_memory = False


def say(**figures):
    for key, value in figures.items():
        if isinstance(value, float):
            figures[key] = round(value, 4)
    print(json.dumps(figures), flush=True)


def median_ms(run):
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def runs():
        times = []
        while sum(times) < 1e3 * SECONDS:
            flush.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return times

    runs()
    times = runs()
    return sorted(times)[len(times) // 2]


def draw(*shape, scale=1, grad=False):
    """Uniform on [-scale, scale), as CudaBench::Random."""
    values = torch.empty(*shape, device="cuda", dtype=BF16)
    return values.uniform_(-scale, scale).requires_grad_(grad)


def gemm_figure(what, name, run, m, n, k):
    ms = median_ms(run)
    say(what=what, name=name, how="PyTorch", m=m, n=n, k=k, ms=ms,
        tflops=2 * m * n * k / ms / 1e9)


def floors():
    x = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x))
    say(what="copy", tb_per_s=2 * x.numel() / ms / 1e9)
    a, b = draw(8192, 8192), draw(8192, 8192)
    gemm_figure("gemm_floor", "square/forward", lambda: F.linear(a, b),
                8192, 8192, 8192)


def gemm():
    for name, (tokens, features, hidden) in LAYERS.items():
        x, w = draw(tokens, hidden), draw(features, hidden)
        dy = draw(tokens, features)
        gemm_figure("gemm", f"{name}/forward", lambda: F.linear(x, w),
                    tokens, features, hidden)
        gemm_figure("gemm", f"{name}/dx", lambda: dy @ w,
                    tokens, hidden, features)
        gemm_figure("gemm", f"{name}/dw",
                    lambda: torch.mm(dy.t(), x, torch.float32),
                    features, hidden, tokens)
        gemm_figure("gemm", f"{name}/dw_bf16", lambda: dy.t() @ x,
                    features, hidden, tokens)


def attention_figures(name, shape, how, backend):
    batch, heads, groups, seq, size = shape
    causal = not name.endswith("full")
    q = draw(batch, heads, seq, size, grad=True)
    k, v = (draw(batch, groups, seq, size, grad=True) for _ in range(2))
    dout = draw(batch, heads, seq, size)
    flop = 4 * batch * heads * seq * seq * size * (0.5 if causal else 1)

    def forward():
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=heads != groups)

    def say_it(direction, run, flop):
        ms = median_ms(run)
        say(what="attention", name=f"{name}/{direction}", how=how, ms=ms,
            tflops=flop / ms / 1e9)

    with sdpa_kernel(backend):
        try:
            out = forward()
            if not torch.are_deterministic_algorithms_enabled():
                say_it("forward", forward, flop)
            say_it("backward", lambda: torch.autograd.grad(
                out, (q, k, v), dout, retain_graph=True), 2.5 * flop)
        except RuntimeError as error:
            say(what="attention", name=f"{name}/backward", how=how,
                error=str(error).splitlines()[0][:120])


def attention():
    for name, shape in ATTENTION.items():
        for how, backend in BACKENDS.items():
            attention_figures(name, shape, how, backend)
            torch.use_deterministic_algorithms(True)
            attention_figures(name, shape, how + " in order", backend)
            torch.use_deterministic_algorithms(False)


def rms_norm(x, weight):
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5)
    return (x32 * scale).to(x.dtype) * weight


def silu_gate(gate, up):
    return F.silu(gate) * up


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.float(), labels)


COMPILED = {f: torch.compile(f) for f in (rms_norm, silu_gate, cross_entropy)}


def pointwise():
    tokens, hidden, ffn, vocab = 8192, 4096, 11008, 32064
    labels = torch.randint(vocab, (tokens,), device="cuda")
    cases = [
        (rms_norm, [draw(tokens, hidden, grad=True),
                    draw(hidden, grad=True)], []),
        (silu_gate, [draw(tokens, ffn, grad=True) for _ in range(2)], []),
        (cross_entropy, [draw(tokens, vocab, scale=4, grad=True)], [labels]),
    ]
    for function, inputs, constants in cases:
        seed = torch.rand_like(function(*inputs, *constants))
        for how, f in (("eager", function), ("compile", COMPILED[function])):
            ms = median_ms(lambda: torch.autograd.grad(
                f(*inputs, *constants), inputs, seed))
            say(what="pointwise", name=function.__name__, how=how, ms=ms)


def main(words):
    known = {f.__name__: f for f in (floors, gemm, attention, pointwise)}
    turns = words[:1] == ["-"]
    parts = words[turns:]
    if unknown := [p for p in parts if p not in known]:
        sys.exit(f"kernels_gpu.py: {unknown[0]}, wanted one of "
                 + ", ".join(known))
    if not torch.cuda.is_available():
        sys.exit("kernels_gpu.py: no GPU, wanted one that PyTorch can use")
    say(what="device", name=torch.cuda.get_device_name(),
        torch=torch.__version__)
    while not turns or sys.stdin.readline():
        for part in parts or known:
            known[part]()
        if not turns:
            break
        torch.cuda.empty_cache()  # the other side's turn
        say(what="end")


if __name__ == "__main__":
    main(sys.argv[1:])
