// The losses and the weights of one rank, of two modalities.
#include "tests/ranks/modalities.h"

#include <string>

#include "gtest/gtest.h"

namespace mimo {
namespace {

TEST(Modalities, TwoTrainAsOnOneRank) {
  for (bool frozen : {false, true}) {
    MimoModelConfig model = TwoModalities();
    model.freeze_modality_encoders["images"] = frozen;
    Trained one;
    for (const LayoutCase& layout : Layouts()) {
      SCOPED_TRACE(testing::Message()
                   << &layout - Layouts().data() << (frozen ? " frozen" : ""));
      const Trained got = TrainOn(model, layout.Config(), layout.ranks);
      if (layout.ranks == 1) {
        one = got;
        ASSERT_EQ(one.metrics.size(), 8u);
      } else {
        ExpectNear(got, one);
      }
    }
  }
}

// One rank's part of one module overflows: no rank of any module updates, and
// all go on as one rank does.
TEST(Modalities, OneModulesOverflowSkipsTheUpdateOfAll) {
  const MimoModelConfig model = TwoModalities();
  for (const std::string spoilt : {"images", "sketches", "language"}) {
    const Trained one = TrainOn(model, Layouts()[0].Config(), 1, spoilt);
    ASSERT_EQ(one.metrics.size(), 8u);
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(one.metrics[i]["skipped_iterations"], i >= 3 ? 1 : 0);
      EXPECT_EQ(one.metrics[i]["grad_norm"].is_null(), i == 3);
    }
    for (int i : {1, 2, 5, 6}) {
      const LayoutCase& layout = Layouts()[i];
      SCOPED_TRACE(testing::Message() << spoilt << " " << i);
      ExpectNear(TrainOn(model, layout.Config(), layout.ranks, spoilt), one);
    }
  }
}

}  // namespace
}  // namespace mimo
