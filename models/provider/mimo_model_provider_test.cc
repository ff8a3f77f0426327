// Finalize, BuildInfra and Provide, on worlds that note what is asked of them.
#include "models/provider/mimo_model_provider.h"

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/infra/recording_world.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Module = ModuleParallelismConfig;

// Encoder TP2 DP2 on ranks 0 to 3, language model TP2 DP2 on 4 to 7.
MimoParallelismConfig TwoSpans() {
  const Module two{.tensor_model_parallel_size = 2, .data_parallel_size = 2};
  MimoParallelismConfig config{
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {{"images", two}, {"language", two}}};
  config.module_parallelisms[1].second.rank_offset = 4;
  return config;
}

LlavaConfig TinyOfFourHeads() {
  LlavaConfig config = Tiny();
  config.vision.num_attention_heads = 2;
  return config;
}

MimoModelProvider Provider(
    std::optional<MimoParallelismConfig> parallelism = TwoSpans(),
    MimoModelConfig model = LlavaModelConfig(TinyOfFourHeads())) {
  return MimoModelProvider(BuiltinModules(), std::move(model),
                           std::move(parallelism));
}

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

class ProviderTest : public ::testing::Test {
 protected:
  BuildContext build() {
    return {.allocator = &allocator_, .dtype = DType::kFloat64, .seed = 11};
  }
  Allocator allocator_;
};

TEST_F(ProviderTest, Defaults) {
  const MimoModelProvider provider(BuiltinModules(), {});
  EXPECT_TRUE(provider.model == MimoModelConfig());
  EXPECT_FALSE(provider.parallelism.has_value());
  EXPECT_EQ(provider.dtype, DType::kBFloat16);
  EXPECT_FALSE(provider.init_model_with_meta_device);
  EXPECT_THAT(provider.pre_wrap_hooks, IsEmpty());
  EXPECT_THAT(provider.post_wrap_hooks, IsEmpty());
}

TEST_F(ProviderTest, SizesAreTheLanguageModules) {
  MimoModelProvider provider = Provider(std::nullopt);
  EXPECT_EQ(provider.tensor_model_parallel_size(), 1);
  EXPECT_EQ(provider.pipeline_model_parallel_size(), 1);
  EXPECT_EQ(provider.context_parallel_size(), 1);
  provider.parallelism = TwoSpans();
  provider.parallelism->module_parallelisms[1].second = {
      .tensor_model_parallel_size = 2,
      .pipeline_model_parallel_size = 3,
      .context_parallel_size = 4};
  EXPECT_EQ(provider.tensor_model_parallel_size(), 2);
  EXPECT_EQ(provider.pipeline_model_parallel_size(), 3);
  EXPECT_EQ(provider.context_parallel_size(), 4);
}

TEST_F(ProviderTest, InitializeModelParallelRefusesWithAReason) {
  const absl::Status status = Provider().InitializeModelParallel();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(status), HasSubstr("global parallel state"));
}

TEST_F(ProviderTest, FinalizeErrors) {
  MimoModelProvider provider = Provider(TwoSpans(), {});
  EXPECT_EQ(Message(provider.Finalize(8)),
            "language_model_spec must be set before calling provide()");
  provider = Provider();
  provider.parallelism->module_parallelisms[0].first = "audios";
  EXPECT_EQ(Message(provider.Finalize(8)),
            "modules: module_to_grid_map keys must match modality module names "
            "+ 'language': missing [images], extra [audios]");
  provider = Provider();
  provider.parallelism->module_parallelisms[1].first = "llm";
  EXPECT_THAT(Message(provider.Finalize(8)),
              HasSubstr("'language' must be in"));
  provider = Provider();
  EXPECT_THAT(Message(provider.Finalize(9)), HasSubstr("world size mismatch"));
  EXPECT_THAT(Message(provider.Finalize(9)), HasSubstr("do not participate"));
  provider = Provider();
  provider.parallelism->special_token_ids["images"] = 5;
  EXPECT_EQ(Message(provider.Finalize(8)),
            "special_token_ids.images: 5, wanted the model's 31");
  provider.parallelism->special_token_ids["images"] = kImageToken;
  EXPECT_TRUE(provider.Finalize(8).ok());
}

