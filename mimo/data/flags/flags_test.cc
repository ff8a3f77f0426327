#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"
#include "mimo/data/flags/colours.h"
#include "mimo/data/flags/countries.h"
#include "mimo/data/flags/prepare.h"
#include "mimo/data/image/codec.h"
#include "mimo/data/llava_json.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// The checkout, for .deps: a test's files are links into it.
void SetCheckout() {
  const fs::path here = fs::canonical("mimo/data/flags/flags_test.cc");
  setenv("BUILD_WORKSPACE_DIRECTORY",
         (here.parent_path() / "../../..").lexically_normal().c_str(), 1);
}

// Prepared once for all tests.
const std::string& Folder() {
  static const auto* folder = [] {
    SetCheckout();
    auto* path = new std::string(std::string(getenv("TEST_TMPDIR")) + "/flags");
    const auto sources = FindFlagSources();
    EXPECT_TRUE(sources.ok()) << sources.status();
    if (sources.ok()) {
      const absl::Status done = PrepareFlags(*path, *sources);
      EXPECT_TRUE(done.ok()) << done;
    }
    return path;
  }();
  return *folder;
}

std::vector<Conversation> Split(std::string_view name) {
  auto read = ReadLlavaJson(Folder() + "/" + std::string(name) + ".json");
  EXPECT_TRUE(read.ok()) << read.status();
  return read.ok() ? read->All() : std::vector<Conversation>{};
}

std::string Answer(const Conversation& c, std::string_view kind) {
  for (const Turn& turn : c.turns) {
    if (turn.kind == kind) return turn.answer;
  }
  return "";
}

TEST(Countries, AreThe249OfIso3166) {
  EXPECT_EQ(Continents().size(), 249u);
  std::map<std::string, int> count;
  for (const auto& [code, continent] : Continents()) ++count[continent];
  EXPECT_EQ(count["Africa"], 58);
  EXPECT_EQ(count["South America"], 14);
  EXPECT_EQ(count.size(), 7u);
}

TEST(Countries, NamesOutOfEmojiTest) {
  const auto names = FlagNames(
      "# comment flag: none\n"
      "1F1EE 1F1F9   ; fully-qualified # \xF0\x9F E0.6 flag: Italy\n"
      "1F3F4 E0067 E007F ; fully-qualified # x E5.0 flag: England\n"
      "1F1E6 1F1FF ; fully-qualified # x E2.0 flag: Azerbaijan\n");
  EXPECT_EQ(names, (std::map<std::string, std::string>{{"IT", "Italy"},
                                                       {"AZ", "Azerbaijan"}}));
}

// int(hashlib.sha1(b"IT").hexdigest(), 16) and so on.
TEST(HeldOutStyle, KnownValues) {
  EXPECT_EQ(HeldOutStyle("IT", 4), 1);
  EXPECT_EQ(HeldOutStyle("JP", 4), 0);
  EXPECT_EQ(HeldOutStyle("DK", 4), std::nullopt);
}

TEST(FlagColours, OfStripes) {
  const auto stripes = [](std::vector<Rgb> colours) {
    Image image(40, 60, 4);
    for (int y = 0; y < 40; ++y) {
      for (int x = 0; x < 60; ++x) {
        const Rgb& c = colours[x * colours.size() / 60];
        std::copy(c.begin(), c.end(), image.at(y, x));
        image.at(y, x)[3] = 255;
      }
    }
    return ColourList(FlagColours(image));
  };
  EXPECT_EQ(stripes({{0, 146, 70}, {255, 255, 255}, {206, 43, 55}}),
            "green, red and white");
  EXPECT_EQ(stripes({{0, 0, 60}, {200, 16, 46}}), "blue and red");  // dark navy
  EXPECT_EQ(stripes({{0, 0, 0}, {221, 0, 0}, {255, 206, 0}}),
            "black, red and yellow");
  // Grey is shading.
  EXPECT_EQ(stripes({{255, 255, 255}, {128, 128, 128}, {255, 136, 62}}),
            "orange and white");
  EXPECT_EQ(stripes({{10, 10, 10}}), "black");
  EXPECT_EQ(FlagColours(Image(8, 8, 4)).size(), 0u);  // all clear
}

TEST(PrepareFlags, Counts) {
  // Counted apart from this code, in Python.
  EXPECT_EQ(Split("train").size(), 663u);
  EXPECT_EQ(Split("heldout_style").size(), 224u);
  EXPECT_EQ(Split("unseen_country").size(), 99u);
  EXPECT_GT(Split("kgeography").size(), 170u);
}

