// Speed of single operators at the shapes of mamba2-130m, mamba2-1.3b, mamba-130m and mamba-2.8b, on all usable cores:
//
//   apt-get install libbenchmark-dev && cmake --preset release -DELAPID_BENCH=ON && cmake --build --preset release
//   build/release/bench/elapid_ops_bench [--benchmark_filter=matmul]        ELAPID_FORCE_ISA picks a lower level
//
// Counters, a second: bytes of weights and state that must come from memory, FLOP of the arithmetic in the operator's
// definition, exponentials of decays. The first row holds this machine's ceilings for all three, on as many threads.

#include "elapid/core/error.h"
#include "elapid/core/random.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"
#include "elapid/ops/ceiling/ceiling.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/rms_norm/rms_norm.h"
#include "elapid/ops/selective_scan/selective_scan.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"

#include <benchmark/benchmark.h>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace elapid {
namespace {

// A released model's sizes, as its configuration gives them.
struct ModelSizes {
  const char* name;
  int64_t d_model, heads, vocab;
  int64_t head_dim = 64, d_state = 128, groups = 1, taps = 4;

  [[nodiscard]] int64_t d_inner() const { return heads * head_dim; }
  [[nodiscard]] int64_t conv_dim() const { return d_inner() + 2 * groups * d_state; }
  [[nodiscard]] int64_t in_proj() const { return d_inner() + conv_dim() + heads; }
};
constexpr ModelSizes kModels[] = {{"130m", 768, 24, 50288}, {"1.3b", 2048, 64, 50288}};

struct Mamba1Sizes {
  const char* name;
  int64_t d_inner, dt_rank, d_state = 16;
};
constexpr Mamba1Sizes kMamba1Models[] = {{"mamba-130m", 1536, 48}, {"mamba-2.8b", 5120, 160}};

// Threads, memory and a context that live as long as the benchmarks.
class Machine {
 public:
  Context ctx() { return {{}, threads_, arena_}; }
  ThreadPool& threads() { return threads_; }

  // Values in (−1, 1) · scale + shift.
  static void fill(const Tensor& t, float scale = 1, float shift = 0) {
    for (int64_t i = 0; i < t.size(); ++i) {
      const float value = scale * static_cast<float>(2 * uniform(1, static_cast<uint64_t>(i), 0) - 1) + shift;
      if (t.dtype == DType::f32) {
        t.ptr<float>()[i] = value;
      } else {
        t.ptr<BFloat16>()[i] = to_bf16(value);
      }
    }
  }

  Tensor tensor(Shape shape, float scale = 1, float shift = 0, DType dtype = DType::f32) {
    const Tensor t = arena_.alloc(shape, dtype);
    fill(t, scale, shift);
    return t;
  }

  Arena& arena() { return arena_; }

 private:
  ThreadPool threads_;
  Arena arena_;
};

Machine& machine() {
  static Machine machine;
  return machine;
}

void set_bytes(benchmark::State& state, int64_t bytes) {
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(bytes), benchmark::Counter::kIsIterationInvariantRate);
}
void set_operations(benchmark::State& state, int64_t operations) {
  state.counters["FLOP"] =
      benchmark::Counter(static_cast<double>(operations), benchmark::Counter::kIsIterationInvariantRate);
}

void ceilings(benchmark::State& state) {
  Context ctx = machine().ctx();
  Ceilings best;
  double exponentials = 0;
  for ([[maybe_unused]] auto _ : state) {
    best = measure_ceilings(ctx);
    exponentials = measure_exponentials(ctx);
  }
  state.counters["bytes"] = best.read_gb_s * 1e9;
  state.counters["FLOP"] = best.tflops * 1e12;
  state.counters["exp"] = exponentials;
}

// Enough copies of the weights that no cache holds them all, as in a model of many layers: each call takes the next.
void matmul_rows(benchmark::State& state, int64_t rows, int64_t in, int64_t out, DType dtype) {
  constexpr int64_t kBeyondCaches = int64_t{384} << 20;
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const int64_t bytes = packed_bytes({out, in}, dtype), copies = 1 + kBeyondCaches / bytes;
  const Tensor checkpoint = machine().tensor({out, in}, 0.05f, 0, dtype);
  std::vector<Param> weights;
  for (int64_t i = 0; i < copies; ++i) {
    const Tensor memory = ctx.arena.alloc({bytes}, DType::u8);
    weights.push_back({"weight", pack_weight(ctx.threads, checkpoint, memory.data), Packing::tiles});
  }
  const Tensor x = machine().tensor({rows, in});
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    benchmark::DoNotOptimize(matmul(ctx, x, weights[next]).data);
    next = (next + 1) % weights.size();
  }
  set_bytes(state, out * in * size_of(dtype));
  set_operations(state, 2 * rows * in * out);
}