TEST_F(ProviderTest, TopologyOverrideIsChecked) {
  MimoModelProvider provider = Provider();
  provider.parallelism->topology = {{"images", {"language"}},
                                    {"language", {"images"}}};
  RecordingWorld world(0, 8);
  EXPECT_THAT(Message(provider.BuildInfra(&world).status()),
              HasSubstr("cycle images -> language -> images"));
  EXPECT_THAT(world.splits(), IsEmpty());  // no group was made
  provider.parallelism->topology = {{"images", {}}, {"language", {}}};
  const auto infra = provider.BuildInfra(&world);
  ASSERT_TRUE(infra.ok()) << infra.status();
  EXPECT_EQ((*infra)->topology,
            (ModuleTopology{{"images", {}}, {"language", {}}}));
}

TEST_F(ProviderTest, InfraWithoutParallelism) {
  MimoModelProvider provider = Provider(std::nullopt);
  const auto infra = provider.BuildInfra(nullptr);
  ASSERT_TRUE(infra.ok()) << infra.status();
  EXPECT_THAT((*infra)->module_to_grid_map, IsEmpty());
  EXPECT_THAT((*infra)->pg_collections, IsEmpty());
  EXPECT_THAT((*infra)->participating_modules, IsEmpty());
  EXPECT_EQ((*infra)->topology,
            (ModuleTopology{{"images", {"language"}}, {"language", {}}}));
  EXPECT_EQ((*infra)->module_output_ndim,
            (std::map<std::string, int>{{"images", 2}, {"language", 3}}));
  EXPECT_EQ(*provider.BuildInfra(nullptr), *infra);
  provider.model.modality_submodules_spec["audios"] = {};
  EXPECT_EQ(provider.BuildInfra(nullptr).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ProviderTest, ParallelismNeedsTheWorld) {
  const absl::Status status = Provider().BuildInfra(nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status),
              HasSubstr("to be initialized before finalize()"));
}

TEST_F(ProviderTest, InfraIsBuiltOnceAndItsGroupsEndWithIt) {
  RecordingWorld world(4, 8);
  {
    std::unique_ptr<MimoModel> model;
    {
      MimoModelProvider provider = Provider();
      const auto infra = provider.BuildInfra(&world);
      ASSERT_TRUE(infra.ok()) << infra.status();
      EXPECT_THAT((*infra)->participating_modules, ElementsAre("language"));
      EXPECT_EQ((*infra)->pg_collections.at("images"), nullptr);
      const size_t groups = world.splits().size();
      EXPECT_GT(groups, 0u);
      auto provided = provider.Provide(&world, build());
      ASSERT_TRUE(provided.ok()) << provided.status();
      EXPECT_EQ(*provider.BuildInfra(&world), *infra);
      EXPECT_EQ(world.splits().size(), groups);
      model = *std::move(provided);
      RecordingWorld another(4, 8);
      EXPECT_EQ(provider.BuildInfra(&another).status().code(),
                absl::StatusCode::kFailedPrecondition);
      const MimoParallelismConfig first = *provider.parallelism;
      for (const auto change : std::vector<void (*)(MimoModelProvider&)>{
               [](auto& p) { p.parallelism->allow_idle_ranks = true; },
               [](auto& p) {
                 p.parallelism->topology = {{"images", {}}, {"language", {}}};
               },
               [](auto& p) { p.parallelism.reset(); }}) {
        change(provider);
        EXPECT_EQ(provider.BuildInfra(&world).status().code(),
                  absl::StatusCode::kFailedPrecondition);
        provider.parallelism = first;
        EXPECT_EQ(*provider.BuildInfra(&world), *infra);
      }
    }
    EXPECT_GT(world.alive(), 0);  // the model's
  }
  EXPECT_EQ(world.alive(), 0);
}

// provide() gives the model and nothing else, as it was asked for.
TEST_F(ProviderTest, ProvideReturnsTheModelAlone) {
  MimoModelProvider provider = Provider(std::nullopt);
  absl::StatusOr<std::unique_ptr<MimoModel>> model =
      provider.Provide(nullptr, build());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->dtype(), DType::kFloat64);
  EXPECT_TRUE((*model)->role().HasLanguageModule());
  EXPECT_THAT((*model)->role().ModalityModuleNames(), ElementsAre("images"));
}

