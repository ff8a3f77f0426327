#include "mimo/data/fashion_mnist.h"

#include <zlib.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

TEST(FashionMnist, OfficialSplit) {
  for (const bool train : {true, false}) {
    const auto read = ReadFashionMnist(train);
    ASSERT_TRUE(read.ok()) << read.status() << "; ./setup installs it";
    EXPECT_EQ(read->size(), train ? 60000u : 10000u);
    std::map<std::string, size_t> count;
    for (const Conversation& c : *read) ++count[c.turns[0].answer];
    EXPECT_EQ(count.size(), 10u);
    for (const auto& [answer, n] : count) EXPECT_EQ(n, read->size() / 10);
    if (train) continue;
    // The fixture sneaker_gray.png is number 9, bag_gray.png number 18.
    EXPECT_EQ((*read)[9].turns[0].answer, "A sneaker.");
    EXPECT_EQ((*read)[18].turns[0].answer, "A bag.");
    EXPECT_EQ((*read)[9].pictures[0].decoded->width, 28);
  }
}

std::string Gzip(const std::string& bytes) {
  std::string out(compressBound(bytes.size()) + 64, '\0');
  z_stream stream = {};
  deflateInit2(&stream, 1, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = bytes.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST(FashionMnist, Mistakes) {
  using namespace std::string_literals;
  const std::string folder = std::string(getenv("TEST_TMPDIR")) + "/fashion";
  const std::string images = folder + "/t10k-images-idx3-ubyte.gz";
  const std::string labels = folder + "/t10k-labels-idx1-ubyte.gz";
  const auto error = [&] {
    const auto read = ReadFashionMnist(false, folder);
    EXPECT_FALSE(read.ok());
    return std::string(read.status().message());
  };
  EXPECT_THAT(error(), HasSubstr("no such file"));
  const std::string good =
      Gzip("\0\0\x08\3\0\0\0\2\0\0\0\x1c\0\0\0\x1c"s + std::string(2 * 784, 7));
  ASSERT_TRUE(WriteFile(images, good.substr(0, good.size() / 2)).ok());
  EXPECT_THAT(error(), HasSubstr("not a whole gzip file"));
  ASSERT_TRUE(WriteFile(images, "plain").ok());
  EXPECT_THAT(error(), HasSubstr("not a whole gzip file"));
  ASSERT_TRUE(WriteFile(images, Gzip("\0\0\x08\3\0\0")).ok());
  EXPECT_THAT(error(), HasSubstr("not an IDX file"));
  ASSERT_TRUE(WriteFile(images, good).ok());
  EXPECT_THAT(error(), HasSubstr("labels-idx1-ubyte.gz: no such file"));
  ASSERT_TRUE(WriteFile(labels, Gzip("\0\0\x08\1\0\0\0\3\1\2\3"s)).ok());
  EXPECT_THAT(error(), HasSubstr("not an IDX file"));  // 3 labels, 2 pictures
  ASSERT_TRUE(WriteFile(labels, Gzip("\0\0\x08\1\0\0\0\2\1\x0a"s)).ok());
  EXPECT_THAT(error(), HasSubstr("label 10, wanted less than 10"));
  ASSERT_TRUE(WriteFile(labels, Gzip("\0\0\x08\1\0\0\0\2\1\2"s)).ok());
  const auto read = ReadFashionMnist(false, folder);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)[1].turns[0].answer, "A pullover.");
}

}  // namespace
}  // namespace mimo
