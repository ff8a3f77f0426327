// ProvideDistributedModel: its order, its hooks, and what is wrapped.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/bfloat16.h"
#include "kernels/testing/backend.h"
#include "models/infra/recording_world.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;

MimoModelProvider Provider(
    std::optional<MimoParallelismConfig> parallelism = {}) {
  MimoModelProvider provider(BuiltinModules(), LlavaModelConfig(Tiny()),
                             std::move(parallelism));
  provider.dtype = DType::kFloat32;
  provider.seed = 11;
  return provider;
}

const DistributedModelOptions kWrapped{.ddp_config = DataParallelOptions()};

class DistributedModelTest : public ::testing::Test {
 protected:
  Allocator allocator_;
};

TEST_F(DistributedModelTest, Refusals) {
  MimoModelProvider provider = Provider();
  EXPECT_EQ(
      provider.ProvideDistributedModel(nullptr, allocator_).status().message(),
      "ddp_config is required when wrap_with_ddp is True");
  const auto fsdp = provider.ProvideDistributedModel(
      nullptr, allocator_, {.wrap_with_ddp = false, .use_fsdp = true});
  EXPECT_EQ(fsdp.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(fsdp.status().message(), "FSDP is not yet supported");
  DistributedModelOptions half = kWrapped;
  half.dtype = DType::kFloat16;
  const auto fp16 = provider.ProvideDistributedModel(nullptr, allocator_, half);
  EXPECT_EQ(fp16.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(fp16.status().message(),
              ::testing::StartsWith("dtype: float16, wanted bfloat16"));
  provider.pre_wrap_hooks = {[](std::unique_ptr<MimoModel>& model) {
    model.reset();
    return absl::OkStatus();
  }};
  EXPECT_EQ(provider.ProvideDistributedModel(nullptr, allocator_, kWrapped)
                .status()
                .message(),
            "a pre-wrap hook left no model, wanted exactly one");
  provider.pre_wrap_hooks = {[](std::unique_ptr<MimoModel>&) {
    return absl::NotFoundError("no weights");
  }};
  EXPECT_EQ(provider.ProvideDistributedModel(nullptr, allocator_, kWrapped)
                .status()
                .message(),
            "no weights");
}

// Infra, model (in host memory, float32, frozen), pre-wrap hooks, device and
// dtype, data parallelism, post-wrap hooks.
TEST_F(DistributedModelTest, Order) {
  MimoModelProvider provider = Provider();
  provider.model.freeze_language_model = true;
  std::vector<std::string> calls;
  provider.pre_wrap_hooks = {[&](std::unique_ptr<MimoModel>& model) {
    calls.push_back("pre");
    EXPECT_EQ(model->dtype(), DType::kFloat32);
    EXPECT_FALSE(model->language_model().Trainable());
    return absl::OkStatus();
  }};
  provider.post_wrap_hooks = {[&](DistributedModel& distributed) {
    calls.push_back("post");
    EXPECT_EQ(distributed.model->dtype(), DType::kBFloat16);
    EXPECT_FALSE(distributed.model->language_model().Trainable());
    EXPECT_NE(distributed.data_parallel, nullptr);
    return absl::OkStatus();
  }};
  DistributedModelOptions options = kWrapped;
  options.dtype = DType::kBFloat16;  // in place of the provider's
  const auto provided =
      provider.ProvideDistributedModel(nullptr, allocator_, options);
  ASSERT_TRUE(provided.ok()) << provided.status();
  EXPECT_THAT(calls, ElementsAre("pre", "post"));
  EXPECT_NE(provided->model, nullptr);
}

class HookedValuesTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(
    On, HookedValuesTest,
    testing::Values(Backend{Device::kCpu, DType::kFloat32},
                    Backend{Device::kCpu, DType::kBFloat16},
                    Backend{Device::kCuda, DType::kFloat32},
                    Backend{Device::kCuda, DType::kBFloat16}),
    BackendName);

// What a hook leaves in the host's memory is what the device trains.
TEST_P(HookedValuesTest, GoToTheDeviceAndItsDtype) {
  Allocator memory(StreamOf(backend())), host;
  MimoModelProvider provider = Provider();
  provider.dtype = backend().dtype;
  provider.model.freeze_language_model = true;
  std::map<std::string, std::vector<float>> left;  // frozen ones too
  provider.pre_wrap_hooks = {[&](std::unique_ptr<MimoModel>& model) {
    for (Parameter* p : model->Parameters()) {
      const auto values = p->data.span<float>();
      values[0] = 3;
      left[p->name] = {values.begin(), values.end()};
    }
    return absl::OkStatus();
  }};
  const auto provided = provider.ProvideDistributedModel(
      nullptr, memory, {.wrap_with_ddp = false});
  ASSERT_TRUE(provided.ok()) << provided.status();
  const std::vector<Parameter*> found = provided->model->Parameters();
  EXPECT_EQ(found.size(), left.size());
  for (const Parameter* p : found) {
    EXPECT_EQ(p->data.device(), backend().device);
    ASSERT_EQ(p->data.dtype(), backend().dtype);
    EXPECT_EQ(p->main_grad.defined(), !p->frozen) << p->name;
    const Tensor on_host = p->data.Clone(host);
    const std::vector<float>& wanted = left.at(p->name);
    ASSERT_EQ(on_host.numel(), static_cast<int64_t>(wanted.size()));
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (backend().dtype == DType::kFloat32) {
        ASSERT_EQ(on_host.span<float>()[i], wanted[i]) << p->name;
      } else {
        ASSERT_EQ(on_host.span<BFloat16>()[i].bits, BFloat16(wanted[i]).bits)
            << p->name;
      }
    }
  }
}

// Built at once where it runs, or in host memory for a hook to see.
TEST_F(DistributedModelTest, AHookThatLooksChangesNothing) {
  MimoModelProvider provider = Provider();
  const auto plain =
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped);
  provider.pre_wrap_hooks = {
      [](std::unique_ptr<MimoModel>&) { return absl::OkStatus(); }};
  const auto looked_at =
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped);
  ASSERT_TRUE(plain.ok() && looked_at.ok());
  const auto wanted = plain->model->Parameters(),
             found = looked_at->model->Parameters();
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i]->name, wanted[i]->name);
    EXPECT_EQ(found[i]->frozen, wanted[i]->frozen);
    EXPECT_EQ(found[i]->data.span<float>(), wanted[i]->data.span<float>());
  }
}