// Groups and stages do not enter the specs, which stay what they were.
TEST_F(ProviderTest, SpecsAreUntouched) {
  MimoModelProvider provider = Provider();
  const MimoModelConfig before = provider.model;
  for (int rank : {0, 5}) {
    RecordingWorld world(rank, 8);
    MimoModelProvider on_rank = provider;
    const auto model = on_rank.Provide(&world, build());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(on_rank.model == before);
    EXPECT_TRUE((*model)->config() == before);
    // The model has specs of its own.
    on_rank.model.language_model_spec.config.As<GptConfig>()->num_layers = 7;
    EXPECT_TRUE((*model)->config() == before);
  }
}

// A module that notes the context in which it is built.
struct NotesConfig {
  int64_t size = 24;
  template <typename V>
  void Fields(V& v) {
    v("size", size);
  }
};
std::map<std::string, BuildContext> notes;
class NotingEncoder : public ModalityEncoder {
 public:
  NotingEncoder(BuildContext build, const NotesConfig& config)
      : ModalityEncoder(build), size_(config.size) {
    notes.emplace(build.path, build);
  }
  int64_t output_size() const override { return size_; }
  absl::StatusOr<Var> Forward(const Context&, const Tensor&) const override {
    return absl::UnimplementedError("only built");
  }

 private:
  int64_t size_;
};

// An encoder of TP2, one of TP4 and a language model of TP8.
TEST_F(ProviderTest, EachModuleIsBuiltWithItsOwnGroupsAndSeed) {
  ModuleRegistry registry = BuiltinModules();
  registry.Add<NotesConfig, NotingEncoder>("noting");
  MimoModelConfig model = LlavaModelConfig(TinyOfFourHeads());
  const ModalitySpec spec{.encoders = {{"e", {"noting", NotesConfig()}}}};
  model.modality_submodules_spec = {{"audios", spec}, {"images", spec}};
  model.special_token_ids = {{"audios", 30}, {"images", 31}};
  auto* gpt = model.language_model_spec.config.As<GptConfig>();
  gpt->num_attention_heads = gpt->num_query_groups = 8;
  gpt->hidden_size = 32;
  const auto module = [](int tp, int offset) {
    return Module{.tensor_model_parallel_size = tp,
                  .data_parallel_size = 1,
                  .rank_offset = offset};
  };
  const MimoParallelismConfig parallelism{
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {{"images", module(2, 0)},
                              {"audios", module(4, 2)},
                              {"language", module(8, 6)}}};
  struct Wanted {
    int rank;
    std::string module;
    int tp_size, tp_rank;
    uint64_t rng_seed;
  };
  for (const Wanted& wanted : std::vector<Wanted>{
           {1, "images", 2, 1, 11 + 30000}, {4, "audios", 4, 2, 11 + 10000}}) {
    RecordingWorld world(wanted.rank, 14);
    MimoModelProvider provider(registry, model, parallelism);
    notes.clear();
    const auto built = provider.Provide(&world, build());
    ASSERT_TRUE(built.ok()) << built.status();
    ASSERT_EQ(notes.size(), 1u);
    const BuildContext& context = notes.begin()->second;
    EXPECT_EQ(context.path,
              "modality_submodules." + wanted.module + ".encoders.e");
    EXPECT_EQ(context.parallel.tp_size(), wanted.tp_size);
    EXPECT_EQ(context.parallel.tp_rank(), wanted.tp_rank);
    EXPECT_EQ(context.parallel.cp_size(), 1);
    EXPECT_EQ(context.seed, 11u);  // of first values: the same everywhere
    EXPECT_EQ(context.rng_seed, wanted.rng_seed);
  }
  RecordingWorld world(13, 14);
  MimoModelProvider provider(registry, model, parallelism);
  notes.clear();
  const auto language = provider.Provide(&world, build());
  ASSERT_TRUE(language.ok()) << language.status();
  EXPECT_THAT(notes, IsEmpty());
  EXPECT_FALSE((*language)->role().HasModalityModules());
  notes.clear();
}

