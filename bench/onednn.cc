// Elapid's matmul beside oneDNN's, at the shapes of projections:
//
//   apt-get install libdnnl-dev libbenchmark-dev
//   cmake --preset release -DELAPID_BENCH=ON && cmake --build --preset release --target elapid_onednn_bench
//   build/release/bench/elapid_onednn_bench [ROUNDS] [INxOUT]...
//
// Both multiply [rows, in] by weights [out, in] that were packed beforehand, into float32: oneDNN chooses its packed
// order itself (format_tag::any). Weights exist in enough copies that no cache holds them all, as in a model of many
// layers; each call takes the next. In bf16, Elapid takes float32 activations and rounds them within the measured call,
// oneDNN takes activations that are bf16 already. int8 and int4 have no counterpart here: Elapid's are weights of
// groups with scales of their own under bf16 activations, oneDNN 2's int8 multiplies int8 activations.
//
// Each line is the median of ROUNDS (default 5) in which both sides take turns of at least 20 ms; beside it the ratio
// of the times of each round, its median and range, and the share of the machine that others took meanwhile: beside a
// busy process oneDNN's OpenMP barriers wait for the thread that was descheduled, so read two threads' lines on a quiet
// machine alone. ELAPID_FORCE_ISA=avx2 with ONEDNN_MAX_CPU_ISA=AVX2, or avx512 with
// AVX512_CORE, compares lower levels.

#include "elapid/core/error.h"
#include "elapid/core/isa.h"
#include "elapid/core/random.h"
#include "elapid/ops/matmul/matmul.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <functional>
#include <omp.h>
#include <string>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace elapid {
namespace {

using dnnl::memory;
using Clock = std::chrono::steady_clock;

constexpr int64_t kBeyondCaches = int64_t{384} << 20;
constexpr std::chrono::milliseconds kTurn{20};

struct Shape2 {
  const char* name;
  int64_t in, out;
};
constexpr Shape2 kShapes[] = {
    {"mamba2-130m in_proj", 768, 3352},      {"mamba2-130m out_proj", 1536, 768},
    {"mamba2-1.3b in_proj", 2048, 8512},     {"mamba2-1.3b out_proj", 4096, 2048},
    {"mamba2-1.3b head", 2048, 50288},       {"mamba-1.4b in_proj", 2048, 8192},
    {"mamba-1.4b x_proj", 4096, 160},        {"mamba-1.4b dt_proj", 128, 4096},
    {"powermoe-3b attention q", 1536, 1536}, {"powermoe-3b attention k, v", 1536, 512},
    {"powermoe-3b expert up", 1536, 1024},   {"powermoe-3b expert down", 512, 1536},
};

void fill(float* values, int64_t count, uint64_t seed, float scale) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = scale * static_cast<float>(2 * uniform(seed, static_cast<uint64_t>(i), 0) - 1);
  }
}