Batch batch_of(const std::vector<int64_t>& lengths, bool with_slots) {
  Batch batch;
  const auto count = static_cast<int64_t>(lengths.size());
  batch.offsets = machine().arena().alloc({count + 1}, DType::i64);
  batch.slots = machine().arena().alloc({count}, DType::i64);
  batch.offsets.ptr<int64_t>()[0] = 0;
  for (int64_t s = 0; s < count; ++s) {
    batch.offsets.ptr<int64_t>()[s + 1] = batch.offsets.ptr<int64_t>()[s] + lengths[static_cast<size_t>(s)];
    batch.slots.ptr<int64_t>()[s] = with_slots ? s : kNoSlot;
  }
  return batch;
}

// `sequences` of `length` tokens; states rotate through pools that no cache holds when they are what is streamed.
void scan(benchmark::State& state, const ModelSizes& m, int64_t sequences, int64_t length) {
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const int64_t tokens = sequences * length, state_floats = m.heads * m.head_dim * m.d_state;
  const int64_t pools = length == 1 ? 1 + (int64_t{256} << 20) / (sequences * state_floats * 4) : 1;
  const Tensor projected = machine().tensor({tokens, m.conv_dim()});
  SsdScan in;
  in.x = projected.columns(0, m.d_inner());
  in.B = projected.columns(m.d_inner(), m.d_inner() + m.groups * m.d_state);
  in.C = projected.columns(m.d_inner() + m.groups * m.d_state, m.conv_dim());
  in.dt = machine().tensor({tokens, m.heads}, 2, -2);
  in.A = machine().tensor({m.heads}, 2, -3);
  in.D = machine().tensor({m.heads});
  in.dt_bias = machine().tensor({m.heads});
  in.groups = m.groups;
  const Batch batch = batch_of(std::vector<int64_t>(static_cast<size_t>(sequences), length), true);
  std::vector<Tensor> states;
  for (int64_t i = 0; i < pools; ++i) {
    states.push_back(machine().tensor({sequences, m.heads, m.head_dim, m.d_state}));
  }
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    benchmark::DoNotOptimize(ssd_scan(ctx, in, batch, states[next]).data);
    next = (next + 1) % states.size();
  }
  if (length == 1) set_bytes(state, 2 * sequences * state_floats * 4);  // read and written
  // The recurrence: decay, outer product, C · S.
  set_operations(state, 5 * tokens * state_floats);
  state.SetItemsProcessed(state.iterations() * tokens);
}

// As scan(), of Mamba-1; A is streamed beside the state.
void selective(benchmark::State& state, const Mamba1Sizes& m, int64_t sequences, int64_t length) {
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const int64_t tokens = sequences * length, state_floats = m.d_inner * m.d_state;
  const int64_t pools = length == 1 ? 1 + (int64_t{256} << 20) / ((sequences + 1) * state_floats * 4) : 1;
  const Tensor xz = machine().tensor({tokens, 2 * m.d_inner});
  const Tensor projected = machine().tensor({tokens, m.dt_rank + 2 * m.d_state});
  SelectiveScan in;
  in.x = machine().tensor({tokens, m.d_inner});
  in.dt = machine().tensor({tokens, m.d_inner}, 2, -4);
  in.B = projected.columns(m.dt_rank, m.dt_rank + m.d_state);
  in.C = projected.columns(m.dt_rank + m.d_state, projected.cols());
  in.D = machine().tensor({m.d_inner});
  in.dt_bias = machine().tensor({m.d_inner});
  in.z = xz.columns(m.d_inner, xz.cols());
  const Batch batch = batch_of(std::vector<int64_t>(static_cast<size_t>(sequences), length), true);
  std::vector<Tensor> states, decays;
  for (int64_t i = 0; i < pools; ++i) {
    states.push_back(machine().tensor({sequences, m.d_inner, m.d_state}));
    decays.push_back(machine().tensor({m.d_inner, m.d_state}, 7.5f, -8.5f));
  }
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    in.A = decays[next];
    benchmark::DoNotOptimize(selective_scan(ctx, in, batch, states[next]).data);
    next = (next + 1) % states.size();
  }
  if (length == 1) set_bytes(state, (2 * sequences + 1) * state_floats * 4);  // state read and written, A read
  set_operations(state, 6 * tokens * state_floats);  // the exponent, decay, dt · x · B and its sum, C · h
  state.counters["exp"] =
      benchmark::Counter(static_cast<double>(tokens * state_floats), benchmark::Counter::kIsIterationInvariantRate);
  state.SetItemsProcessed(state.iterations() * tokens);
}

