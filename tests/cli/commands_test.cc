// What each command does when all is well.
#include <sys/resource.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/open_model.h"
#include "gtest/gtest.h"
#include "mimo/data/image/codec.h"
#include "models/hf/testing.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {
namespace {

using Words = std::vector<std::string>;

// stdout of a command that succeeds without a word on stderr.
std::string Out(const Words& words) {
  const Ran ran = RunMimo(words);
  EXPECT_EQ(ran.code, 0) << absl::StrJoin(words, " ");
  EXPECT_EQ(ran.err, "") << absl::StrJoin(words, " ");
  return ran.out;
}

TEST(Commands, HelpAndVersion) {
  const std::string help = Out({"--help"});
  EXPECT_EQ(Out({"-h"}), help);
  for (const std::string command : {"train", "launch", "evaluate", "generate",
                                    "forward", "convert", "plan"}) {
    EXPECT_TRUE(absl::StrContains(help, "\n  " + command)) << command;
    const std::string usage = Out({command, "--help"});
    EXPECT_TRUE(absl::StrContains(usage, "usage: mimo " + command + " "))
        << usage;
    EXPECT_TRUE(absl::StrContains(usage, "\n  --")) << usage;
    // Lines fit a terminal.
    for (absl::string_view line : absl::StrSplit(usage, '\n')) {
      EXPECT_LE(line.size(), 80) << line;
    }
  }
  EXPECT_TRUE(absl::StartsWith(Out({"--version"}), "mimo 0."));
}

TEST(Commands, ConvertGoesThereAndBackByteForByte) {
  for (const std::string golden : kGoldens) {
    SCOPED_TRACE(golden);
    const std::string hf = UnpackGolden(golden);
    const std::string training = TestFolder("training");
    const std::string back = TestFolder("back");
    EXPECT_EQ(Out({"convert", "--from", hf, "--to", training}), "");
    EXPECT_EQ(Out({"convert", "--from", training, "--to", back}), "");
    for (const char* name :
         {"model.safetensors", "config.json", "generation_config.json"}) {
      EXPECT_TRUE(Read(absl::StrCat(back, "/", name)) ==
                  Read(absl::StrCat(hf, "/", name)))
          << name;
    }
    // Both are the same model.
    for (const std::string& from : {hf, training}) {
      Out({"forward", "--checkpoint", from, "--inputs",
           hf + "/golden.safetensors", "--outputs", from + "/out.safetensors",
           "--grads"});
    }
    EXPECT_TRUE(Read(hf + "/out.safetensors") ==
                Read(training + "/out.safetensors"));
    // Other dtypes, by way of either.
    const std::string half = TestFolder("half");
    Out({"convert", "--from", training, "--to", half, "--dtype", "bfloat16"});
    const auto file = SafeTensors::Open(half + "/model.safetensors");
    ASSERT_TRUE(file.ok());
    for (const auto& [name, info] : file->tensors()) {
      EXPECT_EQ(info.dtype, DType::kBFloat16) << name;
    }
    EXPECT_TRUE(absl::StrContains(Read(half + "/config.json"), "bfloat16"));
  }
}

class Trained : public testing::Test {
 protected:
  // Learns the fixtures by heart.
  static void SetUpTestSuite() {
    folder_ = testing::TempDir() + "/trained";
    std::filesystem::remove_all(folder_);
    const Ran ran = RunMimo(TinyTrain(
        folder_, {"train.train_iters=150", "optimizer.lr_decay_iters=150",
                  "optimizer.lr=1e-2", "data.augment=false",
                  "train.micro_batch_size=13", "train.global_batch_size=13"}));
    ASSERT_EQ(ran.code, 0) << ran.err;
  }
  static Words GenerateWords(const std::string& image) {
    return {"generate", "--checkpoint", folder_ + "/save",        "--image",
            image,      "--prompt",     "What is in the picture?"};
  }
  static inline std::string folder_;
};

TEST_F(Trained, LearnsAndSays) {
  const auto metrics = ReadMetrics(folder_ + "/metrics.jsonl");
  ASSERT_EQ(metrics.size(), 150);
  EXPECT_LT(metrics.back()["lm_loss"],
            0.2 * metrics[0]["lm_loss"].get<double>());
  const Words words = GenerateWords("tests/fixtures/images/flag_jp.png");
  const std::string greedy = Out(words);
  EXPECT_TRUE(absl::EndsWith(greedy, "\n"));
  EXPECT_EQ(Out(words), greedy);
  Words none = words;
  none.insert(none.end(), {"--max-new-tokens", "0"});
  EXPECT_EQ(Out(none), "\n");
  Words one = words;  // top-k 1 is greedy at any temperature
  one.insert(one.end(), {"--temperature", "9", "--top-k", "1"});
  EXPECT_EQ(Out(one), greedy);

  std::set<std::string> said;
  for (const char* seed : {"1", "2", "3", "4"}) {
    Words sampled = words;
    sampled.insert(sampled.end(), {"--temperature", "5", "--seed", seed});
    said.insert(Out(sampled));
    EXPECT_TRUE(said.contains(Out(sampled))) << "the same seed, another text";
  }
  EXPECT_GT(said.size(), 1) << "another seed, the same text";
}

TEST_F(Trained, EvaluateCountsWhatGenerateSays) {
  const Words words = {"evaluate",
                       "--config",
                       folder_ + "/config.yaml",
                       "--checkpoint",
                       folder_ + "/save",
                       "data.validation_path=tests/fixtures/captions.jsonl"};
  Words json = words;
  json.push_back("--json");
  const auto line = nlohmann::json::parse(Out(json));
  EXPECT_EQ(line["split"], "validation");
  // The loss is that of the trained weights: at most the last one trained on.
  EXPECT_LT(line["lm_loss"], 1.1 * ReadMetrics(folder_ + "/metrics.jsonl")
                                       .back()["lm_loss"]
                                       .get<double>());
  int64_t right = 0, asked = 0;
  for (absl::string_view text : absl::StrSplit(
           Read("tests/fixtures/captions.jsonl"), '\n', absl::SkipEmpty())) {
    const auto item = nlohmann::json::parse(text);
    const std::string answer = item["conversations"][1]["value"];
    right +=
        Out(GenerateWords("tests/fixtures/" +
                          item["image"].get<std::string>())) == answer + "\n";
    ++asked;
  }
  EXPECT_GT(right, 0);
  EXPECT_EQ(line["answer_exact_match"].get<double>(),
            static_cast<double>(right) / asked);
  Words gone = json;  // the training pictures, which tables alone look at
  gone.push_back("data.path=" + Write(TestFolder("gone") + "/data.jsonl",
                                      Read("tests/fixtures/captions.jsonl")));
  EXPECT_EQ(Out(gone), Out(json));

  const std::string sheet = TestFolder("sheet") + "/sheet.png";
  Words table = words;
  table.insert(table.end(), {"--contact-sheet", sheet, "--cells", "5"});
  const std::string text = Out(table);
  for (const char* part : {"validation: lm_loss", "question", "asked", "exact",
                           "chance", "majority", "nearest", "answer"}) {
    EXPECT_TRUE(absl::StrContains(text, part)) << part << " in " << text;
  }
  EXPECT_TRUE(absl::StrContains(text, absl::StrCat(" ", asked, " "))) << text;
  const auto picture = ReadImage(sheet);
  ASSERT_TRUE(picture.ok()) << picture.status();
  const std::set<uint8_t> shades(picture->pixels.begin(),
                                 picture->pixels.end());
  EXPECT_GT(shades.size(), 20) << "pictures have many shades";
}

TEST_F(Trained, PlanCountsTheRealModel) {
  const auto plan = nlohmann::json::parse(
      Out({"plan", "--config", folder_ + "/config.yaml", "--json",
           "model.freeze_modality_encoders.images=true"}));
  const auto opened = OpenModel(folder_ + "/save", {Stream(), DType::kFloat32},
                                BuiltinModules());
  ASSERT_TRUE(opened.ok()) << opened.status();
  int64_t all = 0, vision = 0;
  for (const Parameter* p : opened->model->Parameters()) {
    all += p->data.numel();
    if (absl::StartsWith(p->name, kVision)) vision += p->data.numel();
  }
  EXPECT_EQ(plan["total"]["parameters"], all);
  EXPECT_EQ(plan["total"]["trainable"], all - vision);
  EXPECT_EQ(plan["memory"]["ranks"][0]["weights"], 4 * all);
  EXPECT_EQ(plan["memory"]["ranks"][0]["gradients"], 4 * (all - vision));
  EXPECT_EQ(plan["memory"]["ranks"][0]["optimizer"], 8 * (all - vision));
  int64_t sum = 0;
  for (const auto& [name, module] : plan["modules"].items()) {
    int64_t of_parts = 0;
    for (const auto& [part, count] : module["parts"].items()) {
      of_parts += count["parameters"].get<int64_t>();
      if (absl::StrContains(part, "clip_encoder")) {
        EXPECT_EQ(count["parameters"], vision);
        EXPECT_EQ(count["trainable"], 0);
      }
    }
    EXPECT_EQ(module["parameters"], of_parts);
    sum += of_parts;
  }
  EXPECT_EQ(sum, all);
  EXPECT_EQ(plan["micro_batches"], 2);
}

TEST(Commands, TrainWritesAProfile) {
  const std::string folder = TestFolder("run");
  Words words = TinyTrain(folder, {"checkpoint.save=null"});
  words.insert(words.end(), {"--profile", folder + "/trace.json"});
  EXPECT_EQ(RunMimo(words).code, 0);
  const auto trace = nlohmann::json::parse(Read(folder + "/trace.json"));
  std::set<std::string> names;
  for (const auto& event : trace["traceEvents"]) names.insert(event["name"]);
  EXPECT_TRUE(names.contains("forward") && names.contains("backward"));
}

TEST(Commands, PlanOfSevenBillionTakesNoMemory) {
  const std::string config =
      Write(TestFolder("plan") + "/config.yaml", "model: {type: llava}\n");
  const auto plan =
      nlohmann::json::parse(Out({"plan", "--config", config, "--json"}));
  // Vicuna-7B of 32256 tokens: embedding and head; 32 layers of four square
  // matrices, three of 4096 x 11008, two norms; the last norm.
  const int64_t h = 4096, f = 11008, v = 32256;
  const int64_t language = 2 * v * h + 32 * (4 * h * h + 3 * h * f + 2 * h) + h;
  EXPECT_EQ(plan["modules"]["language"]["parameters"], language);
  // CLIP ViT-L/14 of 336 pixels, 24 layers, and LLaVA-1.5's projector.
  const int64_t d = 1024, g = 4096;
  const int64_t vision = d + 3 * 14 * 14 * d + (24 * 24 + 1) * d + 4 * d +
                         24 * (4 * (d * d + d) + 2 * d * g + g + d + 4 * d);
  const int64_t projector = d * h + h + h * h + h;
  EXPECT_EQ(plan["total"]["parameters"], language + vision + projector);
  rusage usage;
  ASSERT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  EXPECT_LT(usage.ru_maxrss, int64_t{2} << 20) << "KiB; the weights are 28 GB";
  EXPECT_TRUE(
      absl::StrContains(Out({"plan", "--config", config}), "language_model"));
}

}  // namespace
}  // namespace mimo
