// DataConfig: the `data:` section of a run.
#ifndef MIMO_MIMO_DATA_CONFIG_H_
#define MIMO_MIMO_DATA_CONFIG_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "mimo/config/fields.h"
#include "mimo/data/image/preprocess.h"

namespace mimo {

enum class DataType {
  kCaptions,   // a ready-made set, by `name`
  kLlavaJson,  // the user's own, at `path`
  kTensors,    // a safetensors file, at `path`
  kMock,       // random tokens and pixels
};
template <>
struct EnumNames<DataType> {
  static constexpr std::array<std::pair<DataType, absl::string_view>, 4>
      kNames = {{{DataType::kCaptions, "captions"},
                 {DataType::kLlavaJson, "llava_json"},
                 {DataType::kTensors, "tensors"},
                 {DataType::kMock, "mock"}}};
};
template <>
struct EnumNames<Fit> {
  static constexpr std::array<std::pair<Fit, absl::string_view>, 2> kNames = {
      {{Fit::kCrop, "crop"}, {Fit::kSquash, "squash"}}};
};

struct DataConfig {
  DataType type = DataType::kCaptions;
  std::string name = "flags";          // captions: flags, fashion_mnist, or A+B
  std::string data_dir = "runs/data";  // captions: where sets are prepared
  std::string path;                    // llava_json, tensors: the file
  std::string image_root;              // llava_json; "" is the file's folder
  // llava_json: held out of training, by a file or by a share of `path`.
  std::string validation_path;
  double validation_fraction = 0;
  std::string tokenizer;  // sentencepiece .model; "": trained on the data
  int64_t tokenizer_vocab_size = 1500;
  Fit fit = Fit::kCrop;       // how pictures become square
  bool augment = false;       // random views of pictures in training
  bool cache_images = false;  // llava_json: decoded pictures stay in memory
  int64_t turns = 0;          // questions drawn of each conversation; 0: all
  int64_t num_workers = 1;    // threads that make micro-batches
  int64_t samples = 1024;     // mock

  template <typename V>
  void Fields(V& v) {
    v("type", type);
    v("name", name);
    v("data_dir", data_dir);
    v("path", path);
    v("image_root", image_root);
    v("validation_path", validation_path);
    v("validation_fraction", validation_fraction);
    v("tokenizer", tokenizer);
    v("tokenizer_vocab_size", tokenizer_vocab_size);
    v("fit", fit);
    v("augment", augment);
    v("cache_images", cache_images);
    v("turns", turns);
    v("num_workers", num_workers);
    v("samples", samples);
  }
  absl::Status Validate() const;
};

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_CONFIG_H_
