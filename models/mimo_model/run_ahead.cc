// What a MimoStage does ahead of the passes.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "kernels/base/status_macros.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {

Context MimoStage::Beside() {
  // A profiler's events are on the compute stream.
  return ctx_.profiler != nullptr ? ctx_ : Context{.allocator = &ahead_memory_};
}

void MimoStage::Upload(const Upcoming& upcoming, int count) {
  const int own = upcoming.batches.size();
  for (int i = ahead_.size(); i < count; ++i) {
    absl::StatusOr<const MicroBatch*> batch = &upcoming.batches[0] + i;
    if (i >= own) batch = upcoming.around.next(i - own);
    if (batch.ok() && *batch == nullptr) return;
    auto inputs = batch.ok() ? model_.Prepare(Beside(), **batch, prepare_)
                             : batch.status();
    ahead_.push_back({batch.ok() ? (*batch)->input_ids : std::vector<int32_t>(),
                      std::move(inputs), RecordEvent(ahead_memory_.stream())});
  }
}

void MimoStage::Encode(const std::string& modality, const Upcoming& upcoming,
                       int count) {
  Upload(upcoming, count);
  if (ctx_.profiler != nullptr || model_.modality(modality).EncodersTrainable())
    return;
  for (int i = 0; i < std::min<int>(count, ahead_.size()); ++i) {
    auto& [input_ids, inputs, done] = ahead_[i];
    if (!inputs.ok() || (!inputs->modalities.contains(modality) &&
                         !inputs->received.contains(modality)))
      continue;
    if (absl::Status status = model_.EncodeFrozen(Beside(), modality, *inputs);
        !status.ok())
      inputs = status;
    done = RecordEvent(ahead_memory_.stream());
  }
}

absl::Status MimoStage::PassOn(const PipelineSchedule& schedule,
                               const PipelineStep& step,
                               const Upcoming& upcoming) {
  const int count = step.forward + 1 + RunAhead();
  Upload(upcoming, count);
  const int from = schedule.edges[step.at].from;
  const int upper = schedule.stages[from].stage;
  const std::string& name = schedule.ModuleOf(from);
  Communicator& pipeline = *links_.link(step.at).pipeline;
  const bool sends = pipeline.rank() == upper;
  std::vector<Transfer> transfers;
  std::vector<Event*> received;
  for (int i = step.forward; i < std::min<int>(count, ahead_.size()); ++i) {
    auto& [input_ids, inputs, done] = ahead_[i];
    MIMO_RETURN_IF_ERROR(inputs.status());  // others wait for it
    const int64_t rows = inputs->rows.at(name);
    if (rows == 0 || !inputs->moved.insert(step.at).second) continue;
    if (!sends) {
      MIMO_ASSIGN_OR_RETURN(Shape shape,
                            model_.modality(name).PassedShape(rows));
      inputs->received[name] = {
          Beside().Empty(std::move(shape), model_.dtype())};
      received.push_back(&done);
    } else if (!inputs->outputs.contains(name)) {  // its error
      return model_.ForwardModality(Beside(), name, *inputs).status();
    }
    const Tensor& x =
        (sends ? inputs->outputs : inputs->received).at(name).value;
    transfers.push_back({sends ? Transfer::kSend : Transfer::kRecv, x.data(),
                         x.numel(), x.dtype(), sends ? upper + 1 : upper});
  }
  if (transfers.empty()) return absl::OkStatus();
  const Stream beside = ahead_memory_.stream();
  pipeline.Exchange(transfers, beside);
  for (Event* done : received) *done = RecordEvent(beside);
  return absl::OkStatus();
}

void MimoStage::EncodeAll(const Upcoming& upcoming, int count) {
  Upload(upcoming, count);
  for (const std::string& name : model_.role().ModalityModuleNames())
    Encode(name, upcoming, count);
}

}  // namespace mimo
