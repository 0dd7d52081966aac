#pragma once

// One harness runs every operator: each case × each instruction-set level of this machine × 1, 2, 3 and 7 threads.
//
// An operator brings its float64 reference (src/elapid/ops/<op>/<op>_reference.h), a list of cases (shapes and options)
// and a function that turns a case into an Operation: tensors from the Workbench, the call, and what the reference
// expects. The harness owns the rest:
//   - tensors are misaligned, stand between guard bytes, and may be columns of wider matrices; guards, padding and
//   inputs
//     must be unchanged afterwards, bit for bit, and so must the rows of a state pool that no sequence owns. All of
//     these are NaN patterns, so that reading them shows, too, and AddressSanitizer sees the guards;
//   - the arena hands out NaN, and what lies behind an output in the arena must be unchanged;
//   - results lie within the reference's tolerance. The worst share of the tolerance that was used is printed and must
//   not
//     be tiny, since a formula that nothing comes near tests nothing;
//   - results are the same bits for any number of threads, and on AVX2 and AVX-512.
//
// check_on_cuda() runs the same cases on a CUDA device, or says why it cannot: tensors are copied into guarded device
// memory, once no further aligned than to their elements and once as allocations are, and copied back afterwards, so
// that the same references and the same checks of guards, inputs and arena apply. An operation finds a tensor's copy by
// Workbench::at(ctx). Cases with bf16 activations are for CUDA alone; written_in_bf16() is what they expect.
//
// To add an operator: <op>_reference.h, <op>_test.cc with a list of cases, a line in CMakeLists.txt.
// A mode is a function over Op; check_forward() is one. References take float64 operands in a struct of named matrices,
// so that a mode may also call them on operands that no float32 tensor holds.

#include "elapid/core/batch.h"
#include "elapid/core/context.h"
#include "elapid/core/error.h"
#include "elapid/core/isa.h"
#include "elapid/core/param.h"
#include "elapid/ops/float64_reference.h"

#include <cstdint>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace elapid::testing {

// What elements are drawn from, uniformly.
struct Range {
  double low = -1, high = 1;
};
inline constexpr Range kMixed{-1, 1};
// Same-sign terms make the largest rounding errors: partial sums grow steadily.
inline constexpr Range kPositive{0.5, 1.5};

enum class Alignment { element, none };

class Workbench;

// Tensors where a context computes.
class Located {
 public:
  Located(const Workbench& bench, const Context& ctx) : bench_(bench), on_device_(on_cuda(ctx.device)) {}
  Tensor operator()(const Tensor& t) const;
  Param operator()(Param p) const;
  std::vector<Param> operator()(std::vector<Param> params) const;

 private:
  const Workbench& bench_;
  bool on_device_;
};

// Owns the tensors of one case, remembers what was in them, and knows what an operator may change.
class Workbench {
 public:
  explicit Workbench(uint64_t seed);
  ~Workbench();
  Workbench(const Workbench&) = delete;
  Workbench& operator=(const Workbench&) = delete;

  // Dense, of any floating-point type; bf16 and f16 elements are rounded from the range.
  Tensor tensor(Shape shape, Range range, DType dtype = DType::f32, Alignment alignment = Alignment::element);
  // Columns in the middle of a wider matrix of NaN; dense when `strided` is false.
  Tensor matrix(int64_t rows, int64_t cols, Range range, bool strided, DType dtype = DType::f32);
  // Holds NaN until an operator writes it.
  Tensor output(int64_t rows, int64_t cols, bool strided, DType dtype = DType::f32);
  Tensor integers(const std::vector<int64_t>& values, DType dtype = DType::i64);
  Tensor floats(const std::vector<float>& values);
  Param param(const Tensor& value) { return {"weight", value, Packing::rows}; }
  Batch batch(const reference::Sequences& sequences);

  // An operator may change the elements of this view; everything else is an input.
  void writable(const Tensor& view);
  // Uniform in [0, 1), a new draw each time.
  double draw();
  double draw(Range range);

  // Call after changing tensors by hand: what they hold now is what restore() brings back.
  void snapshot();
  void restore();
  // What was changed although it must not be, or empty.
  std::string damage();

  // The tensors as `ctx` needs them: themselves, or their copies on its device.
  [[nodiscard]] Located at(const Context& ctx) const { return {*this, ctx}; }
  // Copies everything into device memory, `aligned` as allocations are or no further than here, and back. copy_back()
  // says which guards were changed there, or nothing.
  void copy_to_device(const Context& ctx, bool aligned);
  std::string copy_back(const Context& ctx);
  // A tensor's copy on the device; `t` itself where there is none.
  [[nodiscard]] Tensor device_copy(const Tensor& t) const;

 private:
  struct Block;
  char* allocate(int64_t bytes, int64_t element, Alignment alignment);
  void guard(Block& block, bool closed);

  uint64_t seed_, draws_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
};

// One operator on one set of tensors.
struct Operation {
  std::function<std::vector<Tensor>(Context&)> run;  // outputs, and operands that were updated in place
  std::vector<reference::Expected> expected;         // of each of them
  bool tiled = false;  // has a form for AMX tiles, which add in another order: the bits differ at that level
  std::function<bool(Isa)> runs_at{};  // levels to run at; empty: all
};

