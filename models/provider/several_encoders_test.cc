// Models of two encoders under layouts of in-process ranks: of one modality, or
// each of its own. What each rank computes is what one rank does.
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "models/provider/encoders_testing.h"
#include "models/provider/layout_testing.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;

Module Sp(Module module) {
  module.sequence_parallel = true;
  return module;
}

TEST(SeveralEncoders, OfOneModality) {
  const std::vector<LayoutCase> layouts = {
      {kHomogeneous, 3, {{"images", Sizes(1, 3)}, {"language", Sizes(1, 3)}}},
      {kHomogeneous,
       4,
       {{"images", Cp(2, Sizes(2, 1))}, {"language", Cp(2, Sizes(2, 1))}}},
      {kColocated, 6, {{"images", Sizes(1, 6)}, {"language", Sizes(2, 3)}}},
      {kColocated, 6, {{"images", Sizes(3, 2)}, {"language", Sizes(1, 6)}}},
      {kColocated,
       4,
       {{"images", Sp(Sizes(2, 2))}, {"language", Sizes(1, 2, 0, 2)}}},
      {kHeterogeneous,
       5,
       {{"images", Sizes(1, 2)}, {"language", Sizes(1, 3, 2)}}},
      {kHeterogeneous,
       4,
       {{"images", Sizes(2, 1)}, {"language", Sizes(1, 1, 2, 2)}}},
      {kHeterogeneous,
       3,
       {{"images", Sizes(1, 2)}, {"language", Sizes(1, 2, 1)}}},
      // Each encoder's layers over the stages.
      {kHomogeneous,
       4,
       {{"images", Sp(Sizes(2, 1, 0, 2))},
        {"language", Sp(Sizes(2, 1, 0, 2))}}},
      {kHeterogeneous,
       5,
       {{"images", Sizes(1, 1, 0, 3)}, {"language", Sizes(1, 2, 3)}}},
      {kHeterogeneous,
       8,
       {{"images", Sp(Sizes(3, 1, 2, 2))}, {"language", Sizes(1, 1, 0, 2)}}},
  };
  for (const LayoutCase& layout : layouts) {
    for (bool projection_each : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << &layout - layouts.data() << " " << projection_each);
      Trial trial{.model = TwoEncoders(projection_each),
                  .micro_batches = {Samples({kItemsOfBothEncoders})}};
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
      // Text alone between images, in several micro-batches.
      trial.micro_batches = {Samples({kItemsOfBothEncoders}), Samples({}),
                             Samples({kItemsOfBothEncoders})};
      trial.model.freeze_modality_encoders["images"] = projection_each;
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
    }
  }
}

TEST(SeveralEncoders, OfTheirOwnModalities) {
  const Module stages = Sizes(1, 1, 0, 2);
  const std::vector<LayoutCase> layouts = {
      {kHomogeneous,
       3,
       {{"images", Sizes(1, 3)},
        {"sketches", Sizes(1, 3)},
        {"language", Sizes(1, 3)}}},
      {kHomogeneous,
       4,
       {{"images", Cp(2, Sizes(2, 1))},
        {"sketches", Cp(2, Sizes(2, 1))},
        {"language", Cp(2, Sizes(2, 1))}}},
      {kHomogeneous,
       2,
       {{"images", stages}, {"sketches", stages}, {"language", stages}}},
      {kColocated,
       6,
       {{"images", Sizes(1, 6)},
        {"sketches", Sizes(3, 2)},
        {"language", Sizes(2, 3)}}},
      {kColocated,
       4,
       {{"images", Sizes(1, 4)},
        {"sketches", Sp(Sizes(2, 2))},
        {"language", Sizes(2, 1, 0, 2)}}},
      {kColocated,
       4,
       {{"images", Cp(2, Sizes(1, 2))},
        {"sketches", Sizes(2, 2)},
        {"language", Cp(2, Sizes(2, 1))}}},
      {kColocated,
       4,
       {{"language", Sizes(2, 2)},
        {"sketches", Sizes(1, 4)},
        {"images", Sizes(2, 2)}}},
      // A span for each, and as many replicas as no other has.
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 3, 3)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 2, 4)},
        {"sketches", Sizes(2, 1, 2)},
        {"language", Sizes(1, 1, 0, 2)}}},
      // One deeper than the other and than the language model.
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 1, 1, 3)},
        {"language", Sizes(1, 1, 4, 2)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1, 0, 4)},
        {"sketches", Sizes(1, 1, 4)},
        {"language", Sizes(1, 1, 5)}}},
      // One span for both.
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(2, 1)},
        {"language", Sizes(1, 1, 2, 2)}}},
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(1, 1, 0, 2)},
        {"language", Sizes(2, 1, 2)}}},
      // In part that of the other, or the language model's.
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 2, 2)}}},
      {kHeterogeneous,
       3,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 3)}}},
  };
  const auto frozen = [](int i) {
    MimoModelConfig model = TwoModalities();
    if (i == 1) model.freeze_modality_encoders["images"] = true;
    if (i == 2) {
      model.freeze_modality_encoders["sketches"] = true;
      model.freeze_modality_projections["sketches"] = true;
    }
    if (i == 3) {
      model.freeze_language_model = true;
      model.freeze_modality_encoders["sketches"] = true;
    }
    return model;
  };
  // Both, either or none in a micro-batch.
  const auto both = Samples({kImageItems, kSketchItems}), none = Samples({});
  const auto images = Samples({kImageItems}),
             sketches = Samples({kSketchItems});
  // Items of one kind in the first sample alone: other replicas have none.
  const auto first = [](ItemKind kind) {
    kind.items.assign(kSamples, 0);
    kind.items[0] = 1;
    return kind;
  };
  const auto few_images = Samples({first(kImageItems), kSketchItems});
  const auto few_sketches = Samples({kImageItems, first(kSketchItems)});
  for (const LayoutCase& layout : layouts) {
    const int i = &layout - layouts.data();
    SCOPED_TRACE(i);
    const Trial trials[] = {
        {.model = frozen(0), .micro_batches = {both, few_images}},
        {.model = frozen(0), .micro_batches = {both, few_sketches}},
        {.model = frozen(0), .micro_batches = {both}},
        {.model = frozen(0), .micro_batches = {images}},
        {.model = frozen(0), .micro_batches = {sketches, none, both, images}},
        {.model = frozen(1 + i % 3),
         .micro_batches = {both, images, none, sketches, both}},
        {.model = frozen(1 + (i + 1) % 3),
         .micro_batches = {none, sketches},
         .run_ahead = 2},
    };
    for (const Trial& trial : trials) {
      SCOPED_TRACE(&trial - trials);
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
    }
  }
}

}  // namespace
}  // namespace mimo
