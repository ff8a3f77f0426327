// What data sets give and models take.
#ifndef MIMO_MIMO_DATA_BATCH_H_
#define MIMO_MIMO_DATA_BATCH_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mimo {

inline constexpr int32_t kIgnoreLabel = -100;

// One input of a modality: an image [C, H, W] of normalised pixels.
struct ModalityItem {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// One conversation, tokenised; each image is its special token, repeated once
// an embedding. labels[t] is input_ids[t] where it is to be learned (the model
// predicts it from the tokens before t), else kIgnoreLabel.
struct Sample {
  std::vector<int32_t> input_ids;  // [S]
  std::vector<int32_t> labels;     // [S]
  std::map<std::string, std::vector<ModalityItem>> modalities;
};

// Samples side by side, padded on the right with pad_id / kIgnoreLabel to the
// longest. Items of a modality are in the order of their tokens, sample by
// sample, and have one shape.
struct MicroBatch {
  int64_t batch = 0, seq = 0;      // B, S
  std::vector<int32_t> input_ids;  // [B, S]
  std::vector<int32_t> labels;     // [B, S]
  std::vector<int32_t> lengths;    // [B] tokens before the padding
  struct Items {
    std::vector<int64_t> shape;  // [items, C, H, W]
    std::vector<float> values;
  };
  std::map<std::string, Items> modalities;
  // Where ranks share a global micro-batch: each modality's tokens in each of
  // its samples. Then `modalities` may be of other samples than input_ids.
  std::map<std::string, std::vector<int64_t>> sample_rows;

  // Labels that the loss counts: labels[b, t] != kIgnoreLabel with t >= 1 (the
  // first token has nothing before it).
  int64_t LabelledTokens() const;
};

// The part of each global micro-batch that one of `size` replicas reads: of B
// rows those from rank * B / size on, up to the next replica's.
struct DataSlice {
  int64_t rank = 0, size = 1;
};

MicroBatch Collate(const std::vector<Sample>& samples, int32_t pad_id);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_BATCH_H_
