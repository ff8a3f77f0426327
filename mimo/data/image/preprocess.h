// From a picture to a vision tower's input.
#ifndef MIMO_MIMO_DATA_IMAGE_PREPROCESS_H_
#define MIMO_MIMO_DATA_IMAGE_PREPROCESS_H_

#include <vector>

#include "mimo/data/image/image.h"

namespace mimo {

// CLIP's colour statistics (OpenAI, 2021), of values in [0, 1].
inline constexpr float kClipMean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
inline constexpr float kClipStd[3] = {0.26862954f, 0.26130258f, 0.27577711f};

// How a picture becomes square.
enum class Fit {
  kCrop,    // shortest edge to the size, then the middle: CLIP's way
  kSquash,  // both edges to the size: nothing is lost, proportions are
};

// RGB [H, W, 3] -> [3, H, W], (v / 255 - mean) / std.
std::vector<float> Normalize(const Image& rgb);

// Alpha on white, resize, crop, Normalize: [3, size, size]. With kCrop equal to
// Hugging Face's CLIPImageProcessor.
std::vector<float> ClipPreprocess(const Image& image, int size,
                                  Fit fit = Fit::kCrop);

// What ClipPreprocess normalises: RGB [size, size, 3].
Image FitSquare(const Image& image, int size, Fit fit);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_IMAGE_PREPROCESS_H_
