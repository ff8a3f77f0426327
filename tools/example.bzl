"""A program under examples/: `bazel run` shows it, `bazel test` runs it."""

def example(name, deps):
    native.cc_library(
        name = name + "_main",
        srcs = [name + ".cc"],
        deps = deps,
        alwayslink = True,
    )
    native.cc_binary(name = name, deps = [name + "_main"])
    native.cc_test(name = name + "_test", deps = [name + "_main"])
