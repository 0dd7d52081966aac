#include "elapid/state/pool.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>
#include <utility>

namespace elapid {
namespace {

// Entries begin at cache lines.
int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Tensor row_of(const Tensor& entry, int64_t slot) { return entry.slice(slot, slot + 1); }

int64_t checked_slots(int64_t slots) {
  // As many as leave the size of a page table within 64 bits.
  require(slots >= 0 && slots <= int64_t{1} << 32, "state pool: slots must be 0 to 2³², got ", slots);
  return slots;
}

// By layer, and by kind within one: the order of a State, whatever the order in which bodies declare their entries.
std::vector<size_t> order_of(const std::vector<StateEntry>& entries) {
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto key = [&](size_t i) { return std::tie(entries[i].layer, entries[i].kind); };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
  for (size_t i = 1; i < order.size(); ++i) {
    require(key(order[i - 1]) != key(order[i]), "state pool: kinds of one layer must differ, got ",
            entries[order[i]].kind, " twice in layer ", entries[order[i]].layer);
  }
  return order;
}

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

StatePool::StatePool(std::shared_ptr<const StateSpec> spec, int64_t slots, DType recurrent, Device device, void* stream)
    : spec_(std::move(spec)), device_(device), stream_(stream), pages_(*spec_, checked_slots(slots), device, stream) {
  require(recurrent == DType::f32 || recurrent == DType::bf16, "state pool: states must be held in f32 or bf16, got ",
          name_of(recurrent));
  require(recurrent == DType::f32 || !on_cuda(device), "state pool: states must be held in f32 on cuda, got ",
          name_of(recurrent));
  const std::vector<StateEntry>& entries = spec_->entries;
  order_ = order_of(entries);
  const auto held_in = [&](const StateEntry& e) { return e.recurrent ? recurrent : DType::f32; };
  int64_t total = 0;
  for (const StateEntry& e : entries) {
    if (e.per_token()) continue;
    int64_t bytes = size_of(held_in(e));
    const bool overflows = __builtin_mul_overflow(bytes, e.shape.size(), &bytes) ||
                           __builtin_mul_overflow(bytes, slots, &bytes) ||
                           __builtin_add_overflow(total, bytes + 64, &total);
    require(!overflows, "state pool: size must fit into 64 bits, got ", slots, " slots");
  }
  memory_ = Buffer(total, device);
  char* at = static_cast<char*>(memory_.data());
  for (size_t i = 0; i < entries.size(); ++i) {
    const StateEntry& e = entries[i];
    if (e.per_token()) {
      entries_.push_back(pages_.memory(static_cast<int64_t>(i)));
      continue;
    }
    Shape shape;
    shape.rank = e.shape.rank + 1;
    assert(shape.rank <= kMaxRank);
    shape.dims[0] = slots;
    std::copy_n(e.shape.dims, e.shape.rank, shape.dims + 1);
    entries_.emplace_back(at, held_in(e), shape);
    at += rounded(entries_.back().bytes());
  }
  taken_.assign(static_cast<size_t>(slots), false);
  lengths_.assign(static_cast<size_t>(slots), 0);
}

size_t StatePool::checked(int64_t slot) const {
  require(slot >= 0 && slot < capacity() && taken_[static_cast<size_t>(slot)],
          "state pool: a slot must have been acquired, got ", slot);
  return static_cast<size_t>(slot);
}

Slot StatePool::acquire() {
  const auto free = std::find(taken_.begin(), taken_.end(), false);
  require(free != taken_.end(), "state pool: must have a free slot, got all ", capacity(), " taken");
  *free = true;
  const int64_t index = free - taken_.begin();
  in_order([&](const StateEntry& e, size_t i) {
    if (e.per_token()) return;
    const Tensor row = row_of(entries_[i], index);
    if constexpr (kWithCuda) {
      if (on_cuda(device_)) return fill_async(row.data, 0, row.bytes(), stream_);
    }
    std::memset(row.data, 0, static_cast<size_t>(row.bytes()));
  });
  return {this, index};
}

void StatePool::release(int64_t index) noexcept {
  pages_.release(index);
  lengths_[static_cast<size_t>(index)] = 0;
  taken_[static_cast<size_t>(index)] = false;
}

int64_t StatePool::bytes_per_sequence() const {
  int64_t bytes = 0;
  in_order([&](const StateEntry& e, size_t i) {
    if (!e.per_token()) bytes += e.shape.size() * size_of(entries_[i].dtype);
  });
  return bytes;
}

int64_t StatePool::available() const { return std::count(taken_.begin(), taken_.end(), false); }

// An entry's row of one slot, from and to float32; bf16 is the host's alone.
void StatePool::read_row(float* to, const Tensor& row) const {
  if (row.dtype == DType::f32) return copy(to, row.data, row.bytes());
  for (int64_t i = 0; i < row.size(); ++i) to[i] = to_float(row.ptr<BFloat16>()[i]);
}
void StatePool::write_row(const Tensor& row, const float* from) const {
  if (row.dtype == DType::f32) return copy(row.data, from, row.bytes());
  for (int64_t i = 0; i < row.size(); ++i) row.ptr<BFloat16>()[i] = to_bf16(from[i]);
}

State StatePool::save(const Slot& slot, std::span<const TokenId> tokens, std::span<const TokenId> pending) const {
  require(slot.pool_ == this, "state pool: a slot must be used with the pool it came from");
  auto data = std::make_shared<State::Data>();
  data->spec = spec_;
  data->tokens.assign(tokens.begin(), tokens.end());
  data->pending.assign(pending.begin(), pending.end());
  data->length = length(slot.index());
  data->memory = Buffer(spec_->bytes_per_sequence() + data->length * spec_->bytes_per_token());
  char* at = static_cast<char*>(data->memory.data());
  in_order([&](const StateEntry& e, size_t i) {
    const Tensor copied(at, DType::f32, e.per_token() ? State::with_tokens(data->length, e.shape) : e.shape);
    if (e.per_token()) {
      pages_.for_each(slot.index(), static_cast<int64_t>(i), data->length,
                      [&](int64_t first, int64_t count, const float* page) {
                        copy(at + first * e.bytes(), page, count * e.bytes());
                      });
    } else {
      read_row(copied.ptr<float>(), row_of(entries_[i], slot.index()));
    }
    data->entries.push_back(e);
    data->tensors.push_back(copied);
    at += copied.bytes();
  });
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) synchronize(stream_);
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
  bool same = data.entries.size() == order_.size();
  for (size_t i = 0; same && i < order_.size(); ++i) same = data.entries[i] == spec_->entries[order_[i]];
  require(same, "load state: entries must be those of this model, got ", data.entries.size(), " other ones");

