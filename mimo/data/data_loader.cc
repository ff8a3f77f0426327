#include "mimo/data/data_loader.h"

#include <string>
#include <utility>

#include "absl/log/check.h"
#include "absl/memory/memory.h"
#include "kernels/base/status_macros.h"

namespace mimo {

// Micro-batches made ahead, for each worker.
constexpr int64_t kAhead = 4;

absl::StatusOr<std::unique_ptr<DataLoader>> DataLoader::Create(
    std::shared_ptr<const Dataset> dataset, const DataLoaderOptions& options) {
  CHECK(options.consumed_samples >= 0 && options.num_workers >= 0)
      << "DataLoader";
  options.share.Check();
  if (dataset->size() == 0) {
    return absl::InvalidArgumentError("data: 0 samples, wanted at least 1");
  }
  return absl::WrapUnique(new DataLoader(std::move(dataset), options));
}

DataLoader::DataLoader(std::shared_ptr<const Dataset> dataset,
                       const DataLoaderOptions& options)
    : dataset_(std::move(dataset)),
      options_(options),
      consumed_(options.consumed_samples),
      claimed_(consumed_),
      wanted_(consumed_) {
  for (int64_t i = 0; i < options_.num_workers; ++i) {
    workers_.emplace_back([this] { Work(); });
  }
}

DataLoader::~DataLoader() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& worker : workers_) worker.join();
}

void DataLoader::Work() {
  const int64_t ahead = kAhead * options_.num_workers * options_.share.samples;
  while (true) {
    int64_t start;
    {
      absl::MutexLock lock(&mutex_);
      const auto room = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stop_ || claimed_ < wanted_ + ahead;
      };
      mutex_.Await(absl::Condition(&room));
      if (stop_) return;
      start = claimed_;
      claimed_ += options_.share.samples;
    }
    absl::StatusOr<MicroBatch> made = Make(start);
    absl::MutexLock lock(&mutex_);
    ready_.emplace(start, std::move(made));
  }
}

absl::StatusOr<MicroBatch> DataLoader::Next() {
  absl::StatusOr<MicroBatch> next;
  if (workers_.empty()) {
    next = Make(consumed_);
    if (next.ok()) consumed_ += options_.share.samples;
    return next;
  }
  absl::MutexLock lock(&mutex_);
  const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ready_.contains(consumed_);
  };
  mutex_.Await(absl::Condition(&ready));
  const auto it = ready_.find(consumed_);
  if (!it->second.ok()) return it->second;
  next = std::move(it->second);
  ready_.erase(it);
  wanted_ = consumed_ += options_.share.samples;
  return next;
}

absl::StatusOr<MicroBatch> DataLoader::Make(int64_t consumed) {
  const DataShare& share = options_.share;
  std::vector<Sample> texts;
  MicroBatch read;  // without the text
  for (int64_t i = 0; i < share.samples; ++i) {
    const int64_t epoch = (consumed + i) / dataset_->size(),
                  at = (consumed + i) % dataset_->size();
    const int64_t index = options_.shuffle ? (*Order(epoch))[at] : at;
    if (share.text && share.text->Has(i, share.samples)) {
      MIMO_ASSIGN_OR_RETURN(texts.emplace_back(), dataset_->Text(index, epoch));
    }
    for (const auto& [name, slice] : share.modalities) {
      if (!slice.Has(i, share.samples)) continue;
      MIMO_ASSIGN_OR_RETURN(const std::vector<ModalityItem> items,
                            dataset_->Items(index, epoch, name));
      for (const ModalityItem& item : items) read.modalities[name].Add(item);
    }
    for (const std::string& name : share.counted)
      read.sample_rows[name].push_back(
          dataset_->ItemTokens(index, epoch, name));
  }
  MicroBatch batch = Collate(texts, options_.pad_id);
  batch.modalities = std::move(read.modalities);
  batch.sample_rows = std::move(read.sample_rows);
  return batch;
}

std::shared_ptr<const std::vector<int64_t>> DataLoader::Order(int64_t epoch) {
  absl::MutexLock lock(&order_mutex_);
  if (const auto it = orders_.find(epoch); it != orders_.end()) {
    return it->second;
  }
  auto order = std::make_shared<const std::vector<int64_t>>(
      EpochOrder(options_.seed, epoch, dataset_->size()));
  orders_[epoch] = order;
  if (orders_.size() > 2) orders_.erase(orders_.begin());
  return order;
}

}  // namespace mimo