void conv(benchmark::State& state, const ModelSizes& m, int64_t sequences, int64_t length) {
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const int64_t tokens = sequences * length;
  const Tensor x = machine().tensor({tokens, m.in_proj()}).columns(m.d_inner(), m.d_inner() + m.conv_dim());
  const CausalConv1d conv{{"weight", machine().tensor({m.taps, m.conv_dim()})},
                          {"bias", machine().tensor({m.conv_dim()})}};
  const Tensor window = machine().tensor({sequences, m.taps - 1, m.conv_dim()});
  const Batch batch = batch_of(std::vector<int64_t>(static_cast<size_t>(sequences), length), true);
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    benchmark::DoNotOptimize(causal_conv1d(ctx, x, conv, batch, window).data);
  }
  set_bytes(state, 2 * tokens * m.conv_dim() * 4);
  set_operations(state, 2 * m.taps * tokens * m.conv_dim());
}

void norm(benchmark::State& state, int64_t rows, int64_t width, bool gated) {
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const Tensor x = machine().tensor({rows, width}), z = machine().tensor({rows, width});
  const Param weight{"weight", machine().tensor({width})};
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    benchmark::DoNotOptimize((gated ? gated_rms_norm(ctx, x, z, weight, 1e-5f) : rms_norm(ctx, x, weight, 1e-5f)).data);
  }
  set_bytes(state, (gated ? 3 : 2) * rows * width * 4);
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void add_all() {
  benchmark::RegisterBenchmark("ceilings", ceilings)->Iterations(1)->UseRealTime();
  for (const Mamba1Sizes& m : kMamba1Models) {
    for (const int64_t length : {64, 512, 2048}) {
      add(concat("selective_scan/", m.name, "/prefill:", length),
          [=](benchmark::State& state) { selective(state, m, 1, length); });
    }
    for (const int64_t sequences : {1, 4, 16}) {
      add(concat("selective_scan/", m.name, "/step:", sequences),
          [=](benchmark::State& state) { selective(state, m, sequences, 1); });
    }
  }
  for (const ModelSizes& m : kModels) {
    const struct {
      const char* name;
      int64_t in, out;
    } weights[] = {
        {"in_proj", m.d_model, m.in_proj()}, {"out_proj", m.d_inner(), m.d_model}, {"head", m.d_model, m.vocab}};
    for (const DType dtype : {DType::bf16, DType::f32}) {
      for (const auto& w : weights) {
        for (const int64_t rows : {1, 2, 4, 8, 16, 128, 512}) {
          if (rows > 16 && std::string(w.name) == "head") continue;  // prefill asks for one row of logits a sequence
          add(concat("matmul/", m.name, "/", w.name, "/", name_of(dtype), "/rows:", rows),
              [=](benchmark::State& state) { matmul_rows(state, rows, w.in, w.out, dtype); });
        }
      }
    }
    for (const int64_t length : {64, 512, 2048}) {
      add(concat("ssd_scan/", m.name, "/prefill:", length),
          [=](benchmark::State& state) { scan(state, m, 1, length); });
      add(concat("causal_conv1d/", m.name, "/prefill:", length),
          [=](benchmark::State& state) { conv(state, m, 1, length); });
    }
    for (const int64_t sequences : {1, 4, 16}) {
      add(concat("ssd_scan/", m.name, "/step:", sequences),
          [=](benchmark::State& state) { scan(state, m, sequences, 1); });
      add(concat("causal_conv1d/", m.name, "/step:", sequences),
          [=](benchmark::State& state) { conv(state, m, sequences, 1); });
    }
    for (const int64_t rows : {1, 16, 512}) {
      add(concat("rms_norm/", m.name, "/rows:", rows),
          [=](benchmark::State& state) { norm(state, rows, m.d_model, false); });
      add(concat("gated_rms_norm/", m.name, "/rows:", rows),
          [=](benchmark::State& state) { norm(state, rows, m.d_inner(), true); });
    }
  }
}

}  // namespace
}  // namespace elapid

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  try {
    benchmark::AddCustomContext("isa", std::string(elapid::name_of(elapid::active_isa())));
    benchmark::AddCustomContext("threads", std::to_string(elapid::machine().threads().size()));
    elapid::add_all();
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "elapid_ops_bench: %s\n", error.what());
    return 1;
  }
}
