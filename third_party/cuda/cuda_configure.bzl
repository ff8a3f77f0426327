"""cuda_configure: finds the CUDA toolkit, cuDNN and NCCL of this machine.

Looked at, in this order: $CUDA_HOME, $CUDA_PATH, /usr/local/cuda, and the
folder `nvidia` of pip's packages ($MIMO_PIP_NVIDIA, else asked of python3).
MIMO_CUDA=auto (the default) takes what is there, 1 insists, 0 is CPU only.

The repository has :available (a config_setting), :enabled (a flag, so that
--@local_cuda//:enabled=false builds for the CPU), and the libraries :headers,
:cudart, :cublas, :cudnn and :nccl.
"""

_ENVIRON = ["MIMO_CUDA", "CUDA_HOME", "CUDA_PATH", "MIMO_PIP_NVIDIA", "PATH"]

_OLDEST = 13

def _first(rctx, dirs, name):
    """The first of dirs that holds name, or None."""
    for d in dirs:
        if rctx.path(d + "/" + name).exists:
            return d
    return None

def _pip_nvidia(rctx):
    """The folder of pip's NVIDIA packages, or None."""
    named = rctx.os.environ.get("MIMO_PIP_NVIDIA", "")
    if named:
        return named
    python = rctx.which("python3")
    if not python:
        return None
    code = "import nvidia; print(list(nvidia.__path__)[0])"
    asked = rctx.execute([python, "-c", code])
    return asked.stdout.strip() if asked.return_code == 0 else None

def _toolkit(rctx, roots):
    """Returns (root, version, "") or (None, None, what is wrong)."""
    root = _first(rctx, roots, "bin/nvcc")
    if not root:
        return None, None, ("no bin/nvcc in $CUDA_HOME, $CUDA_PATH, " +
                            "/usr/local/cuda or a pip package")
    nvcc = root + "/bin/nvcc"
    asked = rctx.execute([nvcc, "--version"])
    if asked.return_code != 0:
        return None, None, "%s does not run: %s" % (nvcc, asked.stderr.strip())

    # "Cuda compilation tools, release 13.0, V13.0.88"
    version = asked.stdout.partition(", V")[2].partition("\n")[0].strip()
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST:
        return None, None, "%s is version '%s', and %d or newer is wanted" % (
            nvcc,
            version,
            _OLDEST,
        )
    return root, version, ""

def _find(rctx):
    """Returns (what was found, "") or (None, what is wrong)."""
    env = rctx.os.environ
    pip = _pip_nvidia(rctx)
    roots = [env.get("CUDA_HOME", ""), env.get("CUDA_PATH", ""), "/usr/local/cuda"]
    if pip:
        roots.append(pip + "/cu13")
    root, version, why = _toolkit(rctx, [r for r in roots if r])
    if not root:
        return None, why

    lib_dirs = [root + "/lib64", root + "/lib"]
    include_dirs = [root + "/include"]
    if pip:
        lib_dirs += [pip + "/cudnn/lib", pip + "/nccl/lib"]
        include_dirs += [pip + "/cudnn/include", pip + "/nccl/include"]
    lib_dirs.append("/usr/lib/x86_64-linux-gnu")
    include_dirs.append("/usr/include")

    libs = {}
    missing = []
    for name, file, header in [
        ("cudart", "libcudart_static.a", "cuda_runtime.h"),
        ("cublas", "libcublas.so.13", "cublas_v2.h"),
        ("cublasLt", "libcublasLt.so.13", "cublasLt.h"),
        ("cudnn", "libcudnn.so.9", "cudnn.h"),
        ("nccl", "libnccl.so.2", "nccl.h"),
    ]:
        lib = _first(rctx, lib_dirs, file)
        include = _first(rctx, include_dirs, header)
        if lib and include:
            libs[name] = struct(dir = lib, file = file, include = include)
        else:
            missing.append(header if lib else file)
    if missing:
        return None, "CUDA %s in %s lacks %s" % (version, root, ", ".join(missing))
    return struct(root = root, version = version, libs = libs), ""

_CPU = """load("@mimo//build_defs:flags.bzl", "bool_flag")

package(default_visibility = ["//visibility:public"])

bool_flag(name = "enabled", build_setting_default = False)

config_setting(name = "available", flag_values = {":enabled": "True"})

[
    cc_library(
        name = name,
        target_compatible_with = ["@mimo//build_defs:incompatible"],
    )
    for name in ["headers", "cudart", "cublas", "cudnn", "nccl"]
]
"""

# Only the headers that host code may include are declared; nvcc brings the
# rest (cccl, 1700 files) from its own folder.
_CUDA = """load("@mimo//build_defs:flags.bzl", "bool_flag")

package(default_visibility = ["//visibility:public"])

bool_flag(name = "enabled", build_setting_default = True)

config_setting(name = "available", flag_values = {":enabled": "True"})

_NEEDS_CUDA = select({
    ":available": [],
    "//conditions:default": ["@mimo//build_defs:incompatible"],
})

cc_library(
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp"] + ["include/%s/**" % d for d in [
        "cooperative_groups",
        "crt",
        "nv",
        "nvtx3",
    ]]),
    includes = ["include"],
    target_compatible_with = _NEEDS_CUDA,
)

cc_library(
    name = "cudart",
    srcs = ["lib/libcudart_static.a"],
    linkopts = ["-ldl", "-lrt", "-lpthread"],
    target_compatible_with = _NEEDS_CUDA,
    deps = [":headers"],
)
"""

# Linked by soname: pip's packages have no plain .so. The run path is where the
# library was found; on another machine set LD_LIBRARY_PATH.
_SHARED = """
cc_library(
    name = "{name}",
    hdrs = glob(["{name}_include/**/*.h"], allow_empty = True),
    includes = ["{name}_include"],
    linkopts = {linkopts},
    target_compatible_with = _NEEDS_CUDA,
    deps = [":headers"],
)
"""

def _impl(rctx):
    mode = rctx.os.environ.get("MIMO_CUDA", "auto")
    if mode not in ["auto", "0", "1"]:
        fail("mimo: MIMO_CUDA is '%s'; auto, 0 or 1 is wanted." % mode)
    found, why = (None, "") if mode == "0" else _find(rctx)
    if not found:
        if mode == "1":
            fail("mimo: %s; install CUDA 13 with cuBLAS, cuDNN 9 and NCCL 2, or set CUDA_HOME." % why)
        rctx.file("BUILD", _CPU)
        rctx.file("config.bzl", "CUDA = struct(nvcc = \"\", version = \"\")\n")
        return

    include = found.root + "/include"
    rctx.symlink(include, "include")
    cudart = found.libs["cudart"]
    rctx.symlink(cudart.dir + "/" + cudart.file, "lib/" + cudart.file)
    build = _CUDA
    for name, extra in [("cublas", "cublasLt"), ("cudnn", None), ("nccl", None)]:
        lib = found.libs[name]
        linkopts = ["-L" + lib.dir, "-l:" + lib.file, "-Wl,-rpath," + lib.dir]
        if extra:
            linkopts.insert(2, "-l:" + found.libs[extra].file)
        if lib.include not in [include, "/usr/include"]:
            rctx.symlink(lib.include, name + "_include")
        build += _SHARED.format(name = name, linkopts = repr(linkopts))
    rctx.file("BUILD", build)
    rctx.file("config.bzl", "CUDA = %r\n" % struct(
        nvcc = found.root + "/bin/nvcc",
        version = found.version,
    ))

cuda_configure = repository_rule(
    implementation = _impl,
    environ = _ENVIRON,
    local = True,
)
