#include "elapid/state/pool.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace elapid {
namespace {

// Entries begin at cache lines.
int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

void* row_of(const Tensor& entry, int64_t slot) { return entry.slice(slot, slot + 1).data; }

size_t row_bytes(const StateEntry& entry) { return static_cast<size_t>(entry.shape.size() * size_of(DType::f32)); }

}  // namespace

Slot::~Slot() {
  if (pool_ != nullptr) pool_->release(index_);
}

Slot::Slot(Slot&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(std::exchange(other.index_, kNoSlot)) {}

Slot& Slot::operator=(Slot&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(index_, other.index_);
  return *this;
}

StatePool::StatePool(std::shared_ptr<const StateSpec> spec, int64_t slots) : spec_(std::move(spec)) {
  require(slots >= 0, "state pool: slots must not be negative, got ", slots);
  int64_t total = 0;
  for (const StateEntry& e : spec_->entries) {
    int64_t bytes = size_of(DType::f32);
    const bool overflows = __builtin_mul_overflow(bytes, e.shape.size(), &bytes) ||
                           __builtin_mul_overflow(bytes, slots, &bytes) ||
                           __builtin_add_overflow(total, bytes + 64, &total);
    require(!overflows, "state pool: size must fit into 64 bits, got ", slots, " slots");
  }
  memory_ = Buffer(total);
  char* at = static_cast<char*>(memory_.data());
  for (const StateEntry& e : spec_->entries) {
    Shape shape;
    shape.rank = e.shape.rank + 1;
    assert(shape.rank <= kMaxRank);
    shape.dims[0] = slots;
    std::copy_n(e.shape.dims, e.shape.rank, shape.dims + 1);
    entries_.emplace_back(at, DType::f32, shape);
    at += rounded(entries_.back().bytes());
  }
  taken_.assign(static_cast<size_t>(slots), false);
}

Slot StatePool::acquire() {
  const auto free = std::find(taken_.begin(), taken_.end(), false);
  require(free != taken_.end(), "state pool: must have a free slot, got all ", capacity(), " taken");
  *free = true;
  const int64_t index = free - taken_.begin();
  for (size_t i = 0; i < entries_.size(); ++i) {
    std::memset(row_of(entries_[i], index), 0, row_bytes(spec_->entries[i]));
  }
  return {this, index};
}

int64_t StatePool::available() const { return std::count(taken_.begin(), taken_.end(), false); }

State StatePool::save(const Slot& slot, std::span<const TokenId> tokens, std::span<const TokenId> pending) const {
  require(slot.pool_ == this, "state pool: a slot must be used with the pool it came from");
  auto data = std::make_shared<State::Data>();
  data->entries = spec_->entries;
  data->spec = spec_;
  data->tokens.assign(tokens.begin(), tokens.end());
  data->pending.assign(pending.begin(), pending.end());
  data->memory = Buffer(spec_->bytes_per_sequence());
  char* at = static_cast<char*>(data->memory.data());
  for (size_t i = 0; i < entries_.size(); ++i) {
    const StateEntry& e = spec_->entries[i];
    if (row_bytes(e) > 0) std::memcpy(at, row_of(entries_[i], slot.index()), row_bytes(e));
    data->tensors.emplace_back(at, DType::f32, e.shape);
    at += row_bytes(e);
  }
  return State(std::move(data));
}

void StatePool::load(const Slot& slot, const State& state) {
  require(slot.pool_ == this, "state pool: a slot must be used with the pool it came from");
  const State::Data& data = *state.data_;
  if (data.spec != spec_) {
    const std::string theirs = data.spec ? data.spec->fingerprint() : data.fingerprint;
    const std::string ours = spec_->fingerprint();
    require(theirs == ours, "load state: must belong to this model (fingerprint ", ours, "), got ", theirs);
  }
  require(data.entries == spec_->entries, "load state: entries must be those of this model, got ", data.entries.size(),
          " other ones");
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (row_bytes(data.entries[i]) > 0) {
      std::memcpy(row_of(entries_[i], slot.index()), data.tensors[i].data, row_bytes(data.entries[i]));
    }
  }
}

Slot StatePool::fork(const Slot& slot) {
  Slot copy = acquire();
  for (size_t i = 0; i < entries_.size(); ++i) {
    std::memcpy(row_of(entries_[i], copy.index()), row_of(entries_[i], slot.index()), row_bytes(spec_->entries[i]));
  }
  return copy;
}

}  // namespace elapid
