// Random layouts of random trainings: what one rank makes of them.
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

// A model, data and a training of it, of one to three updates.
struct Job {
  bool two_encoders, tied, text_only;
  size_t frozen;
  int micro_batches, updates;

  explicit Job(std::mt19937& bits)
      : two_encoders(Pick(bits, {0, 0, 0, 1})),
        tied(Pick(bits, {0, 1})),
        text_only(Pick(bits, {0, 0, 0, 0, 0, 0, 0, 1})),
        frozen(Pick(bits, {0, 0, 0, 1, 2, 3, 4, 5})),
        micro_batches(Pick(bits, {1, 2, 3})),
        updates(Pick(bits, {1, 1, 2, 3})) {}
  std::string Text() const {
    return absl::StrCat(two_encoders ? "two encoders, " : "",
                        tied ? "tied, " : "", text_only ? "text, " : "",
                        micro_batches, " micro-batches, ", updates, " updates ",
                        FrozenParts()[frozen]);
  }
  // Float64's sums are alike in any order. Float32: of one update.
  Trained Run(const std::string& name, const Layout& layout, bool float64,
              Words overrides = {}) const {
    const std::string folder = TestFolder(name);
    overrides.insert(
        overrides.end(),
        {absl::StrCat("train.train_iters=", float64 ? updates : 1),
         absl::StrCat("train.dtype=", float64 ? "float64" : "float32"),
         absl::StrCat("model.language.tie_word_embeddings=",
                      tied ? "true" : "false")});
    if (text_only) {
      WriteSamples(folder + "/text.jsonl", {0});
      overrides.push_back("data.path=" + folder + "/text.jsonl");
    }
    // Two encoders have a projection each, to be frozen with both.
    return TrainOn(folder, layout, micro_batches, FrozenParts()[frozen],
                   overrides, two_encoders ? kTwoEncoders : kLlava);
  }
};

// Losses within `loss` of the wanted ones, relatively, and each first moment
// within `moment` of its own and `all` of all moments' norms.
void ExpectGradientsNear(const Trained& got, const Trained& wanted, double loss,
                         double moment, double all) {
  ExpectNear(got, wanted, loss);
  double norms = 0;
  for (const auto& [name, values] : wanted.optimizer)
    if (absl::StartsWith(name, "exp_avg.")) norms += Norm(values);
  for (const auto& [name, values] : wanted.optimizer) {
    const auto found = got.optimizer.find(name);
    ASSERT_TRUE(found != got.optimizer.end()) << name;
    ASSERT_EQ(found->second.size(), values.size()) << name;
    if (!absl::StartsWith(name, "exp_avg.")) continue;
    std::vector<double> difference(values.size());
    for (size_t k = 0; k < values.size(); ++k)
      difference[k] = found->second[k] - values[k];
    EXPECT_LE(Norm(difference), moment * Norm(values) + all * norms) << name;
  }
}

// Random layouts of random jobs, at times packed, with some activation
// checkpointing. After one update the moments are the gradients.
TEST(RandomLayouts, HaveTheGradientsOfOneRank) {
  const int seed = Seed();
  std::mt19937 bits(seed);
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  const std::vector<std::string> kept = {"off", "selective", "full"};
  std::map<std::pair<std::string, bool>, Trained> wanted;
  for (int i = 0; i < 200; ++i) {
    const Job job(bits);
    const Layout layout = RandomLayout(bits);
    const Words how = {
        "model.language.recompute=" + kept[Pick(bits, {0, 1, 2})],
        absl::StrCat(
            "model.",
            job.two_encoders ? "modalities.images.encoders.wide" : "vision",
            ".recompute=", kept[Pick(bits, {0, 1, 2})]),
        absl::StrCat("train.pack_sequences=",
                     Pick(bits, {0, 0, 1}) ? "true" : "false")};
    SCOPED_TRACE(absl::StrCat(i, " ", layout.Yaml(), job.Text(), "\n",
                              absl::StrJoin(how, "\n")));
    for (bool float64 : {true, false}) {
      const auto [at, first] = wanted.try_emplace({job.Text(), float64});
      const Trained& one = at->second;
      if (first) at->second = job.Run("one", kOneRank, float64);
      const Trained got = job.Run("many", layout, float64, how);
      if (float64) {  // read as float32
        ExpectGradientsNear(got, one, 1e-9, 1e-7, 1e-10);
      } else {
        ExpectGradientsNear(got, one, 1e-5, 1e-4, 1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace mimo
