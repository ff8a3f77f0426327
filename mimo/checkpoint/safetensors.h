// The safetensors format: a JSON header with each tensor's dtype, shape and
// place, then the tensors' bytes, little-endian.
// Source: github.com/huggingface/safetensors, "Format".
//
// Checkpoints have each tensor's CRC32C in the metadata, under "crc32c": JSON
// text, {NAME: 8 hexadecimal digits}. It is checked where a tensor is loaded.
#ifndef MIMO_MIMO_CHECKPOINT_SAFETENSORS_H_
#define MIMO_MIMO_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/crc/crc32c.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

struct SafeTensorInfo {
  std::string name;
  DType dtype;  // BOOL is read as kUInt8
  Shape shape;
  int64_t offset;  // bytes from the end of the header
  std::optional<absl::crc32c_t> checksum = {};  // of its bytes
};

// "F32", "BF16", ...; no DType for one that is unknown.
absl::string_view SafeTensorsDType(DType dtype);
std::optional<DType> DTypeFromSafeTensors(absl::string_view name);

// A file, mapped into memory. Copies share the mapping.
class SafeTensors {
 public:
  // Checks the whole header: lengths, JSON, dtypes, shapes, offsets without
  // gap or overlap up to the file's end. Errors name file and tensor.
  static absl::StatusOr<SafeTensors> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, SafeTensorInfo>& tensors() const {
    return tensors_;
  }
  const SafeTensorInfo* Find(const std::string& name) const;  // or null
  // InvalidArgument: its bytes are not those of its checksum.
  absl::Status Check(const SafeTensorInfo& info) const;
  // A tensor's elements, unchecked, row-major, of any alignment.
  const void* Data(const SafeTensorInfo& info) const {
    return mapping_.get() + data_begin_ + info.offset;
  }
  const std::map<std::string, std::string>& metadata() const {
    return metadata_;  // but the checksums
  }

  // A copy in `dtype`, or in the file's own. NotFound when there is none.
  absl::StatusOr<Tensor> Load(const std::string& name, Allocator& allocator,
                              std::optional<DType> dtype = {}) const;
  // Fills `out`, converting to its dtype. InvalidArgument: another shape, or
  // values that `out` cannot hold (floats into integers, an integer too large).
  absl::Status LoadInto(const std::string& name, const Tensor& out) const;

 private:
  absl::Status ParseHeader(absl::string_view header, int64_t data_bytes);
  absl::Status ParseChecksums();  // out of the metadata

  std::string path_;
  std::shared_ptr<const char> mapping_;
  int64_t data_begin_ = 0;  // in the mapping
  std::map<std::string, SafeTensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct SafeTensorToWrite {
  std::string name;
  Tensor tensor;
  DType dtype;  // in the file
};

// Writes the file atomically (atomic_file.h has the errors), in the reference
// implementation's order: larger dtypes first, then by name. Tensors may be
// views; conversion takes little memory.
absl::Status WriteSafeTensors(
    const std::string& path, std::vector<SafeTensorToWrite> tensors,
    const std::map<std::string, std::string>& metadata = {},
    bool checksums = false);
absl::Status WriteSafeTensors(
    const std::string& path, const std::map<std::string, Tensor>& tensors,
    const std::map<std::string, std::string>& metadata = {},
    bool checksums = false);

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_SAFETENSORS_H_
