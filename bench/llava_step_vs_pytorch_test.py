#!/usr/bin/env python3
"""Runs llava_step_vs_pytorch with stand-ins for both sides."""

import unittest

from in_turn_testing import InTurnTest

# 100 ms, or 80 with a flag x=1; the n-th run takes n more.
LLAVA_STEP = """#!/usr/bin/env python3
import json, sys
if "--describe" in sys.argv:
    print("the step")
else:
    with open(__file__ + ".runs", "a+") as file:
        file.write("x")
        ms = file.tell() + (80 if "x=1" in sys.argv else 100)
    print(json.dumps({"device": "GPU X", "ms": ms, "peak_gib": 15,
                      "tokens_per_second": 1e5 / ms}))
"""
PYTORCH = """#!/usr/bin/env python3
import json, sys
ms = 150 if "--compile" in sys.argv else 200
for line in sys.stdin:
    assert line == "the step\\n"
    print(json.dumps({"torch": "2", "ms": ms, "peak_gib": 20,
                      "tokens_per_second": 1e5 / ms}), flush=True)
"""


class LlavaStepVsPyTorchTest(InTurnTest):
    SCRIPT = "llava_step_vs_pytorch"

    def run_it(self, *words, code=0):
        self.stand_in("bench/llava_step", LLAVA_STEP)
        return self.run_script(["--device", "cuda", "--config",
                                "some/step.yaml", *words], PYTORCH, code)

    def test_each_run_of_mimo_has_its_row(self):
        # In three rounds mimo's first run takes 101, 103, 105 ms, the other
        # 82, 84, 86.
        out = self.run_it("--only", "compile", "--also", "x=1", "y=2")
        self.assertIn("commit abc, GPU X, PyTorch 2;", out)
        self.assertIn(
            "| step y=2 | torch.compile | 150.0 [150.0, 150.0] "
            "| 103.0 [101.0, 105.0] | 667 / 971 | **1.46** | 20.00 / 15.00 "
            "| 0.75 |\n| step y=2 x=1 | torch.compile | 150.0 [150.0, 150.0] "
            "| 84.0 [82.0, 86.0] | 667 / 1,190 | **1.79** |", out)
        self.assertNotIn("eager", out)

    def test_both_modes(self):
        out = self.run_it("--rounds", "1")
        self.assertIn("| step | PyTorch eager | 200.0 [200.0, 200.0] | 101.0 ",
                      out)
        self.assertIn("| step | torch.compile | 150.0 [150.0, 150.0] | 102.0 ",
                      out)
        self.assertIn("wanted part of PyTorch eager or torch.compile",
                      self.run_it("--only", "jit", code=1))


if __name__ == "__main__":
    unittest.main()
