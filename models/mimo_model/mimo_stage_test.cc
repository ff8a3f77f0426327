#include "models/mimo_model/mimo_stage.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "models/llava/llava.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

class MimoStageTest : public BackendTest {};
MIMO_ON_BACKENDS(MimoStageTest);

// The bytes of every gradient and loss of three updates of two micro-batches
// each, the last of them of another shape.
struct Bytes {
  std::map<std::string, std::vector<uint8_t>> gradients;
  std::vector<double> losses;
};

Bytes Train(const Backend& on, bool capture, bool frozen_language_model) {
  Allocator allocator(StreamOf(on)), host;
  MimoModelConfig config = LlavaModelConfig(Tiny());
  config.freeze_language_model = frozen_language_model;
  auto model = MimoModel::Build(
      config, BuiltinModules(),
      {.allocator = &allocator, .dtype = on.dtype, .seed = 11});
  CHECK_OK(model.status());
  MimoStage stage(**model, allocator, capture);
  Bytes out;
  const MicroBatch batch = TwoSamples();
  for (int update = 0; update < 4; ++update) {
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      MicroBatch other = batch;
      // Other values of the same shape, and at last other labelled rows.
      for (float& x : other.modalities["images"].values)
        x *= 1 + 0.1f * update + micro_batch;
      if (update == 3 && micro_batch == 1)
        other.labels.assign(other.labels.size(), 5);
      const auto loss = stage.ForwardBackward(other, 0.25 + update);
      CHECK_OK(loss.status());
      out.losses.push_back(*loss);
    }
    for (Parameter* p : stage.Parameters()) {
      if (p->frozen) continue;
      const Tensor grad = p->Grad().Clone(host);
      const uint8_t* bytes = static_cast<const uint8_t*>(grad.data());
      std::vector<uint8_t>& all = out.gradients[p->name];
      all.insert(all.end(), bytes, bytes + grad.bytes());
      p->ForgetGrad();
    }
  }
  return out;
}

TEST_P(MimoStageTest, CapturedWorkIsBitwiseTheEager) {
  for (bool frozen : {false, true}) {
    const Bytes eager = Train(backend(), false, frozen);
    const Bytes captured = Train(backend(), true, frozen);
    EXPECT_EQ(captured.losses, eager.losses);
    EXPECT_FALSE(eager.gradients.empty());
    for (const auto& [name, bytes] : eager.gradients)
      EXPECT_EQ(captured.gradients.at(name), bytes) << name;
  }
}

TEST_P(MimoStageTest, SameAgain) {
  const Bytes one = Train(backend(), true, false);
  const Bytes two = Train(backend(), true, false);
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_EQ(one.gradients, two.gradients);
}

}  // namespace
}  // namespace mimo
