// Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) as conversations: 28 x 28
// grey pictures of ten garments, "What is this?" - "A sneaker."
#ifndef MIMO_MIMO_DATA_FASHION_MNIST_H_
#define MIMO_MIMO_DATA_FASHION_MNIST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/text/conversation.h"

namespace mimo {

inline constexpr char kFashionMnistFolder[] =
    "/usr/share/datasets/fashion-mnist";

// Its official split: 60,000 for training or 10,000 for tests, decoded, of kind
// "garment". Reads FOLDER/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz.
absl::StatusOr<std::vector<Conversation>> ReadFashionMnist(
    bool train, const std::string& folder = kFashionMnistFolder);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_FASHION_MNIST_H_