TEST_F(DistributedModelTest, HooksAreComposedInOrderAndArgumentsWin) {
  std::string calls;
  const auto note = [&](std::string name) {
    return [&calls, name](auto&) {
      calls += name;
      return absl::OkStatus();
    };
  };
  MimoModelProvider provider = Provider();
  provider.pre_wrap_hooks = {note("a"), note("b")};
  provider.post_wrap_hooks = {note("c"), note("d")};
  ASSERT_TRUE(
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped).ok());
  EXPECT_EQ(calls, "abcd");
  calls.clear();
  DistributedModelOptions options = kWrapped;
  options.pre_wrap_hooks = {{note("x")}};
  options.post_wrap_hooks.emplace();  // none
  ASSERT_TRUE(
      provider.ProvideDistributedModel(nullptr, allocator_, options).ok());
  EXPECT_EQ(calls, "x");
}

// A hook may put another model in the place of the one it gets, and that is
// what is trained.
TEST_F(DistributedModelTest, AHookMayReplaceTheModel) {
  MimoModelProvider provider = Provider();
  provider.pre_wrap_hooks = {[&](std::unique_ptr<MimoModel>& model) {
    auto another = MimoModel::Build(model->config(), BuiltinModules(),
                                    {.allocator = &allocator_, .seed = 5});
    model = *std::move(another);
    return absl::OkStatus();
  }};
  const auto provided =
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped);
  ASSERT_TRUE(provided.ok()) << provided.status();
  const auto wanted = *MimoModel::Build(provider.model, BuiltinModules(),
                                        {.allocator = &allocator_, .seed = 5});
  EXPECT_EQ(provided->model->language_model().embedding().data.span<float>(),
            wanted->language_model().embedding().data.span<float>());
}

// As with an adapter: what a hook freezes or frees is what is trained.
TEST_F(DistributedModelTest, HooksMayChangeWhatIsFrozen) {
  MimoModelProvider provider = Provider();
  provider.model.freeze_language_model = true;
  std::set<std::string> freed;
  provider.pre_wrap_hooks = {[&](std::unique_ptr<MimoModel>& model) {
    for (Parameter* p : model->Parameters()) {
      EXPECT_TRUE(p->frozen || !absl::StartsWith(p->name, "language_model"));
      p->frozen = !absl::EndsWith(p->name, "norm.weight");
      if (!p->frozen) freed.insert(p->name);
    }
    return absl::OkStatus();
  }};
  const auto provided =
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped);
  ASSERT_TRUE(provided.ok()) << provided.status();
  std::set<std::string> wrapped;
  for (const int module : {0, 1}) {
    for (const ParameterShard& shard : provided->data_parallel->shards(module))
      wrapped.insert(shard.parameter->name);
  }
  EXPECT_FALSE(freed.empty());
  EXPECT_EQ(wrapped, freed);
}

