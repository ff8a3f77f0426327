#include "mimo/data/flags/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"
#include "mimo/data/flags/colours.h"
#include "mimo/data/flags/countries.h"
#include "mimo/data/image/codec.h"
#include "mimo/data/llava_json.h"
#include "mimo/data/sha1.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxEdge = 96;
// Of what PrepareFlags writes; another number makes old folders be remade.
constexpr std::string_view kVersion = "flags 1\n";
constexpr std::string_view kVersionFile = "/version";

// The first folder of `where` (in the order of names) that has a file `inside`.
absl::StatusOr<std::string> FindGem(const std::vector<fs::path>& where,
                                    std::string_view gem,
                                    std::string_view inside) {
  for (const fs::path& root : where) {
    const fs::path gems = root / "usr/share/rubygems-integration/all/gems";
    std::vector<fs::path> found;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(gems, error)) {
      if (entry.path().filename().string().starts_with(gem) &&
          fs::exists(entry.path() / inside, error)) {
        found.push_back(entry.path());
      }
    }
    if (!found.empty()) {
      return std::min_element(found.begin(), found.end())->string();
    }
  }
  return absl::NotFoundError(absl::StrCat("flags: no ", gem, "*/", inside,
                                          " in ", where.front().string(),
                                          "; ./setup installs it"));
}

// "it" of each style's file names.
std::string FileOf(const FlagStyle& style, const std::string& alpha2) {
  std::string name = absl::AsciiStrToLower(alpha2);
  if (style.name == "noto") name = alpha2;
  if (style.name == "emojione") {  // regional indicators, A = 1F1E6
    name = absl::StrFormat("%X-%X", 0x1f1e6 + alpha2[0] - 'A',
                           0x1f1e6 + alpha2[1] - 'A');
  }
  return absl::StrCat(style.folder, "/", name, ".png");
}

// kgeography's file names, where they are not the country's name.
const std::map<std::string, std::string>& KgeographyNames() {
  static const auto* names =
      new std::map<std::string, std::string>{{"antigua", "AG"},
                                             {"bosniaherzegovina", "BA"},
                                             {"burkina", "BF"},
                                             {"congobrazzaville", "CG"},
                                             {"congokinshasa", "CD"},
                                             {"cotedivoire", "CI"},
                                             {"cuba3x2", "CU"},
                                             {"cyprus4x3", "CY"},
                                             {"czech", "CZ"},
                                             {"easttimor", "TL"},
                                             {"macedonia", "MK"},
                                             {"myanmar", "MM"},
                                             {"nkorea", "KP"},
                                             {"pitcairnislands", "PN"},
                                             {"saintlucia", "LC"},
                                             {"saotomeandprincipe", "ST"},
                                             {"skorea", "KR"},
                                             {"sthelena", "SH"},
                                             {"stkittsandnevis", "KN"},
                                             {"stvincentandgrenadines", "VC"},
                                             {"swaziland", "SZ"},
                                             {"trinidadtobago", "TT"},
                                             {"turkandcaicosislands", "TC"},
                                             {"uae", "AE"},
                                             {"uk", "GB"},
                                             {"usa", "US"},
                                             {"usvirginislands", "VI"},
                                             {"vatican", "VA"},
                                             {"wallisandfutuna", "WF"}};
  return *names;
}

std::string Letters(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (absl::ascii_isalnum(c)) out += absl::ascii_tolower(c);
  }
  return out;
}

Image CutToContent(const Image& rgba) {
  int top = rgba.height, bottom = -1, left = rgba.width, right = -1;
  for (int y = 0; y < rgba.height; ++y) {
    for (int x = 0; x < rgba.width; ++x) {
      if (rgba.at(y, x)[3] < 32) continue;
      top = std::min(top, y);
      bottom = std::max(bottom, y);
      left = std::min(left, x);
      right = std::max(right, x);
    }
  }
  if (bottom < 0) return rgba;
  return Crop(rgba, top, left, bottom - top + 1, right - left + 1);
}

