// Conversations about pictures, and the tokens they become (Vicuna's way):
//   <bos>USER: question ASSISTANT:answer<eos>USER: question ASSISTANT:...
// where <image> in a question becomes as many image tokens as the picture has
// embeddings. Only answers and the <eos> after them are learned.
// Source: LLaVA (arXiv:2304.08485), conversation "v1", without its preamble.
#ifndef MIMO_MIMO_DATA_TEXT_CONVERSATION_H_
#define MIMO_MIMO_DATA_TEXT_CONVERSATION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/data/batch.h"
#include "mimo/data/image/image.h"
#include "mimo/data/text/tokenizer.h"

namespace mimo {

struct Turn {
  std::string question, answer;
  std::string kind =
      {};  // groups questions in evaluation ("name"); may be empty
};

struct Picture {
  std::string path;
  std::shared_ptr<const Image> decoded;  // null: to be read when needed
};

struct Conversation {
  std::string id = {};
  std::vector<Turn> turns = {};
  std::vector<Picture> pictures = {};  // in the order of their <image>
  std::map<std::string, std::string> about = {};  // further fields ("country")
};

struct ConversationTemplate {
  Tokenizer tokenizer;
  int64_t tokens_per_image;
  int64_t max_sequence_length;

  // Tokens and labels (no pixels) of a conversation with `images` pictures.
  // InvalidArgument when the number of <image> is another, or it is too long.
  absl::StatusOr<Sample> Encode(absl::Span<const Turn> turns,
                                int64_t images) const;

  // Tokens up to the last turn's "ASSISTANT:"; its answer is not read.
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(
      absl::Span<const Turn> turns, int64_t images) const;

 private:
  absl::StatusOr<Sample> Build(absl::Span<const Turn> turns, int64_t images,
                               bool last_answer) const;
};

// `text` with "<image>\n" before it for each picture that it does not place.
std::string PlaceImages(std::string_view text, int64_t images);

// How many <image> the text has.
int64_t CountImages(std::string_view text);

// The lines a tokenizer is trained on: what Encode encodes.
std::vector<std::string> TokenizerSentences(
    absl::Span<const Conversation> conversations);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_TEXT_CONVERSATION_H_
