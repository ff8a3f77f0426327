#include "mimo/data/flags/countries.h"

#include <cstdlib>

#include "absl/strings/str_split.h"

namespace mimo {

const std::map<std::string, std::string>& Continents() {
  static const auto* continents = [] {
    auto* out = new std::map<std::string, std::string>;
    const std::pair<const char*, std::string_view> lists[] = {
        {"Africa",
         "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW "
         "KE KM LR LS LY MA MG ML MR MU MW MZ NA NE NG RE RW SC SD SH SL SN SO "
         "SS ST SZ TD TG TN TZ UG YT ZA ZM ZW"},
        {"Antarctica", "AQ BV GS HM TF"},
        {"Asia",
         "AE AF AM AZ BD BH BN BT CC CN CX GE HK ID IL IN IO IQ IR JO JP KG KH "
         "KP KR KW KZ LA LB LK MM MN MO MV MY NP OM PH PK PS QA SA SG SY TH TJ "
         "TL TM TR TW UZ VN YE"},
        {"Europe",
         "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR "
         "HU IE IM IS IT JE LI LT LU LV MC MD ME MK MT NL NO PL PT RO RS RU SE "
         "SI SJ SK SM UA VA"},
        {"North America",
         "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN "
         "KY LC MF MQ MS MX NI PA PM PR SV SX TC TT US VC VG VI"},
        {"Oceania",
         "AS AU CK FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TO TV UM "
         "VU WF WS"},
        {"South America", "AR BO BR CL CO EC FK GF GY PE PY SR UY VE"},
    };
    for (const auto& [continent, codes] : lists) {
      for (std::string_view code : absl::StrSplit(codes, ' ')) {
        out->emplace(code, continent);
      }
    }
    return out;
  }();
  return *continents;
}

std::map<std::string, std::string> FlagNames(std::string_view emoji_test) {
  // "1F1EE 1F1F9 ; fully-qualified # (flag) E0.6 flag: Italy": two regional
  // indicators, of which 1F1E6 is A.
  constexpr std::string_view kMark = " flag: ";
  std::map<std::string, std::string> names;
  for (std::string_view line : absl::StrSplit(emoji_test, '\n')) {
    const size_t mark = line.find(kMark);
    if (mark == line.npos || !line.starts_with("1F1")) continue;
    std::string code;
    for (const size_t at : {0, 6}) {
      const long point =
          std::strtol(std::string(line.substr(at, 5)).c_str(), nullptr, 16);
      code += static_cast<char>('A' + point - 0x1f1e6);
    }
    names[code] = line.substr(mark + kMark.size());
  }
  return names;
}

}  // namespace mimo
