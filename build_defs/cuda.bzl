"""cuda_library: like cc_library, with .cu sources compiled by nvcc.

It takes and gives CcInfo, so cc_* and cuda_library targets may depend on each
other in any order. Every .cu is one action; its object is position
independent and serves static and PIC links alike. Device code is linked whole
program (no -rdc): a __device__ function called from another .cu belongs in a
header.

A target that can only be built with CUDA (a cuda_library by itself, else a
cc_* one that says target_compatible_with = REQUIRES_CUDA) is skipped by
`//...` where there is no toolkit, with all that depends on it.
"""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@local_cuda//:config.bzl", "CUDA")
load(":flags.bzl", "FlagInfo")

# `env` of a test of the whole command on the CPU: its runs would take the GPU of
# a machine that has one.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

REQUIRES_CUDA = select({
    "@local_cuda//:available": [],
    "//conditions:default": ["@mimo//build_defs:incompatible"],
})

_MODE_FLAGS = {
    "dbg": ["-O0", "-g", "-lineinfo"],
    "fastbuild": ["-O1"],
    "opt": ["-O3", "-DNDEBUG"],
}

def _gencode(arch):
    """The nvcc flag for "90a" (machine code) or "90+ptx" (and PTX)."""
    number = arch.replace("+ptx", "")
    code = "sm_" + number
    if arch.endswith("+ptx"):
        code = "[%s,compute_%s]" % (code, number)
    return "-gencode=arch=compute_%s,code=%s" % (number, code)

def _compilation_context(ctx, deps):
    """What users of this library see: its headers and those of its deps."""
    root = ctx.label.workspace_root
    here = "/".join([p for p in [root, ctx.label.package] if p])
    own = cc_common.create_compilation_context(
        headers = depset(ctx.files.hdrs),
        includes = depset([here + "/" + i for i in ctx.attr.includes]),
        quote_includes = depset([
            root or ".",
            ctx.bin_dir.path + ("/" + root if root else ""),
        ]),
        defines = depset(ctx.attr.defines),
    )
    infos = [CcInfo(compilation_context = own)] + deps
    return cc_common.merge_cc_infos(cc_infos = infos).compilation_context

def _compile(ctx, toolchain, context):
    """One nvcc action a .cu; returns the objects."""
    args = ctx.actions.args()
    args.add_all(["-c", "-x", "cu", "-ccbin", toolchain.compiler_executable])

    # The C++ standard of the .cc files, so that the two cannot differ.
    std = [o for o in ctx.fragments.cpp.cxxopts if o.startswith("-std=")]
    args.add_all(std[-1:])
    args.add_all(["--expt-relaxed-constexpr", "--expt-extended-lambda"])
    args.add_all([_gencode(a) for a in ctx.attr._archs[FlagInfo].value])
    args.add_all(_MODE_FLAGS[ctx.var["COMPILATION_MODE"]])
    args.add("--compress-mode=size")
    args.add("-Xcompiler=-fPIC,-Wall,-Wno-unused-function,-fopenmp-simd")

    # nvcc's parser: does not know that LOG(FATAL) ends a function; dislikes a
    # friend declaration of abseil's.
    args.add("-diag-suppress=940,970")
    args.add_all(context.defines, format_each = "-D%s")
    args.add_all(context.quote_includes, before_each = "-I")
    args.add_all(context.includes, before_each = "-I")
    args.add_all(context.system_includes, before_each = "-isystem")
    args.add_all(ctx.attr._nvcc_copts[FlagInfo].value)
    args.add_all(ctx.attr.copts)

    private_headers = [f for f in ctx.files.srcs if f.extension != "cu"]
    inputs = depset(
        private_headers,
        transitive = [context.headers, toolchain.all_files],
    )
    objects = []
    for src in ctx.files.srcs:
        if src.extension != "cu":
            continue
        stem = src.basename[:-len(".cu")]
        obj = ctx.actions.declare_file("_objs/%s/%s.o" % (ctx.label.name, stem))
        objects.append(obj)

        # The seed and -objtemp make the object a function of its inputs;
        # without them nvcc puts its process id and the sandbox's path in it.
        one = ctx.actions.args()
        one.add("-frandom-seed=" + src.short_path)
        one.add("-objtemp")
        one.add("-o", obj)
        one.add(src)
        ctx.actions.run(
            executable = CUDA.nvcc,
            arguments = [args, one],
            inputs = depset([src], transitive = [inputs]),
            outputs = [obj],
            # nvcc is outside the tree: its version stands for it in the key.
            env = {"PATH": "/usr/bin:/bin", "MIMO_NVCC": CUDA.version},
            mnemonic = "CudaCompile",
            progress_message = "Compiling %s with nvcc" % src.short_path,
        )
    return objects

def _cuda_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    deps = [d[CcInfo] for d in ctx.attr.deps]
    context = _compilation_context(ctx, deps)
    objects = _compile(ctx, toolchain, context)
    files = depset(objects)
    linking = deps
    if objects:
        link_context, linked = cc_common.create_linking_context_from_compilation_outputs(
            actions = ctx.actions,
            name = ctx.label.name,
            feature_configuration = features,
            cc_toolchain = toolchain,
            compilation_outputs = cc_common.create_compilation_outputs(
                objects = files,
                pic_objects = files,
            ),
            linking_contexts = [d.linking_context for d in deps],
            user_link_flags = ctx.attr.linkopts,
            alwayslink = ctx.attr.alwayslink,
            # Never a shared library with a static CUDA run time of its own.
            disallow_dynamic_library = True,
        )
        linking = [CcInfo(linking_context = link_context)]
        library = linked.library_to_link
        files = depset([
            f
            for f in [library.static_library, library.pic_static_library]
            if f
        ])
    return [
        DefaultInfo(files = files),
        cc_common.merge_cc_infos(
            cc_infos = [CcInfo(compilation_context = context)] + linking,
        ),
        coverage_common.instrumented_files_info(
            ctx,
            source_attributes = ["srcs", "hdrs"],
            dependency_attributes = ["deps"],
        ),
    ]

_HEADERS = [".cuh", ".h", ".inc"]

_cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"] + _HEADERS),
        "hdrs": attr.label_list(allow_files = _HEADERS),
        "deps": attr.label_list(providers = [CcInfo]),
        "includes": attr.string_list(),
        "defines": attr.string_list(),
        "copts": attr.string_list(),
        "linkopts": attr.string_list(),
        "alwayslink": attr.bool(),
        "_archs": attr.label(default = "//build_defs:cuda_archs"),
        "_nvcc_copts": attr.label(default = "//build_defs:nvcc_copts"),
        "_cc_toolchain": attr.label(
            default = "@bazel_tools//tools/cpp:current_cc_toolchain",
        ),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
    provides = [CcInfo],
)

def cuda_library(name, deps = [], **kwargs):
    """A library of .cu sources; the attributes are cc_library's.

    Args:
      name: as always.
      deps: cc_library and cuda_library targets; the CUDA run time is added.
      **kwargs: as in the rule.
    """
    kwargs.setdefault("target_compatible_with", REQUIRES_CUDA)
    _cuda_library(
        name = name,
        deps = deps + ["@local_cuda//:cudart"],
        **kwargs
    )