class Preparation {
 public:
  Preparation(std::string folder, const FlagSources& sources)
      : folder_(std::move(folder)), sources_(sources) {}

  absl::Status Run() {
    MIMO_ASSIGN_OR_RETURN(const std::string emoji_test,
                          ReadFile(sources_.emoji_test));
    names_ = FlagNames(emoji_test);
    for (const auto& [code, continent] : Continents()) {
      if (!names_.contains(code)) {
        return absl::InvalidArgumentError(absl::StrCat(
            sources_.emoji_test, ": no name for the flag of ", code));
      }
      MIMO_RETURN_IF_ERROR(AddCountry(code, continent));
    }
    MIMO_RETURN_IF_ERROR(AddKgeography());
    for (const std::string_view split : kFlagSplits) {
      MIMO_RETURN_IF_ERROR(WriteFile(absl::StrCat(folder_, "/", split, ".json"),
                                     ToLlavaJson(splits_[std::string(split)])));
    }
    return WriteFile(absl::StrCat(folder_, kVersionFile), kVersion);
  }

  int pictures() const { return pictures_; }

 private:
  absl::Status AddCountry(const std::string& code,
                          const std::string& continent) {
    std::vector<const FlagStyle*> drawn;
    std::error_code error;
    for (const FlagStyle& style : sources_.styles) {
      if (fs::exists(FileOf(style, code), error)) {
        drawn.push_back(&style);
      } else if (style.name != "famfamfam") {  // which lacks ten
        return absl::NotFoundError(
            absl::StrCat("flags: no ", FileOf(style, code)));
      }
      if (style.name == "noto") {
        MIMO_ASSIGN_OR_RETURN(const Image image,
                              ReadImage(FileOf(style, code)));
        colours_[code] = ColourList(FlagColours(ToRgba(image)));
      }
    }
    const std::optional<int> held_out = HeldOutStyle(code, drawn.size());
    for (size_t i = 0; i < drawn.size(); ++i) {
      const char* split = !held_out             ? "unseen_country"
                          : *held_out == int(i) ? "heldout_style"
                                                : "train";
      MIMO_RETURN_IF_ERROR(
          Add(split, drawn[i]->name, code, FileOf(*drawn[i], code)));
    }
    return absl::OkStatus();
  }

  absl::Status AddKgeography() {
    std::map<std::string, std::string> codes;  // letters of the name -> code
    for (const auto& [code, continent] : Continents()) {
      codes[Letters(names_[code])] = code;
    }
    codes.insert(KgeographyNames().begin(), KgeographyNames().end());
    std::map<std::string, std::string> files;  // code -> file, in order
    std::error_code error;
    for (const auto& entry :
         fs::directory_iterator(sources_.kgeography, error)) {
      if (entry.path().extension() != ".png") continue;
      const auto it = codes.find(Letters(entry.path().stem().string()));
      if (it != codes.end()) files[it->second] = entry.path();
    }
    for (const auto& [code, file] : files) {
      if (!HeldOutStyle(code, 1)) continue;  // an unseen country
      MIMO_RETURN_IF_ERROR(Add("kgeography", "kgeography", code, file));
    }
    return absl::OkStatus();
  }

