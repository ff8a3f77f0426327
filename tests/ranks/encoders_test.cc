// `mimo train --ranks N` of a model that looks at pictures with two encoders:
// the losses and the weights of one rank.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

TEST(Encoders, TwoTrainAsOnOneRank) {
  for (const char* frozen :
       {"", "  freeze_modality_encoders: {images: true}"}) {
    const auto train = [&](const Layout& layout) {
      return TrainOn(TestFolder("run"), layout, 2, frozen, {}, kTwoEncoders);
    };
    const Trained wanted = train(kOneRank);
    for (const Layout& layout :
         std::vector<Layout>{{"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
                             {"colocated", 4, "dp4", "tp2 cp2"},
                             {"colocated", 4, "tp2 dp2 sp", "pp2 dp2"},
                             {"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
                             {"heterogeneous", 5, "dp2", "dp3 @2"},
                             {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"},
                             {"heterogeneous", 3, "dp2", "dp2 @1"}}) {
      SCOPED_TRACE(absl::StrCat(layout.Yaml(), frozen));
      ExpectNear(train(layout), wanted);
    }
  }
}

}  // namespace
}  // namespace mimo
