#include "tests/ops/harness.h"

#include "elapid/core/random.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define ELAPID_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ELAPID_TEST_ASAN 1
#endif
#endif
#ifdef ELAPID_TEST_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace elapid::testing {
namespace {

constexpr int64_t kGuard = 128, kDeviceGuard = 512;
constexpr int kUntouched = 0xff;                // every float of such bytes is NaN
constexpr int64_t kStained = int64_t{1} << 20;  // how much of a fresh arena Lab fills with kUntouched
constexpr int64_t kPaddingLeft = 3, kPaddingRight = 5;

// The nearest binary16 of a value in its range.
Float16 to_half(double value) {
  if (value == 0) return {0};
  int exponent = 0;
  std::frexp(value, &exponent);
  const int quantum = std::max(exponent - 1, -14) - 10;  // exponent of the last place
  const double places = std::nearbyint(std::ldexp(std::abs(value), -quantum));
  // A normal number's leading bit carries into the exponent field.
  const int field = quantum + 24;
  const int bits = static_cast<int>(places) + field * 1024;
  return {static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0))};
}

void put(char* to, DType dtype, double value) {
  const auto narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::f32: std::memcpy(to, &narrow, sizeof narrow); return;
    case DType::bf16: {
      const BFloat16 rounded = to_bf16(narrow);
      std::memcpy(to, &rounded, sizeof rounded);
      return;
    }
    case DType::f16: {
      const Float16 rounded = to_half(value);
      std::memcpy(to, &rounded, sizeof rounded);
      return;
    }
    default: fail(concat("workbench: elements must be f32, bf16 or f16, got ", name_of(dtype)));
  }
}

}  // namespace

struct Workbench::Block {
  char *memory, *data;
  int64_t bytes, data_bytes;
  std::vector<char> before;                        // contents of `memory` at the last snapshot
  char *device = nullptr, *device_data = nullptr;  // guarded likewise
  std::vector<bool> writable;                      // for each byte of the data

  Block(int64_t data_bytes_, int64_t offset)
      : memory(
            static_cast<char*>(::operator new (static_cast<size_t>(2 * kGuard + data_bytes_), std::align_val_t{64}))),
        data(memory + kGuard - 64 + offset),
        bytes(2 * kGuard + data_bytes_),
        data_bytes(data_bytes_),
        writable(static_cast<size_t>(data_bytes_)) {
    std::memset(memory, kUntouched, static_cast<size_t>(bytes));
  }
  ~Block() {
    free_device();
    ::operator delete (memory, std::align_val_t{64});
  }
  void free_device() {
    if constexpr (kWithCuda) {
      if (device != nullptr) free_on_device(device);
    }
    device = nullptr;
  }
  [[nodiscard]] int64_t device_bytes() const { return 2 * kDeviceGuard + data_bytes; }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

Workbench::Workbench(uint64_t seed) : seed_(seed) {}

Workbench::~Workbench() {
  for (const auto& block : blocks_) guard(*block, false);
}

void Workbench::guard(Block& block, bool closed) {
#ifdef ELAPID_TEST_ASAN
  if (closed) {
    ASAN_POISON_MEMORY_REGION(block.memory, block.data - block.memory);
    ASAN_POISON_MEMORY_REGION(block.data + block.data_bytes,
                              block.memory + block.bytes - block.data - block.data_bytes);
  } else {
    ASAN_UNPOISON_MEMORY_REGION(block.memory, block.bytes);
  }
#else
  static_cast<void>(block);
  static_cast<void>(closed);
#endif
}

char* Workbench::allocate(int64_t bytes, int64_t element, Alignment alignment) {
  // Aligned to the element and no further, or not even that.
  const int64_t offset = element + (alignment == Alignment::none ? 1 : 0);
  blocks_.push_back(std::make_unique<Block>(bytes, offset));
  return blocks_.back()->data;
}

double Workbench::draw() { return uniform(seed_, draws_++, 0); }

double Workbench::draw(Range range) {
  // One value, infinite perhaps, needs no draw.
  return range.low == range.high ? range.low : range.low + (range.high - range.low) * draw();
}

Tensor Workbench::tensor(Shape shape, Range range, DType dtype, Alignment alignment) {
  const int64_t element = size_of(dtype);
  char* data = allocate(shape.size() * element, element, alignment);
  for (int64_t i = 0; i < shape.size(); ++i) put(data + i * element, dtype, draw(range));
  return {data, dtype, shape};
}

Tensor Workbench::output(int64_t rows, int64_t cols, bool strided, DType dtype) {
  const int64_t left = strided ? kPaddingLeft : 0, width = left + cols + (strided ? kPaddingRight : 0);
  const int64_t element = size_of(dtype);
  char* data = allocate(rows * width * element, element, Alignment::element);
  return Tensor(data, dtype, {rows, width}).columns(left, left + cols);
}

Tensor Workbench::matrix(int64_t rows, int64_t cols, Range range, bool strided, DType dtype) {
  const Tensor t = output(rows, cols, strided, dtype);
  const int64_t element = size_of(dtype);
  for (int64_t r = 0; r < rows; ++r) {
    char* row = static_cast<char*>(t.data) + r * t.row_stride() * element;
    for (int64_t c = 0; c < cols; ++c) put(row + c * element, dtype, draw(range));
  }
  return t;
}

Tensor Workbench::integers(const std::vector<int64_t>& values, DType dtype) {
  const auto count = static_cast<int64_t>(values.size());
  const Tensor t(allocate(count * size_of(dtype), size_of(dtype), Alignment::element), dtype, {count});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = values[static_cast<size_t>(i)];
    if (dtype == DType::i64) {
      t.ptr<int64_t>()[i] = value;
    } else {
      t.ptr<int32_t>()[i] = static_cast<int32_t>(value);
    }
  }
  return t;
}

