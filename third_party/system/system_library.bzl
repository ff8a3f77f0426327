"""system_library: a Debian or Ubuntu -dev package, linked statically."""

_INCLUDE = ["/usr/include", "/usr/include/x86_64-linux-gnu"]
_LIB = ["/usr/lib/x86_64-linux-gnu", "/usr/lib"]

_BUILD = """cc_library(
    name = "{name}",
    srcs = {libs},
    hdrs = glob(["include/**"]),
    includes = ["include"],
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)

"""

def _find(rctx, dirs, sub, name):
    """The first of dirs/sub/name and dirs/name that exists, or None."""
    for d in dirs:
        for folder in [d + "/" + sub, d] if sub else [d]:
            path = rctx.path(folder + "/" + name)
            if path.exists:
                return path
    return None

def _impl(rctx):
    wanted = [(_INCLUDE, "include", h) for h in rctx.attr.headers]
    wanted += [(_LIB, "lib", l) for l in rctx.attr.static_libs]
    missing = []
    for dirs, folder, name in wanted:
        path = _find(rctx, dirs, rctx.attr.subdir, name)
        if path:
            rctx.symlink(path, folder + "/" + name)
        else:
            missing.append(name)
    if missing:
        fail("mimo: %s of package %s is missing; run ./setup." %
             (", ".join(missing), rctx.attr.package))
    version = rctx.execute(["dpkg-query", "-W", "-f", "${Version}", rctx.attr.package]).stdout
    # In the headers, so that an upgrade of the package misses the build cache.
    rctx.file("include/mimo_package_version/%s.h" % rctx.name, "// %s\n" % version)
    rctx.file("BUILD", _BUILD.format(
        name = rctx.name,
        libs = repr(["lib/" + l for l in rctx.attr.static_libs]),
        linkopts = repr(rctx.attr.linkopts),
    ))

system_library = repository_rule(
    implementation = _impl,
    local = True,
    attrs = {
        "package": attr.string(mandatory = True),
        # Files or folders below the system's include folders.
        "headers": attr.string_list(mandatory = True),
        # Archives in link order.
        "static_libs": attr.string_list(),
        # A folder to look in first, below the include and lib folders.
        "subdir": attr.string(),
        "linkopts": attr.string_list(),
    },
)

def system_libraries():
    """The libraries that come as packages of the system."""
    system_library(
        name = "openblas",
        headers = ["cblas.h", "openblas_config.h"],
        linkopts = ["-lpthread", "-lm"],
        package = "libopenblas-pthread-dev",
        static_libs = ["libopenblas.a"],
        subdir = "openblas-pthread",
    )
    system_library(
        name = "zlib",
        headers = ["zlib.h", "zconf.h"],
        package = "zlib1g-dev",
        static_libs = ["libz.a"],
    )
    system_library(
        name = "png",
        headers = ["png.h", "pngconf.h", "pnglibconf.h"],
        linkopts = ["-lm"],
        package = "libpng-dev",
        static_libs = ["libpng16.a", "libz.a"],
    )
    system_library(
        name = "jpeg",
        headers = ["jpeglib.h", "jerror.h", "jmorecfg.h", "jconfig.h"],
        package = "libjpeg62-turbo-dev",
        static_libs = ["libjpeg.a"],
    )
    system_library(
        name = "nlohmann_json",
        headers = ["nlohmann"],
        package = "nlohmann-json3-dev",
    )
    system_library(
        name = "yaml_cpp",
        headers = ["yaml-cpp"],
        package = "libyaml-cpp-dev",
        static_libs = ["libyaml-cpp.a"],
    )
