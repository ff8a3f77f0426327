#include "mimo/data/conversation_dataset.h"

#include <algorithm>
#include <utility>

#include "absl/log/check.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/image/codec.h"

namespace mimo {
namespace {

absl::StatusOr<std::shared_ptr<const Image>> Decode(const Picture& picture) {
  if (picture.decoded) return picture.decoded;
  MIMO_ASSIGN_OR_RETURN(Image image, ReadImage(picture.path));
  return std::make_shared<const Image>(std::move(image));
}

// What Augment needs of a picture and no more: the square middle when cropping,
// at most twice the view's edge.
Image Shrink(const Image& image, const ViewOptions& options) {
  const bool crop = options.fit == Fit::kCrop && image.height != image.width;
  const int edge = std::min(image.height, image.width);
  Image out = crop ? CenterCrop(image, edge, edge) : image;
  const int most = 2 * options.image_size;
  const int64_t longest = std::max(out.height, out.width);
  if (longest <= most) return out;
  return ResizeBicubic(out, std::max<int64_t>(1, out.height * most / longest),
                       std::max<int64_t>(1, out.width * most / longest));
}

// `turns` of them in random order, pictures first.
std::vector<Turn> DrawTurns(const Conversation& conversation, int64_t turns,
                            PhiloxSequence random) {
  std::vector<Turn> drawn = conversation.turns;
  turns = std::min<int64_t>(turns, drawn.size());
  for (int64_t i = 0; i < turns; ++i) {
    std::swap(drawn[i], drawn[i + random.Below(drawn.size() - i)]);
  }
  drawn.resize(turns);
  for (Turn& turn : drawn) {
    turn.question = absl::StrReplaceAll(
        turn.question,
        {{absl::StrCat(kImagePlaceholder, "\n"), ""}, {kImagePlaceholder, ""}});
  }
  drawn[0].question =
      PlaceImages(drawn[0].question, conversation.pictures.size());
  return drawn;
}

}  // namespace

absl::StatusOr<ModalityItem> View(const Picture& picture,
                                  const ViewOptions& options,
                                  PhiloxSequence random) {
  MIMO_ASSIGN_OR_RETURN(const std::shared_ptr<const Image> image,
                        Decode(picture));
  const int size = options.image_size;
  ModalityItem item = {{3, size, size}, {}};
  if (options.augment) {
    const Image small = Shrink(*image, options);
    item.values = Augment(small.channels == 4 ? small : ToRgba(small), size,
                          *options.augment, random);
  } else {
    item.values = ClipPreprocess(*image, size, options.fit);
  }
  return item;
}

absl::StatusOr<std::shared_ptr<const ConversationDataset>>
ConversationDataset::Create(ConversationList conversations,
                            const ConversationTemplate& format,
                            const ConversationDatasetOptions& options) {
  if (options.cache) {
    std::vector<Conversation> all = conversations.All();
    for (Conversation& conversation : all) {
      for (Picture& picture : conversation.pictures) {
        MIMO_ASSIGN_OR_RETURN(picture.decoded, Decode(picture));
        if (options.view.augment) {
          picture.decoded = std::make_shared<const Image>(
              Shrink(*picture.decoded, options.view));
        }
      }
    }
    conversations = std::move(all);
  }
  return absl::WrapUnique(
      new ConversationDataset(std::move(conversations), format, options));
}

absl::StatusOr<Sample> ConversationDataset::Text(int64_t index,
                                                 int64_t visit) const {
  const Conversation conversation = conversations_[index];
  const std::vector<Turn> turns =
      options_.turns == 0
          ? conversation.turns
          : DrawTurns(conversation, options_.turns,
                      DataDraws(options_.seed, DataDraw::kTurns, visit, index));
  absl::StatusOr<Sample> sample =
      format_.Encode(turns, conversation.pictures.size());
  if (sample.ok()) return sample;
  return absl::Status(
      sample.status().code(),
      absl::StrCat("data: conversation ", index, " (id \"", conversation.id,
                   "\"): ", sample.status().message()));
}

absl::StatusOr<std::vector<ModalityItem>> ConversationDataset::Items(
    int64_t index, int64_t visit, const std::string& modality) const {
  std::vector<ModalityItem> items;
  if (modality != options_.modality) return items;
  const Conversation conversation = conversations_[index];
  for (const Picture& picture : conversation.pictures) {
    // Each picture of a sample has its own draws.
    const uint64_t seed = options_.seed + items.size();
    MIMO_ASSIGN_OR_RETURN(
        items.emplace_back(),
        View(picture, options_.view,
             DataDraws(seed, DataDraw::kAugment, visit, index)));
  }
  return items;
}

int64_t ConversationDataset::ItemTokens(int64_t index, int64_t /*visit*/,
                                        const std::string& modality) const {
  if (modality != options_.modality) return 0;
  return conversations_[index].pictures.size() * format_.tokens_per_image;
}

absl::StatusOr<Sample> MockDataset::Text(int64_t index, int64_t visit) const {
  const MockOptions& o = options_;
  CHECK_GE(o.sequence_length, o.tokens_per_image) << "MockDataset";
  PhiloxSequence random = DataDraws(o.seed, DataDraw::kMock, visit, index);
  Sample sample;
  sample.input_ids.assign(o.tokens_per_image, o.image_id);
  sample.labels.assign(o.tokens_per_image, kIgnoreLabel);
  while (static_cast<int64_t>(sample.input_ids.size()) < o.sequence_length) {
    int32_t id = random.Below(o.vocab_size - 1);
    id += id >= o.image_id;  // any but the image token
    sample.input_ids.push_back(id);
    sample.labels.push_back(id);
  }
  return sample;
}

absl::StatusOr<std::vector<ModalityItem>> MockDataset::Items(
    int64_t index, int64_t visit, const std::string& modality) const {
  const MockOptions& o = options_;
  std::vector<ModalityItem> items;
  if (modality != o.modality) return items;
  PhiloxSequence random = DataDraws(o.seed, DataDraw::kMockItems, visit, index);
  ModalityItem& item = items.emplace_back();
  item.shape = {3, o.image_size, o.image_size};
  item.values.resize(3 * o.image_size * o.image_size);
  for (float& value : item.values) value = random.Normal();
  return items;
}

int64_t MockDataset::ItemTokens(int64_t /*index*/, int64_t /*visit*/,
                                const std::string& modality) const {
  return modality == options_.modality ? options_.tokens_per_image : 0;
}

}  // namespace mimo