Tensor Workbench::floats(const std::vector<float>& values) {
  const Tensor t = output(1, static_cast<int64_t>(values.size()), false);
  std::copy(values.begin(), values.end(), t.ptr<float>());
  return t.reshape({t.size()});
}

Batch Workbench::batch(const reference::Sequences& sequences) {
  Batch batch;
  batch.offsets = integers(sequences.offsets);
  batch.slots = integers(sequences.slots);
  if (!sequences.past.empty()) batch.past = integers(sequences.past);
  return batch;
}

void Workbench::writable(const Tensor& view) {
  if (view.size() == 0) return;
  const int64_t element = size_of(view.dtype);
  const auto* data = static_cast<const char*>(view.data);
  for (const auto& block : blocks_) {
    if (data < block->data || data >= block->data + block->data_bytes) continue;
    for (int64_t r = 0; r < view.rows(); ++r) {
      const int64_t first = data - block->data + r * view.row_stride() * element;
      std::fill_n(block->writable.begin() + first, view.cols() * element, true);
    }
    return;
  }
  fail("workbench: writable() must get a tensor of this workbench");
}

void Workbench::snapshot() {
  for (const auto& block : blocks_) {
    guard(*block, false);
    block->before.assign(block->memory, block->memory + block->bytes);
    guard(*block, true);
  }
}

void Workbench::restore() {
  for (const auto& block : blocks_) {
    guard(*block, false);
    std::copy(block->before.begin(), block->before.end(), block->memory);
    guard(*block, true);
  }
}

std::string Workbench::damage() {
  std::string report;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = *blocks_[b];
    guard(block, false);
    const bool changed = std::memcmp(block.memory, block.before.data(), block.before.size()) != 0;
    for (int64_t i = 0; changed && report.empty() && i < block.bytes; ++i) {
      if (block.memory[i] == block.before[static_cast<size_t>(i)]) continue;
      const int64_t at = i - (block.data - block.memory);
      const bool inside = at >= 0 && at < block.data_bytes;
      if (inside && block.writable[static_cast<size_t>(at)]) continue;
      report = concat("byte ", at, " of tensor ", b, " (", block.data_bytes,
                      " bytes) was changed: ", inside ? "an input, padding, or another sequence's state" : "a guard");
    }
    guard(block, true);
  }
  return report;
}

Tensor Workbench::device_copy(const Tensor& t) const {
  for (const auto& block : blocks_) {
    const auto* data = static_cast<const char*>(t.data);
    if (block->device == nullptr || data < block->data || data > block->data + block->data_bytes) continue;
    Tensor copy = t;
    copy.data = block->device_data + (data - block->data);
    return copy;
  }
  return t;
}

