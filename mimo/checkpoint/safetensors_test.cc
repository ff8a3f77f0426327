#include "mimo/checkpoint/safetensors.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

std::string Path(const std::string& name) {
  return absl::StrCat(testing::TempDir(), "/", name);
}

std::string Put(const std::string& name, const std::string& bytes) {
  std::ofstream(Path(name), std::ios::binary) << bytes;
  return Path(name);
}

// A file of this header, with `data` bytes after it.
std::string File(const std::string& header, int64_t data) {
  std::string bytes(8, '\0');
  const uint64_t size = header.size();
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + std::string(data, 'x');
}

std::string OpenError(const std::string& bytes) {
  const std::string path = Put("bad.safetensors", bytes);
  const auto file = SafeTensors::Open(path);
  EXPECT_FALSE(file.ok());
  const std::string message(file.status().message());
  EXPECT_TRUE(absl::StartsWith(message, path + ": ")) << message;
  EXPECT_FALSE(absl::StrContains(message, '\n')) << message;
  return message.substr(path.size() + 2);
}

std::string HeaderError(const std::string& header, int64_t data) {
  return OpenError(File(header, data));
}

TEST(SafeTensors, WritesAndReadsEveryDType) {
  Allocator allocator;
  std::mt19937 rng(3);
  std::map<std::string, Tensor> tensors;
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                      DType::kFloat16, DType::kInt32, DType::kInt64,
                      DType::kUInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    int i = 0;
    for (const Shape& shape :
         {Shape{}, Shape{1}, Shape{0, 7}, Shape{3, 5, 7}, Shape{13}}) {
      Tensor tensor(allocator, shape, dtype);
      char* data = static_cast<char*>(tensor.data());
      for (int64_t j = 0; j < tensor.bytes(); ++j) data[j] = rng();
      tensors[absl::StrCat("t", i++, ".", Name(dtype))] = tensor;
    }
  }
  const std::map<std::string, std::string> metadata = {
      {"format", "pt"}, {"a \"b\"", "\n\xc3\xa9"}};
  const std::string path = Path("all.safetensors");
  ASSERT_TRUE(WriteSafeTensors(path, tensors, metadata).ok());
  const auto file = SafeTensors::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata(), metadata);
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const auto& [name, wanted] : tensors) {
    const auto tensor = file->Load(name, allocator);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->dtype(), wanted.dtype());
    EXPECT_EQ(tensor->shape(), wanted.shape());
    if (wanted.bytes() > 0) {
      EXPECT_EQ(std::memcmp(tensor->data(), wanted.data(), wanted.bytes()), 0);
    }
  }
}

// Each flipped bit of a tensor is found when that tensor is loaded; without
// checksums, as in older files, none is.
TEST(SafeTensors, ChecksumsFindDamage) {
  Allocator allocator;
  const std::map<std::string, Tensor> tensors = {
      {"a", Tensor::From<float>(allocator, {3}, {1, 2, 3})},
      {"b\xff\"", Tensor::From<int64_t>(allocator, {2}, {4, 5})},
      {"empty", Tensor(allocator, {0}, DType::kFloat32)}};
  std::vector<SafeTensorToWrite> entries;
  for (const auto& [name, tensor] : tensors) {
    const bool halved = name == "a";  // and its checksum is of what is written
    entries.push_back(
        {name, tensor, halved ? DType::kBFloat16 : tensor.dtype()});
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  const std::string path = Path("sums.safetensors");
  const auto load = [&] {
    const auto file = SafeTensors::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->metadata(), metadata);
    std::vector<std::string> messages;
    for (const auto& [name, info] : file->tensors()) {
      const absl::Status status = file->Load(name, allocator).status();
      if (!status.ok()) messages.emplace_back(status.message());
    }
    return messages;
  };
  for (const bool checksums : {true, false}) {
    ASSERT_TRUE(WriteSafeTensors(path, entries, metadata, checksums).ok());
    EXPECT_TRUE(load().empty());
    const std::string bytes = *ReadFile(path);
    constexpr int kData = 2 * 8 + 3 * 2;
    for (int bit = 0; bit < 8 * kData; ++bit) {
      std::string damaged = bytes;
      damaged[bytes.size() - kData + bit / 8] ^= 1 << bit % 8;
      ASSERT_TRUE(WriteFile(path, damaged).ok());
      const std::vector<std::string> messages = load();
      ASSERT_EQ(messages.size(), checksums ? 1u : 0u);
      if (!checksums) continue;
      EXPECT_TRUE(absl::StartsWith(
          messages[0], absl::StrCat(path, ": tensor ", bit < 128 ? "b" : "a")))
          << messages[0];
      EXPECT_TRUE(
          absl::StrContains(messages[0], ": damaged: bytes of CRC32C "));
    }
  }
  // The catalogue's check value of CRC-32C (RFC 3720).
  const std::map<std::string, Tensor> digits = {
      {"a", Tensor::From<uint8_t>(allocator, {9},
                                  {49, 50, 51, 52, 53, 54, 55, 56, 57})}};
  ASSERT_TRUE(WriteSafeTensors(path, digits, metadata, true).ok());
  EXPECT_TRUE(absl::StrContains(*ReadFile(path), R"({\"a\":\"e3069283\"})"));
  for (const std::string sums : {"", "[]", R"({"a": 1})", R"({"a": "xyz"})"}) {
    ASSERT_TRUE(WriteSafeTensors(path, digits, {{"crc32c", sums}}).ok());
    EXPECT_EQ(SafeTensors::Open(path).status().message(),
              path + ": __metadata__.crc32c: not a checksum for tensor a");
  }
}

