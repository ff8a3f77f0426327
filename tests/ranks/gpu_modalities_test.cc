// Two modalities over NCCL, whose groups wait for each other on a GPU's
// streams.
#include <cstdlib>
#include <string>

#include "absl/log/check.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "comm/nccl/nccl_communicator.h"
#include "comm/testing/gpus.h"
#include "comm/testing/rank_processes.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "tests/ranks/modalities.h"

namespace mimo {
namespace {

ModalitiesRun RunOf(int layout, bool frozen, const std::string& folder) {
  ModalitiesRun run = {TwoModalities(), Layouts()[layout].Config(), folder};
  run.model.freeze_modality_encoders["images"] = frozen;
  return run;
}

// Of $LAYOUT, the images' encoder frozen if $FROZEN is 1, into $FOLDER.
absl::Status TrainBody(const Job& job, Store& store) {
  int layout = 0;
  CHECK(absl::SimpleAtoi(std::getenv("LAYOUT"), &layout));
  MIMO_ASSIGN_OR_RETURN(const auto world, ConnectNccl(OnGpu(job), store));
  return TrainRank(
      RunOf(layout, std::getenv("FROZEN")[0] == '1', std::getenv("FOLDER")),
      *world, NewStream(Device::kCuda));
}

TEST(GpuModalities, TwoTrainAsOnOneRank) {
  SKIP_BELOW_GPUS(2);
  for (const bool frozen : {false, true}) {
    const Trained one =
        TrainOn(RunOf(0, frozen, "").model, Layouts()[0].Config(), 1);
    ASSERT_EQ(one.metrics.size(), 8u);
    for (size_t layout = 1; layout < Layouts().size(); ++layout) {
      SCOPED_TRACE(absl::StrCat("layout ", layout, frozen ? ", frozen" : ""));
      const std::string folder = TestFolder("gpus");
      RankProcesses ranks(
          Layouts()[layout].ranks, "train",
          {absl::StrCat("LAYOUT=", layout), absl::StrCat("FROZEN=", frozen),
           "FOLDER=" + folder});
      const absl::Status status = ranks.Wait(absl::Seconds(60));
      ASSERT_TRUE(status.ok()) << status;
      ExpectNear(Left(RunOf(layout, frozen, folder)), one);
    }
  }
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"train", mimo::TrainBody}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