void Workbench::copy_to_device([[maybe_unused]] const Context& ctx, [[maybe_unused]] bool aligned) {
  if constexpr (kWithCuda) {
    for (const auto& block : blocks_) {
      block->free_device();
      block->device = static_cast<char*>(allocate_on_device(ctx.device.index, block->device_bytes()));
      const int64_t misaligned = (block->data - block->memory) % 64;
      block->device_data = block->device + kDeviceGuard - (aligned ? 0 : 64 - misaligned);
      fill_async(block->device, kUntouched, block->device_bytes(), ctx.stream);
      copy_async(block->device_data, block->data, block->data_bytes, ctx.stream);
    }
    synchronize(ctx.stream);
  }
}

std::string Workbench::copy_back([[maybe_unused]] const Context& ctx) {
  std::string report;
  if constexpr (kWithCuda) {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const Block& block = *blocks_[b];
      std::vector<char> all(static_cast<size_t>(block.device_bytes()));
      copy_async(all.data(), block.device, block.device_bytes(), ctx.stream);
      synchronize(ctx.stream);
      const int64_t first = block.device_data - block.device;
      std::copy_n(all.begin() + first, block.data_bytes, block.data);
      for (int64_t i = 0; i < block.device_bytes(); ++i) {
        const bool guard = i < first || i >= first + block.data_bytes;
        if (report.empty() && guard && all[static_cast<size_t>(i)] != static_cast<char>(kUntouched)) {
          report =
              concat("byte ", i - first, " of tensor ", b, " (", block.data_bytes, " bytes) on the device, a guard");
        }
      }
    }
  }
  return report;
}

Tensor Located::operator()(const Tensor& t) const { return on_device_ && t ? bench_.device_copy(t) : t; }
Param Located::operator()(Param p) const {
  p.value = (*this)(p.value);
  return p;
}
std::vector<Param> Located::operator()(std::vector<Param> params) const {
  for (Param& p : params) p.value = (*this)(p.value);
  return params;
}

void for_each_isa(const std::function<void(Isa)>& body) {
  const Isa before = active_isa();
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    SCOPED_TRACE(std::string(name_of(isa)));
    body(isa);
  }
  set_active_isa(before);
}

ThreadPool& threads(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  return *pool;
}

Lab::Lab(int thread_count, Device device)
    : thread_count_(thread_count),
      device_(device),
      stream_(device),
      arena_(std::make_unique<Arena>(int64_t{1} << 30, device)) {
  const Arena::Scope scope(*arena_);
  const Tensor all = arena_->alloc({kStained}, DType::u8);
  if constexpr (kWithCuda) {
    if (on_cuda(device)) {
      host_room_ = std::make_unique<HostRoom>();
      fill_async(all.data, kUntouched, kStained, stream_.handle());
    }
  }
  if (!on_cuda(device)) std::memset(all.data, kUntouched, static_cast<size_t>(kStained));
  base_ = static_cast<const char*>(all.data);
  arena_->set_poison(true, stream_.handle());
}

Context Lab::ctx() { return {device_, threads(thread_count_), *arena_, nullptr, stream_.handle(), host_room_.get()}; }

std::string Lab::damage(const Tensor& t) const {
  const auto* data = static_cast<const char*>(t.data);
  const char* end = data + t.bytes();
  if (data < base_ || end > base_ + kStained) return "";  // not from the arena, or beyond what is known of it
  const int64_t behind = (64 - (end - base_) % 64) % 64;
  std::vector<char> bytes(static_cast<size_t>(behind));
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      copy_async(bytes.data(), end, behind, stream_.handle());
      synchronize(stream_.handle());
    }
  }
  if (!on_cuda(device_)) std::copy_n(end, behind, bytes.data());
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != static_cast<char>(kUntouched)) return concat("byte ", i, " behind an output was written");
  }
  return "";
}

bool has_cuda(std::string& why) {
  if constexpr (kWithCuda) {
    if (!cuda_devices().empty()) return true;
    why = "this machine has no CUDA device";
  } else {
    why = "this build has no CUDA half";
  }
  return false;
}

