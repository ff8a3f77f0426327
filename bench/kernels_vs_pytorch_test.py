#!/usr/bin/env python3
"""Runs kernels_vs_pytorch with stand-ins for both sides. Its arguments are benches
of this build."""

import json
import os
import re
import sys
import unittest

from in_turn_testing import InTurnTest

# Times all its cases that the filter finds, the n-th run of it n us slower.
STAND_IN = """#!/usr/bin/env python3
import json, os, re, sys
cases = {cases}
filter = next(w for w in sys.argv if "filter" in w).split("=", 1)[1]
with open(__file__ + ".runs", "a+") as file:
    file.write("x")
    us = file.tell() - 1
found = [c for c in cases if re.search(filter, c + "/manual_time")]
if found:
    print(json.dumps({{"benchmarks": [
        {{"name": c + "/manual_time", **{extra},
          "median": (cases[c] + us) * 1e-6}} for c in found]}}))
else:
    print("Failed to match any benchmarks", file=sys.stderr)
"""
PYTORCH = """#!/usr/bin/env python3
import json, sys
assert sys.argv[1:] == ["bench/baselines/kernels_gpu.py", "-", "{part}"]
say = lambda **figure: print(json.dumps(figure), flush=True)
say(what="device", name="GPU X", torch="2")
for line in sys.stdin:
    for name, how, ms in {figures}:
        say(what="", name=name, how=how, ms=ms)
    say(what="attention", name="none", how="flash", error="not offered")
    say(what="end")
"""
# Lists a real bench's cases.
LISTS = """#!/usr/bin/env python3
import json, subprocess, sys
filter = next(w for w in sys.argv if "filter" in w)
names = subprocess.check_output(
    ["{program}", "--benchmark_list_tests", filter], text=True).split()
print(json.dumps({{"benchmarks": [
    {{"name": name, "median": 1e-6}} for name in names]}}))
"""
WORK = {"rms_norm_bench": ("RMSNorm", "pointwise"),
        "silu_gate_bench": ("SiLU", "pointwise"),
        "loss_bench": ("cross-entropy", "pointwise"),
        "attention_cuda_bench": ("attention", "attention"),
        "gemm_bench": ("GEMM", "gemm")}
RMS_NORM = {"ForwardCuda/8192/4096/0": 40, "BackwardCuda/8192/4096/0": 60,
            "ForwardCuda/8192/4096/1": 999, "Forward/64/256/0": 999}


class KernelsVsPyTorchTest(InTurnTest):
    SCRIPT = "kernels_vs_pytorch"

    def bench(self, path, cases, **extra):
        self.stand_in(path, STAND_IN.format(cases=cases, extra=extra))

    def run_it(self, only, part, figures, code=0, rounds=3):
        return self.run_script(["--rounds", str(rounds), "--only", only],
                               PYTORCH.format(part=part, figures=figures), code)

    def test_medians_of_rounds(self):
        self.bench("kernels/norm/rms_norm_bench", RMS_NORM)
        out = self.run_it("RMSNorm", "pointwise", [
            ("rms_norm", "eager", 0.4), ("rms_norm", "compile", 0.204),
            ("silu_gate", "compile", 0.001)])
        # Forward and backward, each 1 us slower in the second of three rounds.
        self.assertIn("| RMSNorm 8192 x 4096, both ways | eager 400.0, compile "
                      "204.0 | 102.0 | 2.00 | <= 160 us |\n", out)
        self.assertRegex(out, r"`bench/kernels_vs_pytorch --rounds 3 --only "
                         r"RMSNorm`, [-\d]+, commit abc, GPU X, PyTorch 2;")
        rounds = [json.loads(line) for line in out.splitlines()
                  if '"what": "mimo"' in line]
        self.assertEqual([r["rms_norm mimo"] for r in rounds], [100, 102, 104])

    def test_attention_is_beside_cudnn_in_order_too(self):
        name = "b4_h32_s2048_d128"
        self.bench("kernels/attention/attention_cuda_bench", {
            f"Cuda/{name}/forward/sm90": 100,
            f"Cuda/{name}/forward/cudnn": 50,
            f"Cuda/{name}/backward/sm90": 200,
            f"Cuda/{name}/backward/cudnn": 210,
            f"Cuda/{name}/backward/cudnn_unordered": 50})
        out = self.run_it(name, "attention", [
            (name + "/forward", "cuDNN", 0.11),
            (name + "/backward", "cuDNN", 0.24)], rounds=1)
        self.assertIn("| cuDNN 110.0 | 100.0 | 1.10 |", out)
        self.assertIn("| cuDNN 240.0, cuDNN itself in order 210.0 | 200.0 "
                      "| 1.05 |", out)

    def test_a_products_ratio_is_of_pairs(self):
        self.bench("kernels/gemm/gemm_bench", {"Cuda/out/dx": 100},
                   beside=112e-6)
        out = self.run_it("out dx", "gemm", [("out/dx", "PyTorch", 0.09)])
        self.assertIn("| GEMM out dx | PyTorch 90.0, cuBLAS itself in pairs "
                      "112.0 | 101.0 | 1.11 | >= 1.0 |", out)

    def test_what_is_not_measured_fails(self):
        path = "kernels/norm/rms_norm_bench"
        figures = [("rms_norm", "eager", 0.4)]

        def fails(figures, message):
            self.assertIn(message, self.run_it("RMSNorm", "pointwise", figures,
                                               code=1, rounds=1))

        self.bench(path, RMS_NORM)
        fails([], "RMSNorm 8192 x 4096, both ways: PyTorch has no figure")
        self.bench(path, {"ForwardCuda/8192/4096/0": 40})
        fails(figures, f"{path}: has no case BackwardCuda/8192/4096/0")
        self.bench(path, {})
        fails(figures, f"{path}: has no case ForwardCuda/8192/4096/0")
        self.stand_in(path, "#!/bin/sh\nexit 3\n")
        fails(figures, f"{path}: exit code 3")
        fails("1 / 0", "kernels_gpu.py: its process ended")

    def test_the_benches_have_the_cases(self):
        for program in sys.argv[1:]:
            path = re.search("kernels/.*", program)[0]
            self.stand_in(path, LISTS.format(program=os.path.abspath(program)))
            only, part = WORK[os.path.basename(path)]
            # Which is only found out once mimo has had its turn.
            self.assertIn("PyTorch has no figure", self.run_it(
                only, part, [], code=1, rounds=1))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
