// Mistakes around checkpoints: damaged or of another model, data that does not
// fit the model, disks that are full, folders that cannot be written.
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "kernels/random/philox.h"
#include "models/hf/testing.h"
#include "tests/cli/mistakes.h"

namespace mimo {
namespace {

class WithCheckpoint : public Mistakes {
 protected:
  void SetUp() override {
    const std::string folder = TestFolder("trained");
    const Ran ran = RunMimo(TinyTrain(folder, {"train.train_iters=2"}));
    ASSERT_EQ(ran.code, 0) << ran.err;
    save_ = folder + "/save";
    iteration_ = save_ + "/iter_0000002";
  }
  Words GenerateWords(const Words& more = {}) {
    Words words = {"generate", "--checkpoint", save_, "--image",
                   "tests/fixtures/images/flag_it.png"};
    words.insert(words.end(), more.begin(), more.end());
    if (std::find(more.begin(), more.end(), "--prompt") == more.end()) {
      words.insert(words.end(), {"--prompt", "What is in the picture?"});
    }
    return words;
  }
  std::string save_, iteration_;
};

TEST_F(WithCheckpoint, DamagedTokenizer) {
  const std::string path = iteration_ + "/tokenizer.model";
  const std::string bytes = Read(path);
  for (const std::string& now :
       {std::string(), std::string("hello"), Cut(bytes, 0.5),
        bytes.substr(0, bytes.size() - 1)}) {
    WithBytes(path, now, [&] {
      Expect(GenerateWords(), {path});
      ExpectTrain({"data.tokenizer=" + path}, {path});
    });
  }
}

TEST_F(WithCheckpoint, DamagedTrainingCheckpoint) {
  const Words resume = {"checkpoint.load=" + save_};
  for (const char* name : {"model.safetensors", "optimizer.safetensors",
                           "state.json", "config.yaml"}) {
    const std::string path = absl::StrCat(iteration_, "/", name);
    const std::string bytes = Read(path);
    const bool resumed = std::string(name) != "config.yaml";
    const bool opened = absl::StartsWith(name, "model") || !resumed;
    for (const std::string& now :
         {std::string("{"), resumed ? Cut(bytes, 0.6) : "model: {type: x}"}) {
      WithBytes(path, now, [&] {
        if (resumed) ExpectTrain(resume, {path});
        if (!opened) return;
        Expect(GenerateWords(), {iteration_});
        Expect({"convert", "--from", save_, "--to", In("hf")}, {iteration_});
      });
    }
  }
  // One bit, anywhere.
  for (const std::string kind : {"model", "optimizer"}) {
    const std::string path =
        absl::StrCat(iteration_, "/", kind, ".safetensors");
    const std::string bytes = Read(path);
    for (const double at : {0.5, 0.75, 1.0}) {
      std::string damaged = bytes;
      damaged[at * (bytes.size() - 1)] ^= 4;
      WithBytes(path, damaged, [&] {
        ExpectTrain(resume, {path + ": tensor ", "damaged: bytes of CRC32C",
                             ", wanted "});
        if (kind == "optimizer") return;
        Expect(GenerateWords(), {path, "damaged"});
        Expect({"convert", "--from", save_, "--to", In("hf")},
               {path, "damaged"});
      });
    }
  }
  WithBytes(save_ + "/latest", "iter_0000009\n", [&] {
    ExpectTrain(resume, {save_, "iter_0000009"});
    Expect(GenerateWords(), {save_});
  });
  ExpectTrain(
      {resume[0], "train.seed=7"},
      {In("config.yaml") +
       " with train.seed=7: train.seed: 7, wanted 1234 as in " + iteration_});
}

TEST_F(WithCheckpoint, TensorsThatDoNotFitAreAllNamed) {
  // Another model than the checkpoint's.
  ExpectTrain(
      {"checkpoint.load=" + save_, "model.language.ffn_hidden_size=64",
       "model.language.num_layers=2"},
      {"language_model.layers.0.mlp.fc1.weight is [96, 32], wanted [128, 32]",
       "language_model.layers.0.mlp.fc2.weight is [32, 48], wanted [32, 64]",
       "language_model.layers.1.mlp.fc1.weight is missing",
       "language_model.layers.1.input_norm.weight is missing"});
  // Weights changed under the config.
  const std::string file = iteration_ + "/model.safetensors";
  TensorMap tensors = ReadAll(file);
  tensors.erase("language_model.final_norm.weight");
  tensors.erase("language_model.head.weight");
  tensors["language_model.embedding.weight"] =
      Tensor::Zeros(allocator(), {3, 32}, DType::kFloat32);
  tensors["extra"] = Tensor::Zeros(allocator(), {1}, DType::kFloat32);
  ASSERT_TRUE(WriteSafeTensors(file, tensors).ok());
  const Words all = {"language_model.final_norm.weight",
                     "language_model.head.weight", "embed", "[3, 32]", "extra"};
  ExpectTrain({"checkpoint.load=" + save_}, all);
  Expect(GenerateWords(), all);
  Expect({"convert", "--from", save_, "--to", In("hf")},
         {"final_norm", "head", "[3, 32]", "extra"});

  // The same of a Hugging Face folder.
  const std::string bad = Variant("llava15_tiny", "_bad", [](TensorMap& t) {
    t.erase("language_model.model.norm.weight");
    t.erase("vision_tower.embeddings.class_embedding");
    t["multi_modal_projector.linear_1.bias"] =
        Tensor::Zeros(allocator(), {7}, DType::kFloat32);
    t["lm_head.stray"] = Tensor::Zeros(allocator(), {1}, DType::kFloat32);
  });
  const Words hf = {"language_model.model.norm.weight",
                    "vision_tower.embeddings.class_embedding",
                    "multi_modal_projector.linear_1.bias", "[7]", "stray"};
  const std::string inputs =
      UnpackGolden("llava15_tiny") + "/golden.safetensors";
  Expect(ForwardWords(bad, inputs), hf);
  Expect({"convert", "--from", bad, "--to", In("to")}, hf);
  ExpectTrain({"model={type: llava, pretrained: " + bad + "}",
               "data={type: tensors, path: " + inputs + "}",
               "train.micro_batch_size=1", "train.global_batch_size=3"},
              hf);
}

TEST_F(WithCheckpoint, PicturesAndTokensThatDoNotMatch) {
  // A picture more than the tokens of input_ids are for.
  const std::string golden = UnpackGolden("llava15_tiny");
  const std::string inputs = In("in.safetensors");
  TensorMap batch = ReadAll(golden + "/golden.safetensors");
  TensorMap more = {{"input_ids", batch["input_ids"]},
                    {"labels", batch["labels"]}};
  ASSERT_TRUE(WriteSafeTensors(inputs, more).ok());  // none at all
  Expect(ForwardWords(golden, inputs), {"images", "48", "0"});
  more["pixel_values"] =
      Tensor::Zeros(allocator(), {4, 3, 28, 28}, DType::kFloat32);
  ASSERT_TRUE(WriteSafeTensors(inputs, more).ok());
  Expect(ForwardWords(golden, inputs), {"images", "48", "64"});
  ExpectTrain({"model={type: llava, pretrained: " + golden + "}",
               "data={type: tensors, path: " + inputs + "}",
               "train.micro_batch_size=3", "train.global_batch_size=3"},
              {"48"});
  more["pixel_values"] =
      Tensor::Zeros(allocator(), {3, 3, 21, 21}, DType::kFloat32);
  ASSERT_TRUE(WriteSafeTensors(inputs, more).ok());
  Expect(ForwardWords(golden, inputs), {"[3, 3, 21, 21]", "28"});
  more.erase("input_ids");
  ASSERT_TRUE(WriteSafeTensors(inputs, more).ok());
  Expect(ForwardWords(golden, inputs), {inputs, "input_ids: missing"});

  const std::string data = Write(
      In("data.jsonl"), R"({"id": "7", "image": "a.png", "conversations": [)"
                        R"({"from": "human", "value": "<image><image>What?"},)"
                        R"({"from": "gpt", "value": "That."}]})");
  ExpectTrain({"data.path=" + data}, {data, "2 <image> for 1 images"});
  Expect(GenerateWords({"--prompt", "<image> or <image>?"}),
         {"2 <image>", "1 images"});
}

TEST_F(WithCheckpoint, TooLongOrTooSmall) {
  // Longer than the model reads.
  const std::string golden = UnpackGolden("llava15_tiny");
  const std::string json = golden + "/config.json";
  WithBytes(
      json,
      absl::StrReplaceAll(Read(json), {{"\"max_position_embeddings\": 512",
                                        "\"max_position_embeddings\": "
                                        "29"}}),
      [&] {
        Expect(ForwardWords(golden, golden + "/golden.safetensors"),
               {"30", "max_sequence_length 29"});
      });
  ExpectTrain({"model.language.max_sequence_length=12"},
              {"conversation ", "tokens", "max_sequence_length 12"});
  std::string question;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&question, "what ");
  Expect(GenerateWords({"--prompt", question}), {"max_sequence_length 96"});