HostCopy copy_to_host([[maybe_unused]] const Context& ctx, const Tensor& t) {
  HostCopy copy{std::vector<char>(static_cast<size_t>(t.bytes())), {}};
  copy.tensor = Tensor(copy.memory.data(), t.dtype, t.shape);
  const int64_t element = size_of(t.dtype), row = t.cols() * element;
  if constexpr (kWithCuda) {
    copy_rows_async(copy.memory.data(), row, t.data, t.row_stride() * element, row, t.rows(), ctx.stream);
    synchronize(ctx.stream);
  } else {
    for (int64_t r = 0; r < t.rows(); ++r) {
      std::memcpy(copy.memory.data() + r * row, static_cast<const char*>(t.data) + r * t.row_stride() * element,
                  static_cast<size_t>(row));
    }
  }
  return copy;
}

reference::Expected written_in_bf16(reference::Expected expected) {
  constexpr double kSmallest = 0x1p-133;  // of bf16's subnormals
  for (size_t i = 0; i < expected.value.values.size(); ++i) {
    double& tolerance = expected.tolerance.values[i];
    tolerance += reference::kBf16Rounding * (std::abs(expected.value.values[i]) + tolerance) + kSmallest;
  }
  return expected;
}

Bits bits_of(const Tensor& t) {
  Bits bits(static_cast<size_t>(t.rows() * t.cols()));
  if (t.dtype == DType::bf16) {
    for (int64_t i = 0; i < t.rows() * t.cols(); ++i) {
      bits[static_cast<size_t>(i)] = t.row<BFloat16>(i / t.cols())[i % t.cols()].bits;
    }
    return bits;
  }
  for (int64_t r = 0; r < t.rows() && t.cols() > 0; ++r) {
    std::memcpy(bits.data() + r * t.cols(), t.row<float>(r), static_cast<size_t>(t.cols()) * 4);
  }
  return bits;
}

Share share_of(const Tensor& actual, const reference::Expected& expected) {
  const reference::Matrix& value = expected.value;
  require(actual.rows() * actual.cols() == value.rows * value.cols, "share_of: sizes must agree, got ",
          actual.rows() * actual.cols(), " and ", value.rows * value.cols);
  Share share;
  for (int64_t i = 0; i < value.rows * value.cols; ++i) {
    const double want = value[i], tolerance = expected.tolerance[i];
    const int64_t row = i / actual.cols(), column = i % actual.cols();
    const double got = static_cast<double>(actual.dtype == DType::bf16 ? to_float(actual.row<BFloat16>(row)[column])
                                                                       : actual.row<float>(row)[column]);
    double part = 0;
    if (std::isnan(want) || std::isinf(want)) {
      const bool same = std::isnan(want) ? std::isnan(got) : got == want;
      part = same ? 0 : std::numeric_limits<double>::infinity();
    } else if (got != want) {
      part = std::abs(got - want) / tolerance;
      if (std::isnan(part)) part = std::numeric_limits<double>::infinity();
    }
    if (share.where.empty() || part > share.worst) {
      share = {part, concat("element [", i / value.cols, ", ", i % value.cols, "]: got ", got, ", expected ", want,
                            " within ", tolerance)};
    }
  }
  return share;
}

void check_operation(Workbench& bench, const Operation& operation, std::map<Isa, Share>& worst) {
  std::vector<Bits> fused;  // of the first level with fused multiply-add: the others must agree
  for_each_isa([&](Isa isa) {
    if (operation.runs_at && !operation.runs_at(isa)) return;
    std::vector<Bits> single;
    for (const int count : kThreadCounts) {
      SCOPED_TRACE(concat(count, " threads"));
      Lab lab(count);
      Context ctx = lab.ctx();
      bench.restore();
      const std::vector<Tensor> outputs = operation.run(ctx);
      ASSERT_EQ(bench.damage(), "");
      ASSERT_EQ(outputs.size(), operation.expected.size());
      std::vector<Bits> bits;
      for (const Tensor& output : outputs) {
        ASSERT_EQ(lab.damage(output), "");
        bits.push_back(bits_of(output));
      }
      if (!single.empty()) {
        EXPECT_TRUE(bits == single) << "the number of threads changes the result";
        continue;
      }
      single = bits;
      for (size_t i = 0; i < outputs.size(); ++i) {
        const Share share = share_of(outputs[i], operation.expected[i]);
        EXPECT_LE(share.worst, 1) << "output " << i << ", " << share.where;
        if (share.worst >= worst[isa].worst) worst[isa] = share;
      }
    }
    if (isa == Isa::baseline || (isa == Isa::amx && operation.tiled)) return;
    if (fused.empty()) fused = single;
    EXPECT_TRUE(single == fused) << "levels with fused multiply-add differ";
  });
}

