#include "mimo/data/batch.h"

#include <algorithm>
#include <string_view>

#include "absl/log/check.h"

namespace mimo {

int64_t MicroBatch::LabelledTokens() const {
  int64_t count = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* row = labels.data() + b * seq;
    count += std::count_if(row + std::min<int64_t>(1, seq), row + seq,
                           [](int32_t label) { return label != kIgnoreLabel; });
  }
  return count;
}

void MicroBatch::Items::Add(const ModalityItem& item) {
  if (shape.empty()) {
    shape = item.shape;
    shape.insert(shape.begin(), 0);
  }
  CHECK(std::equal(item.shape.begin(), item.shape.end(), shape.begin() + 1,
                   shape.end()))
      << "items of a modality differ in shape";
  ++shape[0];
  values.insert(values.end(), item.values.begin(), item.values.end());
}

void DataShare::Check() const {
  const auto check = [&](const DataSlice& slice, std::string_view name) {
    CHECK(slice.rank >= 0 && slice.rank < slice.size &&
          samples % slice.size == 0)
        << name << ": slice " << slice.rank << " of " << slice.size << " of "
        << samples << " samples";
  };
  CHECK_GT(samples, 0);
  if (text) check(*text, "text");
  for (const auto& [name, slice] : modalities) check(slice, name);
}

MicroBatch Collate(const std::vector<Sample>& samples, int32_t pad_id) {
  MicroBatch out;
  out.batch = samples.size();
  for (const Sample& sample : samples) {
    CHECK_EQ(sample.input_ids.size(), sample.labels.size()) << "Collate";
    out.seq = std::max<int64_t>(out.seq, sample.input_ids.size());
  }
  out.input_ids.assign(out.batch * out.seq, pad_id);
  out.labels.assign(out.batch * out.seq, kIgnoreLabel);
  for (int64_t b = 0; b < out.batch; ++b) {
    const Sample& sample = samples[b];
    std::copy(sample.input_ids.begin(), sample.input_ids.end(),
              out.input_ids.begin() + b * out.seq);
    std::copy(sample.labels.begin(), sample.labels.end(),
              out.labels.begin() + b * out.seq);
    out.lengths.push_back(sample.input_ids.size());
    for (const auto& [name, items] : sample.modalities) {
      for (const ModalityItem& item : items) out.modalities[name].Add(item);
    }
  }
  return out;
}

}  // namespace mimo
