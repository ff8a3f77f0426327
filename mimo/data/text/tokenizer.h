// Text to token ids and back: a sentencepiece model, its special tokens named.
#ifndef MIMO_MIMO_DATA_TEXT_TOKENIZER_H_
#define MIMO_MIMO_DATA_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace mimo {

// Where an image stands in a text.
inline constexpr std::string_view kImagePlaceholder = "<image>";

// A copy shares the model. Safe to use from several threads.
class Tokenizer {
 public:
  // A .model file of sentencepiece (Llama's, Vicuna's, or Train's).
  static absl::StatusOr<Tokenizer> Load(const std::string& path);
  // The same of its bytes; errors begin with `name`.
  static absl::StatusOr<Tokenizer> Parse(std::string bytes,
                                         const std::string& name);

  // The bytes of a BPE model with byte fallback (so that every text can be
  // encoded), pad 0, bos 1, eos 2, unk 3 and the piece <image>: a pure function
  // of the arguments. It has fewer than vocab_size tokens when the sentences do
  // not give that many.
  static absl::StatusOr<std::string> Train(
      const std::vector<std::string>& sentences, int64_t vocab_size);

  std::vector<int32_t> Encode(std::string_view text) const;
  // Special tokens, and ids that are no pieces, are left out.
  std::string Decode(absl::Span<const int32_t> ids) const;

  int64_t size() const;
  int32_t bos_id() const { return bos_; }
  int32_t eos_id() const { return eos_; }
  int32_t pad_id() const { return pad_; }      // eos where there is none
  int32_t image_id() const { return image_; }  // -1: none yet
  // For models without the piece <image>, such as Llama's.
  void set_image_id(int32_t id) { image_ = id; }

  // That a model of vocab_size embeddings has one for each token; the message
  // begins with vocab_size.
  absl::Status CheckVocab(int64_t vocab_size) const;

  const std::string& bytes() const {
    return *bytes_;
  }  // to keep beside a model

 private:
  std::shared_ptr<const sentencepiece::SentencePieceProcessor> model_;
  std::shared_ptr<const std::string> bytes_;
  int32_t bos_, eos_, pad_, image_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_TEXT_TOKENIZER_H_