// One product of each side, ready to run; the two hold the same numbers.
class Pair {
 public:
  Pair(ThreadPool& threads, const Shape2& shape, int64_t rows, DType dtype) : rows_(rows), shape_(shape) {
    Context ctx{{}, threads, arena_};
    const Tensor w = arena_.alloc({shape.out, shape.in}, DType::f32), x = arena_.alloc({rows, shape.in}, DType::f32);
    fill(w.ptr<float>(), w.size(), 1, 0.05f);
    fill(x.ptr<float>(), x.size(), 2, 1);
    x_ = x;
    const int64_t bytes = packed_bytes(w.shape, dtype), copies = 1 + kBeyondCaches / bytes;
    Param weight{"weight", {}, Packing::tiles, dtype == DType::bf16 ? Arithmetic::bf16 : Arithmetic::f32};
    for (int64_t i = 0; i < copies; ++i) {
      const Tensor room = arena_.alloc({bytes}, DType::u8);
      if (i == 0) {
        weight.value = pack_weight(threads, std::span(&w, 1), dtype, room.data);
      } else {
        std::memcpy(room.data, weights_[0].value.data, static_cast<size_t>(bytes));
        weight.value.data = room.data;
      }
      weights_.push_back(weight);
    }

    const auto type = dtype == DType::f32 ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::dims src{rows, shape.in}, wei{shape.in, shape.out}, dst{rows, shape.out};
    using Tag = memory::format_tag;
    const dnnl::matmul::primitive_desc desc(
        dnnl::matmul::desc({src, type, Tag::ab}, {wei, type, Tag::any}, {dst, memory::data_type::f32, Tag::ab}),
        engine_);
    implementation_ = desc.impl_info_str();
    matmul_ = dnnl::matmul(desc);
    src_ = memory(desc.src_desc(), engine_);
    dst_ = memory(desc.dst_desc(), engine_);
    memory plain_w({wei, memory::data_type::f32, Tag::ba}, engine_, w.data);
    memory plain_x({src, memory::data_type::f32, Tag::ab}, engine_, x.data);
    dnnl::reorder(plain_x, src_).execute(stream_, plain_x, src_);
    for (int64_t i = 0; i < copies; ++i) {
      their_weights_.emplace_back(desc.weights_desc(), engine_);
      if (i == 0) {
        dnnl::reorder(plain_w, their_weights_[0]).execute(stream_, plain_w, their_weights_[0]);
        stream_.wait();
      } else {
        std::memcpy(their_weights_.back().get_data_handle(), their_weights_[0].get_data_handle(),
                    desc.weights_desc().get_size());
      }
    }
    check(ctx);
  }

  void ours(ThreadPool& threads) {
    Context ctx{{}, threads, arena_};
    const Arena::Scope scope(arena_);
    matmul(ctx, x_, weights_[next_++ % weights_.size()]);
  }
  void theirs() {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, src_},
                              {DNNL_ARG_WEIGHTS, their_weights_[their_next_++ % their_weights_.size()]},
                              {DNNL_ARG_DST, dst_}});
    stream_.wait();
  }
  [[nodiscard]] const std::string& implementation() const { return implementation_; }
  [[nodiscard]] double flop() const { return 2.0 * static_cast<double>(rows_ * shape_.in * shape_.out); }

 private:
  // Both sides compute the same product: no speed of something else is reported. Rounding activations to bf16 and other
  // orders of summation differ by far less than a hundredth of the largest output.
  void check(Context& ctx) {
    const Arena::Scope scope(arena_);
    const Tensor y = matmul(ctx, x_, weights_[0]);
    matmul_.execute(stream_, {{DNNL_ARG_SRC, src_}, {DNNL_ARG_WEIGHTS, their_weights_[0]}, {DNNL_ARG_DST, dst_}});
    stream_.wait();
    const auto* other = static_cast<const float*>(dst_.get_data_handle());
    float largest = 0, difference = 0;
    for (int64_t i = 0; i < y.size(); ++i) {
      largest = std::max(largest, std::abs(other[i]));
      difference = std::max(difference, std::abs(other[i] - y.ptr<float>()[i]));
    }
    require(difference < largest / 100, "onednn_bench: products must agree, got a difference of ", difference, " of ",
            largest);
  }

  int64_t rows_;
  Shape2 shape_;
  Arena arena_;
  Tensor x_;
  std::vector<Param> weights_;
  size_t next_ = 0, their_next_ = 0;

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul matmul_;
  memory src_, dst_;
  std::vector<memory> their_weights_;
  std::string implementation_;
};

// Seconds a call. Both pools spin for a moment after their work: a pause lets the other side's threads sleep.
double time_calls(const std::function<void()>& call) {
  std::this_thread::sleep_for(kTurn);
  call();
  const auto start = Clock::now();
  int64_t calls = 0;
  Clock::duration elapsed{};
  do {
    call();
    ++calls;
    elapsed = Clock::now() - start;
  } while (elapsed < kTurn);
  return std::chrono::duration<double>(elapsed).count() / static_cast<double>(calls);
}