TEST(PrepareFlags, NothingHeldOutIsTrainedOn) {
  std::set<std::string> trained_countries, trained_pictures;
  for (const Conversation& c : Split("train")) {
    trained_countries.insert(c.about.at("country"));
    trained_pictures.insert(c.pictures[0].path);
    EXPECT_NE(c.about.at("style"), "kgeography");
  }
  for (const Conversation& c : Split("heldout_style")) {
    EXPECT_FALSE(trained_pictures.contains(c.pictures[0].path)) << c.id;
    EXPECT_TRUE(trained_countries.contains(c.about.at("country"))) << c.id;
  }
  for (const Conversation& c : Split("unseen_country")) {
    EXPECT_FALSE(trained_countries.contains(c.about.at("country"))) << c.id;
  }
  std::set<std::string> kgeography;
  for (const Conversation& c : Split("kgeography")) {
    EXPECT_TRUE(trained_countries.contains(c.about.at("country"))) << c.id;
    EXPECT_TRUE(kgeography.insert(c.about.at("country")).second) << c.id;
  }
}

TEST(PrepareFlags, Answers) {
  std::map<std::string, Conversation> by_country;
  for (const std::string_view split : kFlagSplits) {
    for (Conversation& c : Split(split)) {
      EXPECT_EQ(c.turns.size(), 4u);
      EXPECT_GE(Answer(c, "colours").size(), 13u) << c.id;  // two at least
      by_country[c.about.at("country")] = c;
    }
  }
  EXPECT_EQ(by_country.size(), 249u);
  const Conversation& italy = by_country.at("IT");
  EXPECT_EQ(Answer(italy, "name"), "The flag of Italy.");
  EXPECT_EQ(Answer(italy, "continent"), "Europe.");
  EXPECT_EQ(Answer(italy, "code"), "IT.");
  const std::map<std::string, std::string> colours = {
      {"IT", "green, red and white."},
      {"DE", "black, red and yellow."},
      {"JP", "red and white."},
      {"JM", "black, green and yellow."},
      {"UA", "blue and yellow."},
      {"BW", "black, blue and white."},
      {"NZ", "blue, red and white."},
      {"BR", "blue, green and yellow."},
      {"FR", "blue, red and white."},
      {"CN", "red and yellow."},
      {"TR", "red and white."},
      {"SA", "green and white."},
      {"IE", "green, orange and white."},
      {"ZA", "black, blue, green, red, white and yellow."},
      {"US", "blue, red and white."},
      {"SE", "blue and yellow."},
      {"VN", "red and yellow."},
      {"PK", "green and white."},
      {"KZ", "blue and yellow."},
      {"EE", "black, blue and white."},
      {"CI", "green, orange and white."}};
  for (const auto& [code, want] : colours) {
    EXPECT_EQ(Answer(by_country.at(code), "colours"), want) << code;
  }
}

TEST(PrepareFlags, PicturesAreSmallAndCut) {
  for (const std::string_view split : kFlagSplits) {
    for (const Conversation& c : Split(split)) {
      const auto image = ReadImage(c.pictures[0].path);
      ASSERT_TRUE(image.ok()) << image.status();
      EXPECT_EQ(image->channels, 4);
      EXPECT_LE(std::max(image->height, image->width), 96) << c.id;
      EXPECT_GE(std::min(image->height, image->width), 8) << c.id;
    }
  }
}

TEST(PrepareFlags, DoneOnceAndAllOrNothing) {
  const auto written = fs::last_write_time(Folder() + "/train.json");
  const auto sources = FindFlagSources();
  ASSERT_TRUE(sources.ok()) << sources.status();
  EXPECT_TRUE(PrepareFlags(Folder(), *sources).ok());
  EXPECT_EQ(fs::last_write_time(Folder() + "/train.json"), written);
  // A missing source leaves nothing behind.
  FlagSources broken = *sources;
  broken.styles[0].folder = "/nowhere";
  const std::string other =
      std::string(getenv("TEST_TMPDIR")) + "/broken/flags";
  EXPECT_THAT(std::string(PrepareFlags(other, broken).message()),
              HasSubstr("/nowhere/"));
  EXPECT_FALSE(fs::exists(other));
  EXPECT_TRUE(!fs::exists(fs::path(other).parent_path()) ||
              fs::is_empty(fs::path(other).parent_path()));
  // Where nothing can be written, and where a file stands.
  ASSERT_TRUE(WriteFile(other + "-file", "x").ok());
  EXPECT_FALSE(PrepareFlags(other + "-file/flags", *sources).ok());
}

}  // namespace
}  // namespace mimo