// The reference implementation's own files come out byte for byte.
TEST(SafeTensors, SameBytesAsTheReference) {
  const std::string archives = "tests/golden/";
  for (const std::string name :
       {"llava15_tiny", "llava_gqa_tied", "llava_full_multi"}) {
    ASSERT_EQ(std::system(absl::StrCat("tar xzf ", archives, name, ".tgz -C ",
                                       testing::TempDir())
                              .c_str()),
              0);
    const std::string path = Path(name + "/model.safetensors");
    const auto file = SafeTensors::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    Allocator allocator;
    std::map<std::string, Tensor> tensors;
    for (const auto& [tensor, info] : file->tensors()) {
      tensors[tensor] = *file->Load(tensor, allocator);
    }
    EXPECT_GT(tensors.size(), 60u);
    ASSERT_TRUE(WriteSafeTensors(Path("copy"), tensors, file->metadata()).ok());
    EXPECT_TRUE(*ReadFile(Path("copy")) == *ReadFile(path)) << name;
    const auto golden = SafeTensors::Open(Path(name + "/golden.safetensors"));
    ASSERT_TRUE(golden.ok()) << golden.status();
    EXPECT_EQ(golden->Find("input_ids")->dtype, DType::kInt64);
  }
}

TEST(SafeTensors, ConvertsOnTheWayInAndOut) {
  Allocator allocator;
  const std::vector<float> values = {1.0f, -2.5f, 1e-3f, 65504.0f};
  const Tensor tensor = Tensor::From<float>(allocator, {2, 2}, values);
  const std::string path = Path("half.safetensors");
  // More than one chunk, from a view that does not begin its storage.
  Tensor large(allocator, {3 << 19, 2}, DType::kFloat32);
  for (int64_t i = 0; i < large.numel(); ++i) large.span<float>()[i] = i % 999;
  ASSERT_TRUE(WriteSafeTensors(
                  path, {{"large", large.Rows(5, 3 << 19), DType::kFloat16},
                         {"small", tensor, DType::kBFloat16}})
                  .ok());
  const auto file = SafeTensors::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("large")->dtype, DType::kFloat16);
  const Tensor back = *file->Load("large", allocator, DType::kFloat32);
  for (int64_t i = 0; i < back.numel(); ++i) {
    ASSERT_EQ(back.span<float>()[i], (i + 10) % 999) << i;
  }
  const Tensor small = *file->Load("small", allocator, DType::kFloat64);
  EXPECT_EQ(small.span<double>()[1], -2.5);
  // Rounded to 8 bits: half a unit in the last place is 2^-9.
  EXPECT_NEAR(small.span<double>()[2], 1e-3, 1e-3 / 512);

  Tensor wrong(allocator, {4}, DType::kFloat32);
  EXPECT_EQ(file->LoadInto("small", wrong).message(),
            path + ": tensor small: [2, 2], wanted [4]");
  EXPECT_EQ(file->LoadInto("none", wrong).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file->Load("small", allocator, DType::kInt64).status().message(),
            path + ": tensor small: floats, wanted integers");
}