TEST_F(DistributedModelTest, WithoutWrapping) {
  const auto provided = Provider().ProvideDistributedModel(
      nullptr, allocator_, {.wrap_with_ddp = false});
  ASSERT_TRUE(provided.ok()) << provided.status();
  EXPECT_EQ(provided->data_parallel, nullptr);
}

TEST_F(DistributedModelTest, MetaModelHasShapesAlone) {
  MimoModelProvider provider = Provider();
  provider.model = LlavaModelConfig(LlavaConfig());  // LLaVA-1.5 7B
  provider.init_model_with_meta_device = true;
  int hooks = 0;
  provider.pre_wrap_hooks = {[&](std::unique_ptr<MimoModel>& model) {
    ++hooks;
    for (const Parameter* p : model->Parameters()) {
      EXPECT_GT(p->data.numel(), 0);
      EXPECT_EQ(p->data.data(), nullptr);
    }
    return absl::OkStatus();
  }};
  const auto provided =
      provider.ProvideDistributedModel(nullptr, allocator_, kWrapped);
  ASSERT_TRUE(provided.ok()) << provided.status();
  EXPECT_EQ(provided->data_parallel, nullptr);
  EXPECT_EQ(hooks, 1);
}

// Each module over its own replicas: an encoder of DP2 and a language model of
// DP1 on other ranks. Frozen parameters are in no bucket.
TEST_F(DistributedModelTest, ModulesAreWrappedWithTheirOwnGroups) {
  const auto results = RunRanks(3, [](Communicator& world) -> absl::Status {
    MimoModelProvider provider = Provider(MimoParallelismConfig{
        .deployment_mode = DeploymentMode::kHeterogeneous,
        .module_parallelisms = {
            {"images", {.data_parallel_size = 2}},
            {"language", {.data_parallel_size = 1, .rank_offset = 2}}}});
    provider.model.freeze_modality_encoders["images"] = true;
    Allocator allocator;
    const auto provided =
        provider.ProvideDistributedModel(&world, allocator, kWrapped);
    if (!provided.ok()) return provided.status();
    MimoModel& model = *provided->model;
    int64_t trainable = 0, sharded = 0;
    for (const Parameter* p : model.Parameters()) {
      EXPECT_EQ(p->name.find("language_model") == 0, world.rank() == 2);
      if (!p->frozen) trainable += p->data.numel();
    }
    for (const ParameterShard& shard : provided->data_parallel->shards(0)) {
      EXPECT_FALSE(shard.parameter->frozen);
      sharded += shard.end - shard.begin;
    }
    // All of the language model's, and one of two shards of the projection's.
    if (world.rank() == 2) {
      EXPECT_EQ(sharded, trainable);
    } else {
      EXPECT_LT(sharded, trainable);
      EXPECT_GT(sharded, 0);
    }
    return provided->data_parallel->CheckReplicas();
  });
  for (const absl::Status& status : results) EXPECT_TRUE(status.ok()) << status;
}

// A rank of a colocated deployment wraps both modules, each over its own
// replicas: two of the encoder, one of the language model.
TEST_F(DistributedModelTest, AColocatedRankWrapsEachOfItsModules) {
  const auto results = RunRanks(2, [](Communicator& world) -> absl::Status {
    MimoModelProvider provider = Provider(MimoParallelismConfig{
        .deployment_mode = DeploymentMode::kColocated,
        .module_parallelisms = {
            {"images", {.data_parallel_size = 2}},
            {"language", {.tensor_model_parallel_size = 2}}}});
    Allocator allocator;
    const auto provided =
        provider.ProvideDistributedModel(&world, allocator, kWrapped);
    if (!provided.ok()) return provided.status();
    // The language model's gradients come first.
    const std::vector<std::string> names = {"language", "images"};
    for (size_t m = 0; m < names.size(); ++m) {
      int64_t trainable = 0, sharded = 0;
      for (const Parameter* p : provided->model->module(names[m]).Parameters())
        if (!p->frozen) trainable += p->data.numel();
      for (const ParameterShard& shard : provided->data_parallel->shards(m)) {
        EXPECT_EQ(shard.parameter->name.find("language_model") == 0, m == 0);
        sharded += shard.end - shard.begin;
      }
      EXPECT_EQ(sharded < trainable, names[m] == "images");
    }
    return provided->data_parallel->CheckReplicas();
  });
  for (const absl::Status& status : results) EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
