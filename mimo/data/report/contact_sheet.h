// A page of pictures with a question and an answer each, for people to look at.
#ifndef MIMO_MIMO_DATA_REPORT_CONTACT_SHEET_H_
#define MIMO_MIMO_DATA_REPORT_CONTACT_SHEET_H_

#include <string>
#include <vector>

#include "mimo/data/image/image.h"
#include "mimo/data/report/font.h"

namespace mimo {

struct ContactCell {
  Image picture;  // any channels and size
  std::string question, answer, wanted;
  bool right() const { return answer == wanted; }
};

struct ContactSheetOptions {
  int columns = 4;
  int cell_width = 312, cell_height = 150;  // pixels
  int picture_edge = 96;                    // its longer edge
};

// RGB. Each cell: the picture at the left; beside it the question in grey, the
// answer in green when right, and when not in red with what was wanted below.
// A bar of the same colour runs along the cell's left edge.
Image DrawContactSheet(const std::string& title,
                       const std::vector<ContactCell>& cells,
                       const ContactSheetOptions& options = {});

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_REPORT_CONTACT_SHEET_H_