  const int64_t index = slot.index();
  lengths_[checked(index)] = 0;
  pages_.release(index);
  pages_.extend(index, 0, data.length);
  auto from = data.tensors.begin();
  in_order([&](const StateEntry& e, size_t i) {
    const char* saved = static_cast<const char*>((from++)->data);
    if (e.per_token()) {
      pages_.for_each(index, static_cast<int64_t>(i), data.length, [&](int64_t first, int64_t count, float* page) {
        copy(page, saved + first * e.bytes(), count * e.bytes());
      });
    } else {
      write_row(row_of(entries_[i], index), reinterpret_cast<const float*>(saved));
    }
  });
  lengths_[checked(index)] = data.length;
}

void StatePool::write(int64_t slot, int64_t entry, std::span<const float> values) {
  const Tensor row = this->entry(entry).slice(static_cast<int64_t>(checked(slot)), slot + 1);
  require(!spec_->entries[static_cast<size_t>(entry)].per_token() && static_cast<int64_t>(values.size()) == row.size(),
          "state pool: a fixed entry must get all of its elements, got ", values.size());
  write_row(row, values.data());
}

void StatePool::write_token(int64_t slot, int64_t entry, int64_t token, std::span<const float> values) {
  const Tensor pages = this->entry(entry);
  require(
      spec_->entries[static_cast<size_t>(entry)].per_token() && static_cast<int64_t>(values.size()) == pages.strides[1],
      "state pool: a token must get all of its elements, got ", values.size());
  const int32_t page = page_table().row<int32_t>(static_cast<int64_t>(checked(slot)))[token / kPageTokens];
  copy(pages.ptr<float>() + page * pages.strides[0] + token % kPageTokens * pages.strides[1], values.data(),
       pages.strides[1] * size_of(DType::f32));
}

Slot StatePool::fork(const Slot& slot) {
  require(slot.pool_ == this, "state pool: a slot must be used with the pool it came from");
  Slot other = acquire();
  in_order([&](const StateEntry& e, size_t i) {
    if (e.per_token()) return;
    const Tensor row = row_of(entries_[i], other.index());
    copy(row.data, row_of(entries_[i], slot.index()).data, row.bytes());
  });
  pages_.share(slot.index(), other.index(), length(slot.index()));
  lengths_[checked(other.index())] = length(slot.index());
  return other;
}

}  // namespace elapid