// What others took of the machine since this was made: other processes, and the host's other guests.
class Others {
 public:
  [[nodiscard]] double percent() const {
    const double all = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN)) * seconds(Clock::now() - start_);
    return std::max(0.0, 100 * (busy() - busy_ - (own() - own_)) / all);
  }

 private:
  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  static double seconds(const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  }
  static double busy() {
    long long user = 0, nice = 0, system = 0, irq = 0, softirq = 0, steal = 0;
    if (std::FILE* file = std::fopen("/proc/stat", "r")) {
      if (std::fscanf(file, "cpu %lld %lld %lld %*d %*d %lld %lld %lld", &user, &nice, &system, &irq, &softirq,
                      &steal) != 6) {
        user = nice = system = irq = softirq = steal = 0;
      }
      std::fclose(file);
    }
    return static_cast<double>(user + nice + system + irq + softirq + steal) /
           static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  static double own() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  }

  Clock::time_point start_ = Clock::now();
  double busy_ = busy(), own_ = own();
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void compare(const Shape2& shape, int64_t rows, DType dtype, int threads, int rounds) {
  ThreadPool pool(threads);
  omp_set_num_threads(threads);
  Pair pair(pool, shape, rows, dtype);
  std::vector<double> ours, theirs, ratios;
  const Others others;
  for (int r = 0; r < rounds; ++r) {
    ours.push_back(time_calls([&] { pair.ours(pool); }));
    theirs.push_back(time_calls([&] { pair.theirs(); }));
    ratios.push_back(theirs.back() / ours.back());
  }
  const double taken = others.percent();
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  std::printf("%-26s %6lldx%-6lld %-5s %4lld %2d  %10.1f %10.1f   %5.2f  (%.2f - %.2f)  %3.0f%%  %s\n", shape.name,
              static_cast<long long>(shape.in), static_cast<long long>(shape.out), std::string(name_of(dtype)).c_str(),
              static_cast<long long>(rows), threads, pair.flop() / median(ours) / 1e9,
              pair.flop() / median(theirs) / 1e9, median(ratios), *least, *most, taken, pair.implementation().c_str());
  std::fflush(stdout);
}

void compare_all(int argc, char** argv) {
  int rounds = 5;
  std::vector<Shape2> shapes;
  for (int i = 1; i < argc; ++i) {
    long long in = 0, out = 0;
    if (std::sscanf(argv[i], "%lldx%lld", &in, &out) == 2 && in > 0 && out > 0) {
      shapes.push_back({"", in, out});
    } else if (std::sscanf(argv[i], "%d", &rounds) != 1 || rounds < 1) {
      fail(concat("arguments: must be rounds or INxOUT, got ", argv[i]));
    }
  }
  if (shapes.empty()) shapes.assign(std::begin(kShapes), std::end(kShapes));
  const dnnl_version_t* version = dnnl_version();
  std::printf("Elapid at %s, oneDNN %d.%d.%d; GFLOP/s, and the ratio Elapid : oneDNN of %d rounds\n\n",
              std::string(name_of(active_isa())).c_str(), version->major, version->minor, version->patch, rounds);
  std::printf("%-26s %13s %-5s %4s %2s  %10s %10s   %5s  of rounds, others, oneDNN's kernel\n", "weight", "in x out",
              "dtype", "rows", "t", "Elapid", "oneDNN", "ratio");
  for (const Shape2& shape : shapes) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int threads : {1, 2}) {
        for (const int64_t rows : {1, 4, 8, 32, 128, 512}) compare(shape, rows, dtype, threads, rounds);
      }
    }
  }
}

}  // namespace
}  // namespace elapid

int main(int argc, char** argv) {
  try {
    elapid::compare_all(argc, argv);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "elapid_onednn_bench: %s\n", error.what());
    return 1;
  }
}
