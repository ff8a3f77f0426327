"""system_library: a Debian/Ubuntu -dev package as a repository, linked statically from its .a files."""

_INCLUDE = ["/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu"]
_LIB = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"]

_MISSING = """cc_library(
    name = "{name}",
    target_compatible_with = ["@mimo//build_defs:incompatible"],
    visibility = ["//visibility:public"],
)
"""

_BUILD = """cc_library(
    name = "{name}",
    srcs = {libs},  # in link order
    hdrs = glob(["include/**"]),
    defines = {defines},
    includes = ["include"],
    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _find(rctx, dirs, rel):
    for d in dirs:
        if rctx.path(d + "/" + rel).exists:
            return d + "/" + rel
    return None

def _impl(rctx):
    missing = []
    libs = []
    for h in rctx.attr.headers:
        p = _find(rctx, [d + "/" + s if s else d for d in _INCLUDE for s in [""] + rctx.attr.include_subdirs], h)
        if p:
            rctx.symlink(p, "include/" + h)
        else:
            missing.append(h)
    for l in rctx.attr.static_libs:
        p = _find(rctx, [d + "/" + s if s else d for d in _LIB for s in rctx.attr.lib_subdirs + [""]], l)
        if p:
            rctx.symlink(p, "lib/" + l)
            libs.append("lib/" + l)
        else:
            missing.append(l)
    if missing:
        why = "mimo: @%s needs %s; run: apt-get install %s" % (rctx.name, ", ".join(missing), rctx.attr.package)
        if not rctx.attr.optional:
            fail(why + ".")
        rctx.file("BUILD", _MISSING.format(name = rctx.name))
        rctx.file("config.bzl", "AVAILABLE = False\n")
        print(why + "; targets that need it are skipped")
        return
    # the package's version goes into the action keys, so that an upgrade is not served from the cache
    r = rctx.execute(["dpkg-query", "-W", "-f", "${Version}", rctx.attr.package])
    rctx.file("version.h", "// %s\n" % (r.stdout if r.return_code == 0 else "unknown"))
    rctx.file("BUILD", _BUILD.format(
        name = rctx.name,
        libs = repr(libs),
        defines = repr(rctx.attr.defines),
        linkopts = repr(rctx.attr.linkopts),
    ))
    rctx.file("config.bzl", "AVAILABLE = True\n")

system_library = repository_rule(
    implementation = _impl,
    local = True,
    attrs = {
        "package": attr.string(mandatory = True),
        "headers": attr.string_list(),
        "include_subdirs": attr.string_list(),
        "static_libs": attr.string_list(),
        "lib_subdirs": attr.string_list(),
        "defines": attr.string_list(),
        "linkopts": attr.string_list(),
        "optional": attr.bool(),
    },
)

def system_libraries():
    system_library(
        name = "openblas",
        package = "libopenblas-pthread-dev",
        headers = ["cblas.h", "openblas_config.h"],
        include_subdirs = ["openblas-pthread"],
        lib_subdirs = ["openblas-pthread"],
        static_libs = ["libopenblas.a"],
        linkopts = ["-lpthread", "-lm"],
    )
    system_library(name = "zlib", package = "zlib1g-dev", headers = ["zlib.h", "zconf.h"], static_libs = ["libz.a"])
    system_library(
        name = "png",
        package = "libpng-dev",
        headers = ["png.h", "pngconf.h", "pnglibconf.h"],
        static_libs = ["libpng16.a", "libz.a"],
        linkopts = ["-lm"],
    )
    system_library(
        name = "jpeg",
        package = "libjpeg62-turbo-dev",  # Ubuntu: libjpeg-turbo8-dev
        headers = ["jpeglib.h", "jerror.h", "jmorecfg.h", "jconfig.h"],
        static_libs = ["libjpeg.a"],
    )
    system_library(name = "nlohmann_json", package = "nlohmann-json3-dev", headers = ["nlohmann"])
    system_library(name = "yaml_cpp", package = "libyaml-cpp-dev", headers = ["yaml-cpp"], static_libs = ["libyaml-cpp.a"])