  absl::Status Add(const std::string& split, const std::string& style,
                   const std::string& code, const std::string& file) {
    MIMO_ASSIGN_OR_RETURN(const Image read, ReadImage(file));
    Image image = CutToContent(ToRgba(read));
    if (const int edge = std::max(image.height, image.width); edge > kMaxEdge) {
      image = ResizeBicubic(image, std::max(1, image.height * kMaxEdge / edge),
                            std::max(1, image.width * kMaxEdge / edge));
    }
    const std::string path = absl::StrCat("images/", style, "/",
                                          absl::AsciiStrToLower(code), ".png");
    MIMO_RETURN_IF_ERROR(WritePng(absl::StrCat(folder_, "/", path), image));
    ++pictures_;
    Conversation c;
    c.id = absl::StrCat(code, "-", style);
    c.pictures = {{path, nullptr}};
    c.turns = {
        {"<image>\nWhich flag is this?",
         absl::StrCat("The flag of ", names_[code], "."), "name"},
        {"Which continent?", absl::StrCat(Continents().at(code), "."),
         "continent"},
        {"Country code?", absl::StrCat(code, "."), "code"},
        {"Which colours?", absl::StrCat(colours_[code], "."), "colours"}};
    c.about = {{"country", code}, {"style", style}};
    splits_[split].push_back(std::move(c));
    return absl::OkStatus();
  }

  const std::string folder_;
  const FlagSources& sources_;
  std::map<std::string, std::string> names_, colours_;
  std::map<std::string, std::vector<Conversation>> splits_;
  int pictures_ = 0;
};

bool IsPrepared(const std::string& folder) {
  const auto version = ReadFile(absl::StrCat(folder, kVersionFile));
  return version.ok() && *version == kVersion;
}

}  // namespace

absl::StatusOr<FlagSources> FindFlagSources() {
  std::vector<fs::path> roots = {"/"};
  // `bazel run` starts in another folder and says where it was called.
  for (const char* checkout :
       {static_cast<const char*>(std::getenv("BUILD_WORKSPACE_DIRECTORY")),
        "."}) {
    if (checkout) {
      roots.push_back(fs::path(checkout) / ".deps/data/gemojione");
    }
  }
  FlagSources out;
  MIMO_ASSIGN_OR_RETURN(
      const std::string tanuki,
      FindGem({"/"}, "tanuki_emoji-", "vendor/unicode/emoji-test.txt"));
  MIMO_ASSIGN_OR_RETURN(const std::string gemojione,
                        FindGem(roots, "gemojione-", "assets/png"));
  out.styles = {{"iso", "/usr/share/iso-flags-png-320x240"},
                {"famfamfam", "/usr/share/flags/countries/16x11"},
                {"noto", tanuki + "/app/assets/images/tanuki_emoji"},
                {"emojione", gemojione + "/assets/png"}};
  out.kgeography = "/usr/share/kgeography/flags";
  out.emoji_test = tanuki + "/vendor/unicode/emoji-test.txt";
  std::vector<std::string> folders = {out.kgeography};
  for (const FlagStyle& style : out.styles) folders.push_back(style.folder);
  for (const std::string& folder : folders) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) {
      return absl::NotFoundError(
          absl::StrCat("flags: no folder ", folder, "; ./setup installs it"));
    }
  }
  return out;
}

std::optional<int> HeldOutStyle(std::string_view alpha2, int styles) {
  if (Sha1QuotientModulo(alpha2, 1, 10) == 0) return std::nullopt;
  return Sha1QuotientModulo(alpha2, 10, styles);
}

absl::Status PrepareFlags(const std::string& folder,
                          const FlagSources& sources) {
  if (IsPrepared(folder)) return absl::OkStatus();
  const std::string part = absl::StrCat(folder, ".part", getpid());
  Preparation preparation(part, sources);
  std::error_code error;
  if (const absl::Status done = preparation.Run(); !done.ok()) {
    fs::remove_all(part, error);
    return done;
  }
  if (!IsPrepared(folder)) {  // unless another process was quicker
    fs::remove_all(folder, error);
    fs::rename(part, folder, error);
  }
  const bool ready = IsPrepared(folder);
  fs::remove_all(part, error);
  if (!ready) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": cannot be made a folder of flags"));
  }
  std::fprintf(stderr, "flags: %d pictures of %d countries prepared in %s\n",
               preparation.pictures(), static_cast<int>(Continents().size()),
               folder.c_str());
  return absl::OkStatus();
}

}  // namespace mimo
