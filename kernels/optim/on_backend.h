// The control block of an optimizer's step in tests: on a backend, read and
// written from the host.
#ifndef MIMO_KERNELS_OPTIM_ON_BACKEND_H_
#define MIMO_KERNELS_OPTIM_ON_BACKEND_H_

#include "kernels/base/device.h"
#include "kernels/optim/tensor_list.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {

class ControlOn {
 public:
  explicit ControlOn(const Backend& backend, const AdamWControl& value = {})
      : backend_(backend),
        memory_(Array::Workspace(backend, sizeof(AdamWControl))) {
    Set(value);
  }
  AdamWControl* data() const {
    return static_cast<AdamWControl*>(memory_.data());
  }
  void Set(const AdamWControl& value) {
    CopyBytes(data(), &value, sizeof(value), StreamOf(backend_));
    Synchronize(StreamOf(backend_));
  }
  AdamWControl Get() const {
    AdamWControl value;
    CopyBytes(&value, data(), sizeof(value), StreamOf(backend_));
    Synchronize(StreamOf(backend_));
    return value;
  }

 private:
  Backend backend_;
  Array memory_;
};

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_ON_BACKEND_H_
