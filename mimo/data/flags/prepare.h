// The flags of the world as a LLaVA-format conversation set: 249 countries in
// four drawing styles out of Debian packages, with questions for their name,
// continent, code and colours.
//
// Splits: h = SHA-1 of the upper-case alpha-2 code as an integer; h % 10 == 0
// keeps a whole country out of training ("unseen_country"); else style number
// (h / 10) % (styles that draw it), in the order of FlagSources, is kept out
// ("heldout_style"). All else is "train". "kgeography" holds a fifth artist's
// drawings of the countries that are trained on.
#ifndef MIMO_MIMO_DATA_FLAGS_PREPARE_H_
#define MIMO_MIMO_DATA_FLAGS_PREPARE_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/data/text/conversation.h"

namespace mimo {

struct FlagStyle {
  std::string name;    // "iso"
  std::string folder;  // of its PNG files
};

struct FlagSources {
  std::vector<FlagStyle> styles;  // iso, famfamfam, noto, emojione
  std::string kgeography;         // folder
  std::string emoji_test;         // file with the countries' names
};

// Where the packages that ./setup installs put them (emojione also under
// .deps/data/gemojione of the checkout). NotFound names the one that is
// missing.
absl::StatusOr<FlagSources> FindFlagSources();

inline constexpr std::string_view kFlagSplits[] = {
    "train", "heldout_style", "unseen_country", "kgeography"};

// No style when the country as a whole is kept out of training, else the number
// of its held-out style.
std::optional<int> HeldOutStyle(std::string_view alpha2, int styles);

// Writes `folder`: images/STYLE/CODE.png (RGBA, cut to what is not clear, at
// most 96 pixels wide or high) and a SPLIT.json for each of kFlagSplits, all at
// once: the folder is complete or not there. Does nothing when it is there.
// Prints one line to stderr when it does something.
absl::Status PrepareFlags(const std::string& folder,
                          const FlagSources& sources);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_FLAGS_PREPARE_H_