  // Too few embeddings.
  ExpectTrain({"model.special_token_ids.images=400"},
              {"model.special_token_ids.images: 400", "vocab_size 400"});
  ExpectTrain({"model.special_token_ids.images=-1"},
              {"model.special_token_ids.images: -1"});
  ExpectTrain({"model.language.vocab_size=100"},
              {"model.language.vocab_size: 100", "tokens of the tokenizer"});
  ExpectTrain({"model.special_token_ids.images=5"},
              {"model.special_token_ids.images: 5", "wanted 4"});
  ExpectTrain({"data.tokenizer_vocab_size=100"}, {"tokenizer", "100"});
}

// Files may grow to `bytes`, as on a disk that is full then, while `then` runs.
void WithFullDisk(int64_t bytes, const std::function<void()>& then) {
  rlimit kept;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &kept), 0);
  const rlimit small = {static_cast<rlim_t>(bytes), kept.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  then();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &kept), 0);
  std::signal(SIGXFSZ, SIG_DFL);
}

TEST_F(WithCheckpoint, DiskFull) {
  const std::string golden = UnpackGolden("llava15_tiny");
  WithFullDisk(10000, [&] {
    Expect(ForwardWords(golden, golden + "/golden.safetensors"),
           {In("out.safetensors")}, 1);
  });
  // The folders may be there, empty: nothing that looks like a checkpoint.
  Ran ran;
  WithFullDisk(10000, [&] {
    ran = RunMimo({"convert", "--from", golden, "--to", In("to")});
  });
  ExpectOneLine(ran, 1, {In("to")});
  EXPECT_TRUE(fs::is_empty(In("to")));
  WithFullDisk(10000, [&] {
    ran = RunMimo({"convert", "--from", save_, "--to", In("hf")});
  });
  ExpectOneLine(ran, 1, {In("hf")});
  EXPECT_TRUE(!fs::exists(In("hf")) || fs::is_empty(In("hf")));

  // A run whose disk fills up keeps the checkpoint it has.
  const auto before = Snapshot(save_);
  const Words words = TinyTrain(
      folder_, {"checkpoint.save=" + save_, "checkpoint.load=" + save_,
                "checkpoint.save_interval=1"});
  WithFullDisk(10000, [&] { ran = RunMimo(words); });
  EXPECT_EQ(ran.code, 1);
  EXPECT_TRUE(absl::StrContains(ran.err, "\nmimo: " + save_)) << ran.err;
  EXPECT_TRUE(Snapshot(save_) == before);
  EXPECT_EQ(RunMimo(GenerateWords()).code, 0);

  ran = RunMimo(TinyTrain(folder_));
  ASSERT_EQ(ran.code, 0) << ran.err;
  WithFullDisk(1000, [&] {
    ran = RunMimo({"evaluate", "--config", In("config.yaml"), "--checkpoint",
                   save_, "--contact-sheet", In("sheet.png"),
                   "data.validation_path=tests/fixtures/captions.jsonl"});
  });
  EXPECT_EQ(ran.code, 1);
  EXPECT_TRUE(absl::StartsWith(ran.err, "mimo: " + In("sheet.png"))) << ran.err;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    EXPECT_FALSE(absl::StrContains(entry.path().string(), "sheet"));
  }

  if (fs::exists("/dev/full")) {
    ran = RunMimo(TinyTrain(folder_, {"logging.metrics=/dev/full"}));
    ExpectOneLine(ran, 1, {"/dev/full"});
  }
}

