"""Every repository from outside, in one place. Nothing is downloaded here."""

load("//third_party:deps_repository.bzl", "deps_repository")
load("//third_party/cuda:cuda_configure.bzl", "cuda_configure")
load("//third_party/system:system_library.bzl", "system_libraries")

def mimo_repositories():
    # What Bazel 4 would fetch by itself, from this tree or Debian's packages.
    native.local_repository(name = "rules_cc", path = "third_party/rules_cc")
    native.local_repository(name = "platforms", path = "third_party/platforms")
    native.local_repository(name = "remote_coverage_tools", path = "third_party/coverage")
    native.local_repository(name = "rules_java", path = "/usr/share/bazel/rules/java")
    native.local_repository(name = "rules_proto", path = "/usr/share/bazel/rules/proto")
    native.local_repository(name = "bazel_skylib", path = "/usr/share/bazel/tools/skylib")

    cuda_configure(name = "local_cuda")
    system_libraries()
    deps_repository(name = "com_google_absl", dir = "abseil")
    deps_repository(name = "com_google_googletest", dir = "googletest")
    deps_repository(
        name = "com_github_google_benchmark",
        build_file = "//third_party/benchmark:BUILD.benchmark",
        dir = "benchmark",
    )
    deps_repository(
        name = "gloo",
        build_file = "//third_party/gloo:BUILD.gloo",
        dir = "gloo",
    )
    deps_repository(
        name = "sentencepiece",
        build_file = "//third_party/sentencepiece:BUILD.sentencepiece",
        dir = "sentencepiece",
    )
