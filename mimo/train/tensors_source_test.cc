#include "mimo/train/tensors_source.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/random/philox.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/data/share_testing.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kImage = 50;
constexpr int64_t kSeq = 9, kTokens = 2;  // of an image

// Rows of 0, 1 or 3 images, all of them without.
std::string WriteRows(int64_t rows, bool images, DType pixels,
                      int64_t edge = 2) {
  PhiloxSequence random(7, 0);
  std::vector<int64_t> ids;
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t counts[] = {0, 1, 3};
    const int64_t of_row = images ? counts[random.Below(3)] : 0;
    for (int64_t t = 0; t < kSeq; ++t)
      ids.push_back(t < of_row * kTokens ? kImage : random.Below(kImage));
    count += of_row;
  }
  std::vector<float> values(count * 3 * edge * edge);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 200;
  Allocator host;
  const Tensor id = Tensor::From<int64_t>(host, {rows, kSeq}, ids);
  std::vector<SafeTensorToWrite> tensors = {{"input_ids", id, DType::kInt64},
                                            {"labels", id, DType::kInt64}};
  if (images) {
    tensors.push_back(
        {"pixel_values",
         Tensor::From<float>(host, {count, 3, edge, edge}, values), pixels});
  }
  const std::string path = testing::TempDir() + "/rows.safetensors";
  EXPECT_TRUE(WriteSafeTensors(path, std::move(tensors)).ok());
  return path;
}

std::unique_ptr<TensorsSource> Open(const std::string& path,
                                    const DataShare& share) {
  auto source = TensorsSource::Open(path, kImage, share);
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

TEST(TensorsSource, EachRankHasItsSlices) {
  for (const bool images : {true, false}) {
    for (const DType pixels : {DType::kFloat32, DType::kBFloat16}) {
      const std::string path = WriteRows(36, images, pixels);
      ExpectSharedOut(12, {{"images", kImage}}, 4,
                      [&](const DataShare& share) -> NextBatch {
                        std::shared_ptr<TensorsSource> source =
                            Open(path, share);
                        return [source] { return source->Next(); };
                      });
    }
  }
}

// Of a file that loses the second lane's pixels once it is open.
TEST(TensorsSource, ReadsNoOtherPixels) {
  constexpr int64_t kEdge = 64, kBytes = 3 * kEdge * kEdge * sizeof(float);
  const std::string path = WriteRows(12, true, DType::kFloat32, kEdge);
  const DataShare whole = WholeShare(12, {{"images", kImage}});
  const DataShare lanes[] = {ShareOfRank(whole, 1, 1, 2),
                             ShareOfRank(whole, 0, 1, 2)};
  const MicroBatch all = *Open(path, whole)->Next();
  const auto first = Open(path, lanes[0]), second = Open(path, lanes[1]);
  const MicroBatch want = PartOf(all, lanes[0], {{"images", kImage}});
  const int64_t others = all.modalities.at("images").shape[0] -
                         want.modalities.at("images").shape[0];
  ASSERT_GT(others, 1);
  std::filesystem::resize_file(
      path, std::filesystem::file_size(path) - others * kBytes);
  ExpectEqual(*first->Next(), want);
  EXPECT_DEATH((void)second->Next(), "");
}

// Round and round, from where other ranks stopped.
TEST(TensorsSource, OtherRanksGoOn) {
  const std::string path = WriteRows(24, true, DType::kFloat32);
  const MicroBatch file = *ReadTensorBatch(path);
  int64_t consumed = 0;
  for (const int64_t replicas : {4, 2, 1, 8}) {
    const DataShare whole = WholeShare(3 * replicas, {{"images", kImage}});
    for (int rank = 0; rank < 8; ++rank) {
      const DataShare share = ShareOfRank(whole, rank, replicas, /*lanes=*/3);
      const auto source = Open(path, share);
      ASSERT_TRUE(source->Seek(consumed).ok());
      for (int64_t at = consumed; at < consumed + 24; at += whole.samples) {
        DataShare turn = whole;
        turn.text = turn.modalities["images"] = {at % 24 / whole.samples,
                                                 24 / whole.samples};
        const MicroBatch rows = PartOf(file, turn, {{"images", kImage}});
        ExpectEqual(*source->Next(), PartOf(rows, share, {{"images", kImage}}));
      }
    }
    consumed += 24;
  }
}

TEST(TensorsSource, RowsThatDoNotComeOutWhole) {
  const std::string path = WriteRows(10, true, DType::kFloat32);
  EXPECT_THAT(
      TensorsSource::Open(path, kImage, {.samples = 4}).status().message(),
      HasSubstr("rows.safetensors: input_ids: 10 rows, wanted a multiple of 4, "
                "the samples of a micro-batch of all replicas"));
}

TEST(TensorsSource, IdsOf32Bits) {
  const std::string path = testing::TempDir() + "/ids.safetensors";
  Allocator host;
  const auto ids = [&](int64_t last) {
    return Tensor::From<int64_t>(host, {3, 2}, {1, 2, 3, 4, 5, last});
  };
  const auto write = [&](int64_t last_id, int64_t last_label) {
    const std::map<std::string, Tensor> tensors = {{"input_ids", ids(last_id)},
                                                   {"labels", ids(last_label)}};
    EXPECT_TRUE(WriteSafeTensors(path, tensors).ok());
  };
  constexpr int64_t kLarge = int64_t{1} << 31;
  write(kLarge, 6);
  EXPECT_THAT(
      TensorsSource::Open(path, kImage, {.samples = 1}).status().message(),
      HasSubstr("ids.safetensors: input_ids: rows 0 to 3: 2147483648 in place "
                "5, wanted a value of int32"));
  write(6, kLarge);
  const auto source = Open(path, {.samples = 1, .text = DataSlice()});
  EXPECT_TRUE(source->Next().ok());
  EXPECT_TRUE(source->Next().ok());
  EXPECT_THAT(source->Next().status().message(),
              HasSubstr("ids.safetensors: labels: rows 2 to 3: 2147483648 in "
                        "place 1, wanted a value of int32"));
}

TEST(TensorsSource, GoesOnWhereAMicroBatchBegins) {
  const std::string path = WriteRows(12, true, DType::kFloat32);
  const auto source = Open(path, WholeShare(4, {{"images", kImage}}));
  EXPECT_THAT(source->Seek(3).message(),
              HasSubstr("rows.safetensors: input_ids: to go on at row 3, "
                        "wanted a multiple of 4, the samples of a micro-batch "
                        "of all replicas"));
  EXPECT_TRUE(source->Seek(20).ok());
}

}  // namespace
}  // namespace mimo