TEST_F(WithCheckpoint, AnyDamageIsToldOrHarmless) {
  const std::string golden = UnpackGolden("llava15_tiny");
  const Words forward = ForwardWords(golden, golden + "/golden.safetensors");
  const std::string fixtures = TestFolder("fixtures");
  fs::copy("tests/fixtures", fixtures, fs::copy_options::recursive);
  const std::string data = fixtures + "/captions.jsonl";
  const Words train =
      TinyTrain(folder_, {"data.path=" + data, "train.train_iters=1",
                          "data.tokenizer=" + iteration_ + "/tokenizer.model"});
  std::vector<std::pair<std::string, Words>> targets = {
      {iteration_ + "/tokenizer.model", GenerateWords()},
      {iteration_ + "/model.safetensors", GenerateWords()},
      {golden + "/config.json", forward},
      {golden + "/model.safetensors", forward},
      {golden + "/golden.safetensors", forward},
      {data, train}};
  for (const char* name : {"flag_it.png", "sunflower_palette_odd.png",
                           "car_progressive.jpg", "rose_baseline.jpg"}) {
    const std::string path = absl::StrCat(fixtures, "/images/", name);
    targets.emplace_back(
        path, GenerateWords({"--image", path, "--max-new-tokens", "2"}));
  }
  PhiloxSequence random(3, 0);
  int64_t told = 0, harmless = 0;
  for (const auto& [path, words] : targets) {
    const std::string bytes = Read(path);
    // The weights themselves may be any numbers.
    const uint64_t reach = absl::EndsWith(path, ".safetensors")
                               ? std::min<uint64_t>(bytes.size(), 9000)
                               : bytes.size();
    for (int i = 0; i < 30; ++i) {
      std::string now = bytes;
      if (i % 5 == 0) {
        now.resize(random.Below(now.size()));
      } else if (i % 5 == 1) {
        now.erase(random.Below(reach), 1 + random.Below(8));
      } else {
        for (uint64_t n = 1 + random.Below(3); n > 0; --n) {
          char& at = now[random.Below(reach)];
          at = i % 5 == 2   ? "0123456789-\"{}[],:"[random.Below(18)]
               : i % 5 == 3 ? at ^ (1 << random.Below(8))
                            : random.Below(256);
        }
      }
      SCOPED_TRACE(absl::StrCat(path, ", damage ", i));
      WithBytes(path, now, [&] {
        const Ran ran = RunMimo(words);
        ran.code == 0 ? ++harmless : ++told;
        if (ran.code != 0) ExpectOneLine(ran, 2, {});
      });
    }
  }
  EXPECT_GT(told, 100);
  EXPECT_GT(harmless, 10);
}

