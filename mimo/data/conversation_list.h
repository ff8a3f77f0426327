// Conversations in order, in memory or each read when it is asked for, as those
// of a file that is larger than what a rank should hold.
#ifndef MIMO_MIMO_DATA_CONVERSATION_LIST_H_
#define MIMO_MIMO_DATA_CONVERSATION_LIST_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "mimo/data/text/conversation.h"

namespace mimo {

// A copy shares what it reads from.
class ConversationList {
 public:
  // Called from many threads.
  using Read = std::function<Conversation(int64_t number)>;

  ConversationList() = default;
  ConversationList(int64_t size, Read read)
      : read_(std::move(read)), numbers_(size) {
    std::iota(numbers_.begin(), numbers_.end(), 0);
  }
  ConversationList(const std::vector<Conversation>& all)
      : ConversationList(
            all.size(), [all = std::make_shared<std::vector<Conversation>>(
                             all)](int64_t number) { return (*all)[number]; }) {
  }

  size_t size() const { return numbers_.size(); }
  bool empty() const { return numbers_.empty(); }
  Conversation operator[](int64_t i) const { return read_(numbers_[i]); }
  std::vector<Conversation> All() const {
    std::vector<Conversation> all;
    for (const int64_t number : numbers_) all.push_back(read_(number));
    return all;
  }
  // Those of these places.
  ConversationList Only(std::vector<int64_t> places) const {
    ConversationList some = *this;
    for (int64_t& place : places) place = numbers_[place];
    some.numbers_ = std::move(places);
    return some;
  }

 private:
  Read read_;
  std::vector<int64_t> numbers_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_CONVERSATION_LIST_H_
