// What data sets give and models take.
#ifndef MIMO_MIMO_DATA_BATCH_H_
#define MIMO_MIMO_DATA_BATCH_H_

#include <cstdint>
#include <map>
#include <optional>
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

    void Add(const ModalityItem& item);
  };
  std::map<std::string, Items> modalities;
  // Where ranks share out a global micro-batch: each modality's tokens in each
  // of its samples. Then `modalities` may be of other samples than input_ids,
  // and there may be no text.
  std::map<std::string, std::vector<int64_t>> sample_rows;

  // Labels that the loss counts: labels[b, t] != kIgnoreLabel with t >= 1 (the
  // first token has nothing before it).
  int64_t LabelledTokens() const;
};

// One of `size` equal parts of the samples of a global micro-batch, in order.
struct DataSlice {
  int64_t rank = 0, size = 1;

  int64_t begin(int64_t samples) const { return rank * (samples / size); }
  int64_t end(int64_t samples) const { return begin(samples) + samples / size; }
  bool Has(int64_t sample, int64_t samples) const {
    return sample >= begin(samples) && sample < end(samples);
  }
  bool operator==(const DataSlice&) const = default;
};

// What a rank reads of each global micro-batch. Of other ranks' samples that is
// how many item tokens they have, which a record says without being tokenised.
struct DataShare {
  int64_t samples = 1;            // of the global micro-batch
  std::optional<DataSlice> text;  // ids and labels; none: batch 0
  // Modalities whose items are read. An encoder has a slice for each of its
  // dp x cp lanes, whatever the language model has.
  std::map<std::string, DataSlice> modalities;
  // Modalities whose tokens of all samples go into sample_rows.
  std::vector<std::string> counted;

  // CHECKs that every slice comes out whole.
  void Check() const;
};

MicroBatch Collate(const std::vector<Sample>& samples, int32_t pad_id);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_BATCH_H_
