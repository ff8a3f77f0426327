// Where, and in what dtype, a command computes.
#ifndef MIMO_CLI_COMPUTE_H_
#define MIMO_CLI_COMPUTE_H_

#include <string>

#include "absl/status/statusor.h"
#include "cli/args.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

struct Compute {
  Stream stream;
  DType dtype;
};

// cpu, cuda, or auto, the GPU where there is one. Errors name `where`'s device.
absl::StatusOr<Device> ChooseDevice(const std::string& where,
                                    const std::string& device);
// device: as above. dtype: float32, bfloat16 (a GPU), float64 (the CPU: the
// oracle's). Errors name `where`'s device or dtype, e.g. "train.device" with
// "train.".
absl::StatusOr<Compute> ChooseCompute(const std::string& where,
                                      const std::string& device,
                                      const std::string& dtype);

// The same as flags of a command.
void AddComputeFlags(Args& args, const std::string& default_device);
absl::StatusOr<Compute> ReadCompute(const Args& args,
                                    const std::string& default_device);

}  // namespace mimo

#endif  // MIMO_CLI_COMPUTE_H_
