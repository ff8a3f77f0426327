#include "mimo/data/batch.h"

#include <algorithm>

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
      for (const ModalityItem& item : items) {
        MicroBatch::Items& all = out.modalities[name];
        if (all.shape.empty()) {
          all.shape = item.shape;
          all.shape.insert(all.shape.begin(), 0);
        }
        CHECK(std::equal(item.shape.begin(), item.shape.end(),
                         all.shape.begin() + 1, all.shape.end()))
            << "Collate: items of " << name << " differ in shape";
        ++all.shape[0];
        all.values.insert(all.values.end(), item.values.begin(),
                          item.values.end());
      }
    }
  }
  return out;
}

}  // namespace mimo