void check_operation_on_cuda(Workbench& bench, const Operation& operation, Share& worst) {
  for (const bool aligned : {false, true}) {
    SCOPED_TRACE(aligned ? "aligned" : "aligned to elements");
    std::vector<Bits> first;
    for (int repetition = 0; repetition < 2; ++repetition) {
      Lab lab(1, {DeviceType::cuda, 0});
      Context ctx = lab.ctx();
      bench.restore();
      bench.copy_to_device(ctx, aligned);
      const std::vector<Tensor> outputs = operation.run(ctx);
      ASSERT_EQ(bench.copy_back(ctx), "");
      ASSERT_EQ(bench.damage(), "");
      ASSERT_EQ(outputs.size(), operation.expected.size());
      std::vector<Bits> bits;
      for (size_t i = 0; i < outputs.size(); ++i) {
        ASSERT_EQ(lab.damage(outputs[i]), "");
        const HostCopy copy = copy_to_host(ctx, outputs[i]);
        bits.push_back(bits_of(copy.tensor));
        const Share share = share_of(copy.tensor, operation.expected[i]);
        EXPECT_LE(share.worst, 1) << "output " << i << ", " << share.where;
        if (share.worst >= worst.worst) worst = share;
      }
      if (repetition == 0) first = bits;
      EXPECT_TRUE(bits == first) << "the same call gives other bits";
      if (::testing::Test::HasFailure()) return;
    }
  }
}

void report_share(const std::string& op, const std::string& level, const Share& share, double smallest) {
  std::printf("[  share   ] %s %s: %.3f (%s)\n", op.c_str(), level.c_str(), share.worst, share.where.c_str());
  ::testing::Test::RecordProperty(op + "." + level + ".worst_share", concat(share.worst));
  EXPECT_GE(share.worst, smallest) << op << " on " << level << ": the tolerance is too loose to test anything";
}

void report_shares(const std::string& op, const std::map<Isa, Share>& worst, double smallest) {
  for (const auto& [isa, share] : worst) report_share(op, std::string(name_of(isa)), share, smallest);
}

std::string describe(const Ragged& ragged) {
  std::string text = "lengths";
  for (const int64_t length : ragged.lengths) text += concat(" ", length);
  switch (ragged.slots) {
    case Slots::none: return text + ", no slots";
    case Slots::permuted: return text + ", permuted slots";
    case Slots::mixed: return text + ", some slots";
  }
  return text;
}

std::vector<Ragged> ragged_batches() {
  const std::vector<std::vector<int64_t>> lengths = {{},
                                                     {0},
                                                     {1},
                                                     {2},
                                                     {3},
                                                     {16},
                                                     {63},
                                                     {64},
                                                     {65},
                                                     {127},
                                                     {130},
                                                     {200},
                                                     {1, 1, 1, 1},
                                                     {0, 1, 0},
                                                     {1, 2, 1, 3, 1},
                                                     {5, 0, 1, 64, 1, 65, 0},
                                                     {64, 64},
                                                     {0, 128, 129, 1},
                                                     {0, 0}};
  std::vector<Ragged> batches;
  for (const std::vector<int64_t>& each : lengths) {
    for (const Slots slots : {Slots::none, Slots::permuted, Slots::mixed}) batches.push_back({each, slots});
  }
  return batches;
}

int64_t ragged_pool_rows(const Ragged& ragged) { return 2 * static_cast<int64_t>(ragged.lengths.size()) + 1; }

reference::Sequences sequences_of(const Ragged& ragged) {
  const int64_t rows = ragged_pool_rows(ragged);
  reference::Sequences sequences;
  for (const int64_t length : ragged.lengths) {
    const int64_t s = sequences.count();
    sequences.offsets.push_back(sequences.offsets.back() + length);
    // From the last row down in steps of two: neighbouring sequences have distant rows, and every other row is
    // nobody's.
    const bool has = ragged.slots == Slots::permuted || (ragged.slots == Slots::mixed && s % 3 != 1);
    sequences.slots.push_back(has ? rows - 2 - 2 * s : kNoSlot);
  }
  return sequences;
}

reference::Sequences alone(const reference::Sequences& all, int64_t s) {
  return {{0, all.end(s) - all.begin(s)}, {all.slot(s)}, {all.past_of(s)}};
}

}  // namespace elapid::testing
