#include "cli/run_data.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/train/loader_source.h"
#include "mimo/train/tensors_source.h"
#include "models/clip/config.h"
#include "models/gpt/config.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

absl::StatusOr<GptConfig> TextDecoder(const MimoModelConfig& model) {
  if (const auto* gpt = model.language_model_spec.config.As<GptConfig>()) {
    return *gpt;
  }
  return absl::InvalidArgumentError(
      "model.language: not a gpt, wanted one for data of conversations");
}

absl::StatusOr<int32_t> ImageToken(const MimoModelConfig& model) {
  const auto found = model.special_token_ids.find(kImages);
  if (found != model.special_token_ids.end()) {
    return static_cast<int32_t>(found->second);
  }
  return absl::InvalidArgumentError(
      "model.special_token_ids: no id for images, wanted one");
}

}  // namespace

absl::StatusOr<Pictures> PicturesOf(const MimoModelConfig& model) {
  Pictures pictures;
  const auto images = model.modality_submodules_spec.find(kImages);
  if (images == model.modality_submodules_spec.end()) {
    return absl::InvalidArgumentError(
        "model: no modality images, wanted one for data of conversations");
  }
  for (const auto& [name, spec] : images->second.encoders) {
    const auto* clip = spec.config.As<ClipVitConfig>();
    const std::string path =
        absl::StrCat("model.modalities.images.encoders.", name);
    if (clip == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": not a clip_vit, wanted one for data of conversations"));
    }
    if (pictures.size != 0 && clip->image_size != pictures.size) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".image_size: ", clip->image_size, ", wanted ",
                       pictures.size, " as of the encoders before"));
    }
    pictures.size = clip->image_size;
    pictures.tokens += clip->features();
  }
  return pictures;
}

absl::StatusOr<ConversationTemplate> MakeFormat(Tokenizer tokenizer,
                                                const MimoModelConfig& model) {
  MIMO_ASSIGN_OR_RETURN(const Pictures pictures, PicturesOf(model));
  MIMO_ASSIGN_OR_RETURN(const GptConfig language, TextDecoder(model));
  MIMO_ASSIGN_OR_RETURN(const int32_t image, ImageToken(model));
  if (absl::Status fits = tokenizer.CheckVocab(language.vocab_size);
      !fits.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.language.", fits.message()));
  }
  if (tokenizer.image_id() < 0) {
    tokenizer.set_image_id(image);
  } else if (tokenizer.image_id() != image) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.special_token_ids.images: ", image, ", wanted ",
                     tokenizer.image_id(), ", the tokenizer's <image>"));
  }
  return ConversationTemplate{std::move(tokenizer), pictures.tokens,
                              language.max_sequence_length};
}

absl::StatusOr<RunData> OpenData(const DataConfig& config,
                                 const MimoModelConfig& model,
                                 const std::string& tokenizer_file) {
  RunData data;
  data.config = config;
  if (!tokenizer_file.empty()) data.config.tokenizer = tokenizer_file;
  MIMO_ASSIGN_OR_RETURN(const Pictures pictures, PicturesOf(model));
  data.image_size = pictures.size;
  MIMO_ASSIGN_OR_RETURN(data.corpus, LoadCorpus(data.config));
  MIMO_ASSIGN_OR_RETURN(Tokenizer tokenizer,
                        MakeTokenizer(data.config, data.corpus));
  MIMO_ASSIGN_OR_RETURN(data.format, MakeFormat(std::move(tokenizer), model));
  return data;
}

absl::StatusOr<Sources> MakeSources(const RunData& data,
                                    const MimoModelConfig& model, uint64_t seed,
                                    const DataShare& share) {
  Sources sources;
  DataLoaderOptions options{
      .share = share, .seed = seed, .num_workers = data.config.num_workers};
  if (data.config.type == DataType::kTensors) {
    MIMO_ASSIGN_OR_RETURN(const int32_t image, ImageToken(model));
    MIMO_ASSIGN_OR_RETURN(sources.train,
                          TensorsSource::Open(data.config.path, image, share));
    return sources;
  }
  if (data.config.type == DataType::kMock) {
    MIMO_ASSIGN_OR_RETURN(const Pictures pictures, PicturesOf(model));
    MIMO_ASSIGN_OR_RETURN(const GptConfig language, TextDecoder(model));
    MIMO_ASSIGN_OR_RETURN(const int32_t image, ImageToken(model));
    if (language.max_sequence_length < pictures.tokens ||
        language.vocab_size < 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "model.language: max_sequence_length ", language.max_sequence_length,
          " and vocab_size ", language.vocab_size, ", wanted at least ",
          pictures.tokens, " (the tokens of an image) and 2"));
    }
    sources.train = std::make_unique<LoaderSource>(
        std::make_shared<MockDataset>(
            MockOptions{.samples = data.config.samples,
                        .sequence_length = language.max_sequence_length,
                        .vocab_size = language.vocab_size,
                        .tokens_per_image = pictures.tokens,
                        .image_size = pictures.size,
                        .image_id = image,
                        .seed = seed}),
        options);
    return sources;
  }
  options.pad_id = data.format->tokenizer.pad_id();
  MIMO_ASSIGN_OR_RETURN(
      auto train,
      TrainingDataset(data.config, data.corpus, *data.format, data.image_size,
                      seed, share.modalities.contains(kImages)));
  sources.train = std::make_unique<LoaderSource>(std::move(train), options);
  if (!data.corpus.validation.empty()) {
    MIMO_ASSIGN_OR_RETURN(
        auto validation,
        ValidationDataset(data.config, data.corpus.validation[0], *data.format,
                          data.image_size, seed));
    sources.validation =
        std::make_unique<LoaderSource>(std::move(validation), options);
    MIMO_ASSIGN_OR_RETURN(
        auto questions, QuestionDataset(data.config, data.corpus.validation[0],
                                        *data.format, data.image_size, seed));
    options.shuffle = false;
    sources.questions =
        std::make_unique<LoaderSource>(std::move(questions), options);
  }
  return sources;
}

}  // namespace mimo