TEST_F(ProviderTest, EqualPlacesInDifferentModulesDrawDifferently) {
  MimoModelConfig model;
  model.modality_submodules_spec = {{"a", {}}, {"b", {}}, {"c", {}}};
  EXPECT_EQ(ModuleRngSeed(1234, model, "a", 0), 1234u + 10000);
  EXPECT_EQ(ModuleRngSeed(1234, model, "", 0), 1234u + 20000);
  EXPECT_EQ(ModuleRngSeed(1234, model, "", 3), 1234u + 20000 + 300);
  for (int stage : {0, 1, 99, 100, 5000}) {
    std::set<uint64_t> seeds;
    for (const char* module : {"", "a", "b", "c"})
      seeds.insert(ModuleRngSeed(1234, model, module, stage));
    EXPECT_EQ(seeds.size(), 4u);
  }
}

TEST_F(ProviderTest, RanksOfNoModule) {
  RecordingWorld world(8, 9);
  MimoModelProvider provider = Provider();
  EXPECT_THAT(Message(provider.Provide(&world, build()).status()),
              HasSubstr("do not participate"));
  EXPECT_THAT(world.splits(), IsEmpty());
  provider.parallelism->allow_idle_ranks = true;
  const auto idle = provider.Provide(&world, build());
  ASSERT_TRUE(idle.ok()) << idle.status();
  EXPECT_NE(dynamic_cast<MimoStubModel*>(idle->get()), nullptr);
  EXPECT_THAT((*idle)->Parameters(), IsEmpty());
  EXPECT_GT(world.splits().size(), 0u);  // it took part in making the groups
  const Context ctx{.allocator = &allocator_};
  EXPECT_EQ(
      Message(
          (*idle)->Forward(ctx, *(*idle)->Prepare(ctx, TwoSamples())).status()),
      "Rank has no modules assigned");
}

// Encoder PP2 on ranks 0 and 1, the language model on 2.
TEST_F(ProviderTest, StagesOfEncoders) {
  MimoParallelismConfig parallelism = TwoSpans();
  parallelism.module_parallelisms = {
      {"images", {.pipeline_model_parallel_size = 2, .data_parallel_size = 1}},
      {"language", {.data_parallel_size = 1, .rank_offset = 2}}};
  ModuleRegistry registry = BuiltinModules();
  registry.Add<NotesConfig, NotingEncoder>("noting");
  MimoModelConfig of_one_stage = LlavaModelConfig(TinyOfFourHeads());
  of_one_stage.modality_submodules_spec["images"] = {
      .encoders = {{"e", {"noting", NotesConfig()}}}};
  for (int rank : {0, 1}) {
    RecordingWorld world(rank, 3);
    MimoModelProvider provider = Provider(parallelism);
    const auto model = provider.Provide(&world, build());
    ASSERT_TRUE(model.ok()) << model.status();
    for (const Parameter* p : (*model)->Parameters())
      EXPECT_EQ(absl::StrContains(p->name, "layers.2.") ||
                    absl::StrContains(p->name, "post_norm") ||
                    absl::StrContains(p->name, "input_projections"),
                rank == 1)
          << p->name;
    EXPECT_EQ(Message(MimoModelProvider(registry, of_one_stage, parallelism)
                          .Provide(&world, build())
                          .status()),
              "modality_submodules.images.encoders.e: "
              "pipeline_model_parallel_size: 2, wanted 1: the module has one "
              "stage");
  }
}

// Flags of a module that is on other ranks do nothing there.
TEST_F(ProviderTest, FreezingFollowsTheModules) {
  for (bool language : {false, true}) {
    for (bool encoders : {false, true}) {
      for (bool projections : {false, true}) {
        MimoModelConfig model = LlavaModelConfig(TinyOfFourHeads());
        model.freeze_language_model = language;
        model.freeze_modality_encoders["images"] = encoders;
        model.freeze_modality_projections["images"] = projections;
        for (int rank : {0, 4}) {
          RecordingWorld world(rank, 8);
          MimoModelProvider provider = Provider(TwoSpans(), model);
          const auto built = provider.Provide(&world, build());
          ASSERT_TRUE(built.ok()) << built.status();
          for (const Parameter* p : (*built)->Parameters()) {
            // CLIP's layers behind the features are never trained.
            if (absl::StrContains(p->name, "layers.2.") ||
                absl::StrContains(p->name, "post_norm"))
              continue;
            EXPECT_EQ(p->frozen,
                      rank == 4 ? language
                      : absl::StrContains(p->name, "input_projections")
                          ? projections
                          : encoders)
                << p->name;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mimo
