// Mistakes in flags, configs and the files that a user gives.
#include "tests/cli/mistakes.h"

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "models/hf/testing.h"

namespace mimo {
namespace {

TEST_F(Mistakes, CommandsAndFlags) {
  Expect({}, {"no command"});
  Expect({"trian"}, {"\"trian\"", "train?"});
  Expect({"forward", "--checkpiont", "x"}, {"--checkpiont", "--checkpoint?"});
  Expect({"forward", "--checkpoint"}, {"--checkpoint: no value"});
  Expect({"forward", "--checkpoint", "--grads"}, {"--checkpoint: no value"});
  Expect({"forward"}, {"--checkpoint is missing"});
  Expect({"forward", "--grads=yes"}, {"--grads takes no value"});
  Expect({"forward", "stray"}, {"\"stray\""});
  Expect({"train"}, {"--config is missing"});
  Expect({"train", "--config", "x.yaml", "--ranks", "two"}, {"\"two\""});
  Expect({"train", "--config", "x.yaml", "--ranks", "0"}, {"--ranks: 0"});
  Expect({"plan", "--config", "x.yaml", "--world", "0"}, {"--world: 0"});
  Expect({"generate", "--checkpoint", "x", "--prompt", "p", "--top-p", "high"},
         {"--top-p", "\"high\""});
  const std::string golden = UnpackGolden("llava15_tiny");
  Words words = ForwardWords(golden, golden + "/golden.safetensors");
  words.insert(words.end(), {"--device", "gpu"});
  Expect(words, {"--device", "\"gpu\"", "wanted cpu"});
  words.insert(words.end(), {"--device", "cpu", "--dtype", "float8"});
  Expect(words, {"--dtype", "\"float8\"", "wanted float32"});
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  words.insert(words.end(), {"--device", "cuda", "--dtype", "float32"});
  Expect(words, {"--device: cuda: ", "wanted"});
  Expect({"convert", "--from", golden, "--to", In("to"), "--dtype", "int4"},
         {"--dtype", "\"int4\""});
}

TEST_F(Mistakes, Launch) {
  Expect({"launch"}, {"launch: --nproc is missing"});
  Expect({"launch", "--nproc", "two"}, {"--nproc", "\"two\""});
  Expect({"launch", "--nproc", "0", "--", "train"}, {"--nproc: 0, wanted 1"});
  Expect({"launch", "--nproc", "1"}, {"command \"\"", "-- train ..."});
  Expect({"launch", "--nproc", "1", "--", "plan"}, {"command \"plan\""});
  Expect({"launch", "--nproc", "1", "train"}, {"unexpected", "\"train\""});
  const Words two = {"launch", "--nproc", "1", "--nnodes", "2"};
  const auto with = [&two](const Words& more) {
    Words words = two;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  Expect(two, {"--node-rank is missing"});
  Expect(with({"--node-rank", "2"}), {"--node-rank: 2, wanted 0 to 1"});
  Expect(with({"--node-rank", "1"}), {"--master-addr is missing"});
  Expect(with({"--node-rank", "1", "--master-addr", "n0"}),
         {"secret", "MIMO_STORE_KEY_FILE"});

  // Of another launcher.
  setenv("RANK", "1", 1);
  Expect(TinyTrain(folder_), {"environment: WORLD_SIZE: not set"});
  setenv("WORLD_SIZE", "2", 1);
  setenv("LOCAL_RANK", "1", 1);
  setenv("LOCAL_WORLD_SIZE", "2", 1);
  setenv("MASTER_ADDR", "localhost", 1);
  setenv("MASTER_PORT", "29500", 1);
  Expect(TinyTrain(folder_), {"MIMO_STORE_KEY_FILE: not set"});
  setenv("MIMO_STORE_KEY", "secret", 1);
  Expect(TinyTrain(folder_, {"--ranks=2"}),
         {"--ranks: 2, wanted 1 in a job of 2 processes"});
  for (const char* name :
       {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
        "MASTER_PORT", "MIMO_STORE_KEY"}) {
    unsetenv(name);
  }
}

TEST_F(Mistakes, ConfigKeysAndTypes) {
  const std::string file = In("config.yaml");
  ExpectTrain({"train.train_itres=3"},
              {"train.train_itres", "did you mean train.train_iters?"});
  ExpectTrain({"model.language.num_layer=3"},
              {"model.language.num_layer", "model.language.num_layers?"});
  ExpectTrain({"optimiser.lr=3"}, {"optimiser", "optimizer?"});
  ExpectTrain({"train.train_iters=ten"},
              {"train.train_iters", "\"ten\"", "a whole number"});
  ExpectTrain({"optimizer.lr=fast"}, {"optimizer.lr", "a number"});
  ExpectTrain({"model.language=5"}, {"model.language", "5", "a section"});
  ExpectTrain({"model.type=lava"}, {"model.type", "\"lava\"", "llava"});
  ExpectTrain({"data.type=tensor"}, {"data.type", "tensors"});
  ExpectTrain({"train.dtype=float16"}, {"train.dtype", "float32"});
  ExpectTrain({"train.train_iters"}, {"wanted a.b=value"});
  ExpectTrain({"train.global_batch_size=5"},
              {"train.global_batch_size: 5", "multiple"});
  ExpectTrain({"model.language.num_attention_heads=3"},
              {"model.language", "32", "multiple of 3"});
  ExpectTrain({"model.vision.patch_size=17"}, {"model.vision", "17"});
  ExpectTrain({"parallelism.modules.language.tensor_model_parallel_size=2"},
              {"parallelism.modules: ", "missing [images]"});
  ExpectTrain({"parallelism.modules.language.tensor_model_parallel_size=2",
               "parallelism.modules.images.tensor_model_parallel_size=2"},
              {"parallelism.modules.language.data_parallel_size: unset",
               "world_size (1) is not divisible by total_model_parallel_size "
               "(2)"});

  // Sizes and numbers that no model can have, or that no machine can hold.
  ExpectTrain({"model.language.vocab_size=100000000000"},
              {"model.language.vocab_size", "wanted 1 to"});
  ExpectTrain({"model.language.num_layers=0"},
              {"model.language.num_layers: 0", "wanted 1 to"});
  ExpectTrain({"model.language.hidden_size=1048576",
               "model.language.num_attention_heads=4096"},
              {file + ": model: ", " GiB of weights", "memory"});
  ExpectTrain({"model.vision.norm_epsilon=-1"},
              {"model.vision.norm_epsilon: -1", "> 0"});
  ExpectTrain({"model.language.init_std=-1"},
              {"model.language.init_std: -1", ">= 0"});
  ExpectTrain({"model.quantization={language: mxfp8}"},
              {"model.quantization.language", "\"mxfp8\"", "none | fp8"});
  ExpectTrain({"model.quantization={speech: fp8}"},
              {"model", "quantization.speech", "wanted language"});
  ExpectTrain({"model.quantization={images: fp8}"},  // hidden_size: 24
              {"model", "clip_encoder.layers.0", "[72, 24]", "16"});
  ExpectTrain({"data.num_workers=100000"},
              {"data.num_workers: 100000", "0 to 256"});
  ExpectTrain(
      {"data.tokenizer_vocab_size=10"},
      {file + " with data.tokenizer_vocab_size=10: "
              "data.tokenizer_vocab_size: 10, wanted enough for 256 bytes "
              "and every letter"});
  const Words frozen = {"model.freeze_language_model=true",
                        "model.freeze_modality_encoders.images=true",
                        "model.freeze_modality_projections.images=true"};
  ExpectTrain(frozen, {file + ": model: every parameter is frozen, wanted"});
  ExpectTrain({"parallelism.deployment_mode=colocate"},
              {"parallelism.deployment_mode: \"colocate\"", "colocated"});

  // In the file: named with its key.
  for (const auto& [text, parts] : std::map<std::string, Words>{
           {"train: {train_itres: 3}", {"train.train_itres", "train_iters?"}},
           {"train: {train_iters: [1]}", {"train.train_iters", "a list"}},
           {"train: 7", {"train: 7", "a section"}},
           {"modle: {}", {"modle", "model?"}},
           {"- a", {"a list", "wanted keys"}},
           {"train: {a: 1", {"not YAML", "line "}},
           {"train: {seed: 1}\ntrain: {seed: 2}", {"train", "twice"}},
           {"", {"no type"}}}) {
    Write(file, text);
    Words all = parts;
    all.push_back(file);
    Expect({"train", "--config", file}, all);
    Expect({"plan", "--config", file}, all);
  }
}

TEST_F(Mistakes, MissingFilesAndFolders) {
  const std::string golden = UnpackGolden("llava15_tiny");
  const std::string inputs = golden + "/golden.safetensors";
  const std::string none = In("none");
  fs::create_directories(In("empty"));
  const std::string empty = In("empty");
  for (const auto& [path, found] : std::map<std::string, std::string>{
           {none, "no such file"}, {empty, "a directory, wanted a"}}) {
    Expect({"train", "--config", path}, {path, found});
    Expect({"plan", "--config", path}, {path, found});
    Expect(ForwardWords(golden, path), {path, found});
    ExpectTrain({"data.path=" + path}, {path, found});
    ExpectTrain({"data.type=tensors", "data.path=" + path}, {path, found});
    ExpectTrain({"data.validation_path=" + path}, {path, found});
    ExpectTrain({"data.tokenizer=" + path}, {path, found});
    Expect({"generate", "--checkpoint", golden, "--prompt", "p", "--tokenizer",
            path},
           {path, found});
  }
  for (const std::string& path : {none, empty}) {
    Expect(ForwardWords(path, inputs), {path, "wanted a Hugging Face folder"});
    Expect({"convert", "--from", path, "--to", In("to")}, {path});
    Expect({"generate", "--checkpoint", path, "--prompt", "p"}, {path});
    ExpectTrain({"model.pretrained=" + path}, {path});
    ExpectTrain({"checkpoint.load=" + path}, {path});
  }
  // A file where a folder is wanted.
  Expect(ForwardWords(inputs, inputs), {inputs});
  // A folder of one file only.
  fs::copy_file(golden + "/config.json", empty + "/config.json");
  Expect(ForwardWords(empty, inputs), {empty, "no weights"});
}

TEST_F(Mistakes, DamagedSafetensorsAndJson) {
  const std::string golden = UnpackGolden("llava15_tiny");
  const std::string inputs = golden + "/golden.safetensors";
  const Words words = ForwardWords(golden, inputs);
  for (const std::string& path : {inputs, golden + "/model.safetensors"}) {
    const std::string bytes = Read(path);
    std::vector<std::string> damaged = {"",
                                        "abc",
                                        Cut(bytes, 0.001),
                                        Cut(bytes, 0.5),
                                        bytes.substr(0, bytes.size() - 1),
                                        bytes + "x"};
    damaged.push_back(bytes);
    damaged.back()[7] = '\x7f';  // an enormous header
    damaged.push_back(bytes);
    damaged.back()[8] = '?';  // a header that is no JSON
    damaged.push_back(
        absl::StrReplaceAll(bytes.substr(0, 20000), {{"\"F32\"", "\"F33\""}}) +
        bytes.substr(20000));
    for (const std::string& now : damaged) {
      WithBytes(path, now, [&] { Expect(words, {path}); });
    }
  }
  const std::string json = golden + "/config.json";
  const std::string text = Read(json);
  for (const std::string& now :
       {std::string(), Cut(text, 0.5), std::string("[]"),
        std::string("\xff\xfe"), std::string("{\"model_type\": \"llama\"}"),
        absl::StrReplaceAll(text, {{"\"hidden_size\": 64",
                                    "\"hidden_size\": "
                                    "\"64\""}})}) {
    WithBytes(json, now, [&] { Expect(words, {json}); });
  }
  // Conversations.
  const std::string data = In("data.jsonl");
  const std::string good = Read("tests/fixtures/captions.jsonl");
  for (const std::string& now :
       {std::string(), std::string("\n"), Cut(good, 0.5), std::string("[{"),
        std::string("[1]"), std::string("{\"conversations\": 3}"),
        absl::StrReplaceAll(good, {{"gpt", "gtp"}}),
        std::string("\x89PNG\r\n")}) {
    Write(data, now);
    ExpectTrain({"data.path=" + data}, {data});
  }
  // A file or a folder, not a key of the config.
  ExpectTrain({"data.path=" + Write("train.jsonl", "[1]")},
              {"mimo: train.jsonl: "});
  fs::remove("train.jsonl");
  ExpectTrain({"data.path=train.jsonl"}, {"mimo: train.jsonl: no such file"});
  ExpectTrain({"checkpoint.load=checkpoint"},
              {"mimo: checkpoint: no such folder"});
  fs::create_directory("data");
  ExpectTrain({"data.path=data"}, {"mimo: data: a directory, wanted a file"});
  fs::remove("data");
}

TEST_F(Mistakes, DamagedPictures) {
  fs::create_directories(In("images"));
  std::string lines;
  for (const char* name :
       {"flag_it.png", "car_progressive.jpg", "rose_baseline.jpg"}) {
    fs::copy_file(absl::StrCat("tests/fixtures/images/", name),
                  absl::StrCat(In("images/"), name));
    absl::StrAppend(&lines, R"({"id": "0", "image": "images/)", name,
                    R"(", "conversations": [)",
                    R"({"from": "human", "value": "<image>\nWhat is this?"},)",
                    R"({"from": "gpt", "value": "A picture."}]})", "\n");
  }
  const std::string data = Write(In("data.jsonl"), lines);
  // The pictures as they are: it is the damage that is complained about.
  Ran ran = RunMimo(TinyTrain(
      folder_, {"data.path=" + data, "data.tokenizer_vocab_size=300"}));
  ASSERT_EQ(ran.code, 0) << ran.err;
  const std::string trained = TestFolder("trained");
  fs::rename(In("save"), trained + "/save");
  fs::remove(In("metrics.jsonl"));
  for (const char* name :
       {"flag_it.png", "car_progressive.jpg", "rose_baseline.jpg"}) {
    const std::string path = absl::StrCat(In("images/"), name);
    const std::string bytes = Read(path);
    std::string flipped = bytes;
    for (size_t i = bytes.size() / 3; i < bytes.size() / 3 + 40; ++i) {
      flipped[i] = ~flipped[i];
    }
    std::vector<std::string> damaged = {"", "GIF89a", Cut(bytes, 0.05),
                                        Cut(bytes, 0.5), Cut(bytes, 0.9)};
    // Flipped bits of a JPEG may be another picture; a PNG has checksums.
    if (absl::EndsWith(name, ".png")) damaged.push_back(flipped);
    for (const std::string& now : damaged) {
      WithBytes(path, now, [&] {
        for (const char* cache : {"true", "false"}) {
          ExpectTrain({"data.path=" + data, "data.tokenizer_vocab_size=300",
                       absl::StrCat("data.cache_images=", cache)},
                      {path});
        }
        Expect({"generate", "--checkpoint", trained + "/save", "--prompt",
                "What is this?", "--image", path},
               {path});
      });
    }
    // Gone, or a folder.
    fs::rename(path, path + "_");
    ExpectTrain({"data.path=" + data, "data.tokenizer_vocab_size=300"},
                {path, "no such file"});
    fs::create_directories(path);
    ExpectTrain({"data.path=" + data, "data.tokenizer_vocab_size=300"},
                {path, "a directory"});
    fs::remove(path);
    fs::rename(path + "_", path);
  }
}

}  // namespace
}  // namespace mimo
