// Random views of a picture, each a pure function of the random sequence given.
#ifndef MIMO_MIMO_DATA_IMAGE_AUGMENT_H_
#define MIMO_MIMO_DATA_IMAGE_AUGMENT_H_

#include <vector>

#include "kernels/random/philox.h"
#include "mimo/data/image/image.h"

namespace mimo {

// Each value is drawn uniformly.
struct AugmentOptions {
  double min_scale = 1, max_scale = 1;
  double rotation = 0;  // degrees, +-
  double shift = 0;     // share of the picture's edge, +-, each axis
  double aspect = 0;    // wider or higher by this share, +-
  double gain = 0;      // of each colour, +-
  // Behind alpha and beyond the edges; random: half the time any colour.
  Rgb background = kWhite;
  bool random_background = false;
};

// Of training: what tells drawings of one thing apart but not the thing.
inline constexpr AugmentOptions kTrainAugment = {.min_scale = 0.9,
                                                 .max_scale = 1.15,
                                                 .rotation = 6,
                                                 .shift = 0.08,
                                                 .aspect = 0.08,
                                                 .gain = 0.1,
                                                 .random_background = true};
// Of evaluation on drawings that a pixel comparison would match when aligned.
inline constexpr AugmentOptions kShiftAugment = {.shift = 0.12};

// A view of `rgba` (4 channels), squashed to a square, read bilinearly (so the
// picture should not be more than about twice as large as the view), normalised
// as ClipPreprocess does: [3, size, size].
std::vector<float> Augment(const Image& rgba, int size,
                           const AugmentOptions& options,
                           PhiloxSequence& random);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_IMAGE_AUGMENT_H_
