// LLaVA's data format: a JSON array, or one JSON object a line, of
//   {"id": "1", "image": "a.png" or ["a.png", "b.png"], "conversations":
//    [{"from": "human", "value": "<image>\nWhat is this?"},
//     {"from": "gpt", "value": "A bag."}, ...]}
// `image` may be absent. Humans ("human" or "user") and models ("gpt" or
// "assistant") take turns. A model's turn may have a "kind", which groups
// questions in evaluation. Other fields that are texts are kept in `about`.
#ifndef MIMO_MIMO_DATA_LLAVA_JSON_H_
#define MIMO_MIMO_DATA_LLAVA_JSON_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/conversation_list.h"
#include "mimo/data/text/conversation.h"

namespace mimo {

// Pictures' paths are taken from image_root (the file's own folder when empty)
// and are not opened. Each conversation is checked here, and parsed again when
// it is asked for.
absl::StatusOr<ConversationList> ReadLlavaJson(
    const std::string& path, const std::string& image_root = "");

// A JSON array, one conversation a line; paths as they are.
std::string ToLlavaJson(const std::vector<Conversation>& conversations);

// Moves about `fraction` of the conversations to the second list: those that
// the hash of their first picture's file name (else id) says, so that all about
// one picture go together and neither order nor additions change it.
std::pair<ConversationList, ConversationList> SplitByHash(
    const ConversationList& conversations, double fraction);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_LLAVA_JSON_H_