// A worst share below this, over all cases of an operator, says that its tolerance is too loose to test anything.
inline constexpr double kSmallestShare = 0.05;

template <class Case>
struct Op {
  std::string name;
  std::vector<Case> cases;
  std::function<std::string(const Case&)> describe;
  std::function<Operation(Workbench&, const Case&)> make;
  bool exact = false;  // copies only: there is no rounding, hence no share of a tolerance
  double smallest_share = kSmallestShare;
};

// Runs `body` at every level of this machine; the level in use is restored afterwards.
void for_each_isa(const std::function<void(Isa)>& body);

// A pool of `threads` threads; made once per process.
ThreadPool& threads(int threads);

// A context with an arena of its own whose memory is NaN.
class Lab {
 public:
  explicit Lab(int thread_count = 1, Device device = {});
  Context ctx();
  // Empty unless something was written behind `t` in the arena, up to the next allocation.
  [[nodiscard]] std::string damage(const Tensor& t) const;

 private:
  int thread_count_;
  Device device_;
  Stream stream_;
  std::unique_ptr<HostRoom> host_room_;
  std::unique_ptr<Arena> arena_;
  const char* base_;
};

// Whether there is a CUDA device to test on; else `why` says why not.
bool has_cuda(std::string& why);
// A copy of a tensor of either memory in the host's, dense; it owns its elements.
struct HostCopy {
  std::vector<char> memory;
  Tensor tensor;
};
HostCopy copy_to_host(const Context& ctx, const Tensor& t);

// What is expected of an operator that writes bf16: its results, rounded once more.
reference::Expected written_in_bf16(reference::Expected expected);

// The elements of a matrix, bit by bit; 16 bits of bf16.
using Bits = std::vector<uint32_t>;
Bits bits_of(const Tensor& t);

// The largest |actual − expected| / tolerance, and where. NaN and infinities must be where they are expected; elsewhere
// the share is infinite.
struct Share {
  double worst = 0;
  std::string where;
};
Share share_of(const Tensor& actual, const reference::Expected& expected);

inline constexpr int kThreadCounts[] = {1, 2, 3, 7};

// The part of check_forward() that does not depend on the case's type: all levels and thread counts. Adds to `worst`,
// by level.
void check_operation(Workbench& bench, const Operation& operation, std::map<Isa, Share>& worst);
void report_shares(const std::string& op, const std::map<Isa, Share>& worst, double smallest = kSmallestShare);

// The same for check_on_cuda().
void check_operation_on_cuda(Workbench& bench, const Operation& operation, Share& worst);
void report_share(const std::string& op, const std::string& level, const Share& share, double smallest);

// check(bench, operation, case's name) for every case until one fails, which says enough; false when one did.
template <class Case, class Check>
bool check_cases(const Op<Case>& op, const Check& check) {
  uint64_t seed = 1;
  for (const Case& c : op.cases) {
    const std::string name = op.name + " " + op.describe(c);
    SCOPED_TRACE(name);
    Workbench bench(seed++);
    const Operation operation = op.make(bench, c);
    bench.snapshot();
    check(bench, operation, name);
    if (::testing::Test::HasFailure()) return false;
  }
  return true;
}

template <class Case>
void check_on_cuda(const Op<Case>& op) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  Share worst;
  const bool passed = check_cases(op, [&](Workbench& bench, const Operation& operation, const std::string& name) {
    Share share;
    check_operation_on_cuda(bench, operation, share);
    if (share.worst >= worst.worst) worst = {share.worst, name + ", " + share.where};
  });
  if (passed && !op.exact) report_share(op.name, "cuda", worst, op.smallest_share);
}

template <class Case>
void check_forward(const Op<Case>& op) {
  std::map<Isa, Share> worst;
  const bool passed = check_cases(op, [&](Workbench& bench, const Operation& operation, const std::string& name) {
    std::map<Isa, Share> shares;
    check_operation(bench, operation, shares);
    for (auto& [isa, share] : shares) {
      if (share.worst >= worst[isa].worst) worst[isa] = {share.worst, name + ", " + share.where};
    }
  });
  if (passed && !op.exact) report_shares(op.name, worst, op.smallest_share);
}

// Ragged batches for operators with a memory: lengths of sequences and whether they have state.
enum class Slots { none, permuted, mixed };  // −1 for all, rows of a larger pool in mixed order, some of each
struct Ragged {
  std::vector<int64_t> lengths;
  Slots slots = Slots::none;
};
std::string describe(const Ragged& ragged);
// Every kind of batch: none, one, empty, single-token and longer sequences mixed, lengths around a chunk of 64; each
// with all kinds of slots.
std::vector<Ragged> ragged_batches();
// Offsets and slots; the pool has ragged_pool_rows() rows, more than are used.
reference::Sequences sequences_of(const Ragged& ragged);
int64_t ragged_pool_rows(const Ragged& ragged);
// Sequence s alone: one sequence with the same slot.
reference::Sequences alone(const reference::Sequences& all, int64_t s);

}  // namespace elapid::testing
