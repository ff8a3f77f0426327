"""deps_repository: a source tree that ./setup put under .deps/."""

def _impl(rctx):
    root = rctx.path(rctx.attr.anchor).dirname
    tree = str(root) + "/.deps/" + rctx.attr.dir
    stamp = rctx.path(tree + "/.sha256")
    if not stamp.exists:
        fail("mimo: the sources of @%s are not in .deps/%s; run ./setup." % (rctx.name, rctx.attr.dir))
    for e in rctx.path(tree).readdir():
        if e.basename not in ["WORKSPACE", "WORKSPACE.bzlmod", "MODULE.bazel"] and not (rctx.attr.build_file and e.basename in ["BUILD", "BUILD.bazel"]):
            rctx.symlink(e, e.basename)
    if rctx.attr.build_file:
        rctx.symlink(rctx.attr.build_file, "BUILD.bazel")
    rctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % rctx.name)

deps_repository = repository_rule(
    implementation = _impl,
    local = True,
    attrs = {
        "dir": attr.string(mandatory = True),
        "build_file": attr.label(allow_single_file = True),
        "anchor": attr.label(default = "@mimo//:WORKSPACE"),
    },
)
