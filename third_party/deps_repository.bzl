"""deps_repository: a source tree that ./setup has put under .deps/."""

def _impl(rctx):
    tree = rctx.path(rctx.attr.anchor).dirname.get_child(".deps").get_child(rctx.attr.dir)
    if not tree.get_child(".sha256").exists:
        fail("mimo: @%s is not in .deps/%s; run ./setup." % (rctx.name, rctx.attr.dir))
    own = ["WORKSPACE", "WORKSPACE.bzlmod", "MODULE.bazel"]
    if rctx.attr.build_file:
        own += ["BUILD", "BUILD.bazel"]
        rctx.symlink(rctx.attr.build_file, "BUILD.bazel")
    for entry in tree.readdir():
        if entry.basename not in own:
            rctx.symlink(entry, entry.basename)
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
