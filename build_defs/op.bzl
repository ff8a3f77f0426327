"""op_library: an op's two sides, and what is added where CUDA is found."""

load(":cuda.bzl", "cuda_library")

def if_cuda(values, otherwise = []):
    """`values` in a build with CUDA."""
    return select({
        "@local_cuda//:available": values,
        "//conditions:default": otherwise,
    })

def op_library(
        name,
        hdrs,
        srcs,
        cuda_srcs,
        deps = [],
        cuda_deps = [],
        **kwargs):
    """The op `name`: a cc_library and, with CUDA, its .cu half.

    Args:
      name: as always.
      hdrs: op.h, which both sides include.
      srcs: op_cpu.cc.
      cuda_srcs: op.cu, and private headers.
      deps: of both sides.
      cuda_deps: of the .cu alone.
      **kwargs: as in cc_library.
    """
    base = [
        "//kernels/base:dtype",
        "//kernels/base:op",
        "//kernels/base:stream",
    ]
    cuda_library(
        name = name + "_cuda",
        srcs = cuda_srcs + hdrs,
        deps = base + deps + cuda_deps + ["//kernels/base:cuda"],
    )
    native.cc_library(
        name = name,
        srcs = srcs,
        hdrs = hdrs,
        deps = base + deps + if_cuda([":" + name + "_cuda"]),
        **kwargs
    )
