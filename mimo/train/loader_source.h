// LoaderSource: a data set's samples in a DataLoader's order, without end.
#ifndef MIMO_MIMO_TRAIN_LOADER_SOURCE_H_
#define MIMO_MIMO_TRAIN_LOADER_SOURCE_H_

#include <memory>
#include <utility>

#include "kernels/base/status_macros.h"
#include "mimo/data/data_loader.h"
#include "mimo/train/batch_source.h"

namespace mimo {

class LoaderSource : public BatchSource {
 public:
  // The loader and its threads start at the first Next() after this or Seek().
  LoaderSource(std::shared_ptr<const Dataset> dataset,
               const DataLoaderOptions& options)
      : dataset_(std::move(dataset)), options_(options) {}

  absl::StatusOr<MicroBatch> Next() override {
    if (loader_ == nullptr) {
      MIMO_ASSIGN_OR_RETURN(loader_, DataLoader::Create(dataset_, options_));
    }
    return loader_->Next();
  }
  absl::Status Seek(int64_t samples) override {
    loader_.reset();
    options_.consumed_samples = samples;
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<const Dataset> dataset_;
  DataLoaderOptions options_;
  std::unique_ptr<DataLoader> loader_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_LOADER_SOURCE_H_