TEST_F(WithCheckpoint, OutputsThatCannotBeWritten) {
  const std::string golden = UnpackGolden("llava15_tiny");
  const std::string inputs = golden + "/golden.safetensors";
  Write(In("file"), "keep me");
  fs::create_directories(In("folder/inside"));
  TinyTrain(folder_);  // the config is there from now on
  for (const std::string& out :
       {In("file/out"), std::string("/proc/none/out")}) {
    Expect({"forward", "--checkpoint", golden, "--inputs", inputs, "--outputs",
            out},
           {out});
    Expect({"convert", "--from", golden, "--to", out}, {out});
    Expect({"convert", "--from", save_, "--to", out}, {out});
    ExpectTrain({"checkpoint.save=" + out}, {out});
    ExpectTrain({"logging.metrics=" + out}, {fs::path(out).parent_path()});
    ExpectTrain({"logging.tensorboard_dir=" + out}, {out});
    const Ran ran = RunMimo(
        {"evaluate", "--config", In("config.yaml"), "--checkpoint", save_,
         "--limit", "1", "--contact-sheet", out, "data.validation_fraction=0.5",
         "data.tokenizer_vocab_size=300"});
    EXPECT_EQ(ran.code, 2);
    EXPECT_TRUE(absl::StartsWith(ran.err, "mimo: ") &&
                absl::StrContains(ran.err, out))
        << ran.err;
  }
  // A folder where a file is to be written.
  Expect({"forward", "--checkpoint", golden, "--inputs", inputs, "--outputs",
          In("folder")},
         {In("folder")});
  ExpectTrain({"logging.metrics=" + In("folder")}, {In("folder")});
  // A file where a folder is to be made.
  Expect({"convert", "--from", golden, "--to", In("file")}, {In("file")});
  ExpectTrain({"checkpoint.save=" + In("file")}, {In("file")});
  EXPECT_EQ(Read(In("file")), "keep me");
  EXPECT_TRUE(fs::is_empty(In("folder/inside")));
}

TEST_F(WithCheckpoint, EvaluateHasNothingToEvaluate) {
  TinyTrain(folder_);
  const Words words = {"evaluate", "--config", In("config.yaml"),
                       "--checkpoint", save_};
  Expect(words, {"no validation split"});
  Words mock = words;
  mock.push_back("data={type: mock}");
  Expect(mock, {"data.type: mock"});
  Words split = words;
  split.insert(split.end(),
               {"data.validation_fraction=0.5", "--split", "heldout"});
  Expect(split, {"--split", "\"heldout\"", "validation"});
}

}  // namespace
}  // namespace mimo