TEST(SafeTensors, ReadsBoolAndUnpaddedHeaders) {
  // 93 bytes: the float64s do not begin on 8.
  const std::string header =
      R"({"b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},)"
      R"("d":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}} )";
  std::string bytes = File(header, 17);
  const double values[2] = {0.1, -7};
  std::memcpy(bytes.data() + bytes.size() - 16, values, 16);
  bytes[bytes.size() - 17] = 1;
  const auto file = SafeTensors::Open(Put("odd.safetensors", bytes));
  ASSERT_TRUE(file.ok()) << file.status();
  Allocator allocator;
  EXPECT_EQ(file->Load("b", allocator)->span<uint8_t>()[0], 1);
  const Tensor d = *file->Load("d", allocator);
  EXPECT_EQ(d.span<double>()[0], 0.1);
  EXPECT_EQ(d.span<double>()[1], -7);
}

TEST(SafeTensors, FilesThatAreNone) {
  EXPECT_EQ(SafeTensors::Open(Path("absent")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafeTensors::Open(testing::TempDir()).status().message(),
            testing::TempDir() + ": a directory, wanted a safetensors file");
  EXPECT_FALSE(SafeTensors::Open("/dev/null").ok());
  EXPECT_EQ(OpenError(""), "0 bytes, wanted a safetensors file");
  EXPECT_EQ(OpenError("1234567"), "7 bytes, wanted a safetensors file");
  EXPECT_EQ(OpenError(std::string(8, '\xff') + "{}"),
            "truncated or not a safetensors file: a header of "
            "18446744073709551615 bytes in a file of 10, wanted at most 2");
  EXPECT_NE(OpenError(File("{}", 0).substr(0, 9)).find("truncated"),
            std::string::npos);
  for (const char* header : {"", "{", "[]", "{\"a\":", "nope", "{}}", "\xff"}) {
    EXPECT_NE(HeaderError(header, 0).find("not a JSON object"),
              std::string::npos)
        << header;
  }
}

TEST(SafeTensors, HeadersThatLie) {
  const std::string ok =
      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_EQ(HeaderError(R"({"a":5})", 0), "tensor a: its header is no object");
  EXPECT_EQ(HeaderError(R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4),
            "tensor a: dtype none, wanted BOOL | U8 | F8_E5M2 | F8_E4M3 | F16 "
            "| BF16 | I32 | F32 | F64 | I64");
  EXPECT_NE(
      HeaderError(R"({"a":{"dtype":"F33","shape":[],"data_offsets":[0,4]}})", 4)
          .find("tensor a: dtype F33, wanted"),
      std::string::npos);
  for (const char* shape : {"2", "[-1]", "[1.5]", "[\"2\"]", "null",
                            "[18446744073709551615]", "[[2]]"}) {
    EXPECT_EQ(HeaderError(absl::StrCat("{\"a\":{\"dtype\":\"F32\",\"shape\":",
                                       shape, ",\"data_offsets\":[0,8]}}"),
                          8),
              "tensor a: no shape, wanted a list of sizes")
        << shape;
  }
  for (const char* offsets : {"8", "[0]", "[0,8,8]", "[-8,0]", "[0,8.0]"}) {
    EXPECT_EQ(
        HeaderError(absl::StrCat("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],"
                                 "\"data_offsets\":",
                                 offsets, "}}"),
                    8),
        "tensor a: no data_offsets, wanted [begin, end]")
        << offsets;
  }
  EXPECT_EQ(HeaderError(
                R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
            "tensor a: data_offsets [0, 4], wanted 8 bytes for [2] F32");
  EXPECT_EQ(HeaderError(
                R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8),
            "tensor a: data_offsets [8, 0], wanted 8 bytes for [2] F32");
  EXPECT_EQ(
      HeaderError(
          R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
          0),
      "tensor a: data_offsets [0, 0], wanted fewer bytes for [4294967296, "
      "4294967296] F32");
  EXPECT_EQ(HeaderError("{" + ok + "}", 7),
            "tensor a: ends at byte 8 of 7, the file is truncated");
  EXPECT_EQ(HeaderError("{" + ok + "}", 9),
            "9 bytes of tensors, wanted 8 as its header says");
  const std::string overlap =
      R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})";
  EXPECT_EQ(HeaderError("{" + ok + overlap, 12),
            "tensor b: begins at byte 4, wanted 8, where the one before ends");
  const std::string gap =
      R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}})";
  EXPECT_EQ(HeaderError("{" + ok + gap, 10),
            "tensor b: begins at byte 9, wanted 8, where the one before ends");
  EXPECT_EQ(HeaderError(R"({"__metadata__":{"a":1}})", 0),
            "tensor __metadata__: a: not text");
  EXPECT_EQ(HeaderError(R"({"__metadata__":[]})", 0),
            "tensor __metadata__: not an object of text");
}

