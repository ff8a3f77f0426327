#include "cli/compute.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<Device> ChooseDevice(const std::string& where,
                                    const std::string& name) {
  if (name == "cpu") return Device::kCpu;
  if (name != "cuda" && name != "auto") {
    return absl::InvalidArgumentError(absl::StrCat(
        where, "device: \"", name, "\", wanted cpu, cuda or auto"));
  }
  const absl::Status usable = CheckDevice(Device::kCuda);
  if (usable.ok()) return Device::kCuda;
  if (name == "auto") return Device::kCpu;
  return absl::InvalidArgumentError(
      absl::StrCat(where, "device: cuda: ", usable.message()));
}

absl::StatusOr<Compute> ChooseCompute(const std::string& where,
                                      const std::string& device,
                                      const std::string& dtype) {
  MIMO_ASSIGN_OR_RETURN(const Device on, ChooseDevice(where, device));
  const DType other = on == Device::kCpu ? DType::kFloat64 : DType::kBFloat16;
  for (DType known : {DType::kFloat32, other}) {
    if (dtype == Name(known)) return Compute{NewStream(on), known};
  }
  return absl::InvalidArgumentError(absl::StrCat(
      where, "dtype: \"", dtype, "\", wanted float32 or ", Name(other),
      on == Device::kCpu ? " on the CPU" : " on a GPU"));
}

void AddComputeFlags(Args& args, const std::string& default_device) {
  args.Flag("device", "cpu|cuda|auto",
            absl::StrCat("where; auto: on a GPU if there is one (",
                         default_device, ")"));
  args.Flag("dtype", "D", "float32, bfloat16 (GPU) or float64 (CPU)");
}

absl::StatusOr<Compute> ReadCompute(const Args& args,
                                    const std::string& default_device) {
  return ChooseCompute("--", args.String("device", default_device),
                       args.String("dtype", "float32"));
}

}  // namespace mimo