// Whatever a flipped or missing byte does, it is an error or a file, no crash.
TEST(SafeTensors, NoByteCrashesTheReader) {
  Allocator allocator;
  const std::string path = Path("small.safetensors");
  const std::map<std::string, Tensor> tensors = {
      {"a", Tensor::Zeros(allocator, {2}, DType::kFloat32)},
      {"b", Tensor::Zeros(allocator, {1, 3}, DType::kInt64)}};
  ASSERT_TRUE(WriteSafeTensors(path, tensors, {{"k", "v"}}).ok());
  const std::string bytes = *ReadFile(path);
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    EXPECT_FALSE(SafeTensors::Open(Put("cut", bytes.substr(0, cut))).ok())
        << cut;
  }
  int opened = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[at] ^= 1 << bit;
      const auto file = SafeTensors::Open(Put("flip", flipped));
      if (!file.ok()) continue;
      ++opened;
      for (const auto& [name, info] : file->tensors()) {
        EXPECT_TRUE(file->Load(name, allocator).ok());
      }
    }
  }
  EXPECT_GT(opened, 32 * 8);  // flips within the data
}

// The exit code of `body` run in a process of its own.
int InChild(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(SafeTensors, NothingIsLeftOfAFailedWrite) {
  Allocator allocator;
  const std::string folder = Path("write");
  fs::create_directories(folder);
  const std::string path = folder + "/a.safetensors";
  const std::map<std::string, Tensor> old = {
      {"old", Tensor::Zeros(allocator, {2}, DType::kFloat32)}};
  ASSERT_TRUE(WriteSafeTensors(path, old).ok());
  const std::map<std::string, Tensor> tensors = {
      {"new", Tensor::Zeros(allocator, {1000}, DType::kFloat32)}};
  // A limit on a file's size stands for a disk that fills up.
  for (const int64_t limit : {0, 5, 8, 30, 100, 4000}) {
    EXPECT_EQ(InChild([&] {
                signal(SIGXFSZ, SIG_IGN);
                const rlimit sizes = {static_cast<rlim_t>(limit),
                                      static_cast<rlim_t>(limit)};
                setrlimit(RLIMIT_FSIZE, &sizes);
                const absl::Status status = WriteSafeTensors(path, tensors);
                return static_cast<int>(status.code());
              }),
              static_cast<int>(absl::StatusCode::kResourceExhausted));
    const auto file = SafeTensors::Open(path);
    ASSERT_TRUE(file.ok());
    EXPECT_NE(file->Find("old"), nullptr);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
  }
  EXPECT_EQ(WriteSafeTensors(folder, tensors).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafeTensors(path + "/below", tensors).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafeTensors(folder + "/no/such", tensors).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
}

TEST(SafeTensors, FolderThatIsNotWritable) {
  char folder[] = "/tmp/mimo_read_only_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  fs::permissions(folder, fs::perms(0555));
  Allocator allocator;
  const std::map<std::string, Tensor> tensors = {
      {"a", Tensor::Zeros(allocator, {1}, DType::kFloat32)}};
  const int code = InChild([&] {
    // Root may write anywhere.
    if (geteuid() == 0 && setuid(65534) != 0) return -1;
    return static_cast<int>(
        WriteSafeTensors(std::string(folder) + "/a", tensors).code());
  });
  EXPECT_TRUE(fs::is_empty(folder));
  fs::remove(folder);
  if (code == 255) GTEST_SKIP() << "root cannot become another user here";
  EXPECT_EQ(code, static_cast<int>(absl::StatusCode::kPermissionDenied));
}

}  // namespace
}  // namespace mimo
