// Speed of single operators at the shapes of mamba2-130m, mamba2-1.3b, mamba-130m and mamba-2.8b, and of the experts of
// PowerMoE-3b, on all usable cores:
//
//   apt-get install libbenchmark-dev && cmake --preset release -DELAPID_BENCH=ON && cmake --build --preset release
//   build/release/bench/elapid_ops_bench [--benchmark_filter=matmul]        ELAPID_FORCE_ISA picks a lower level
//
// Counters, a second: bytes of weights and state that must come from memory, FLOP of the arithmetic in the operator's
// definition, exponentials of decays. The first row holds this machine's ceilings for all three, on as many threads.

#include "elapid/core/error.h"
#include "elapid/core/random.h"
#include "elapid/ops/activation/activation.h"
#include "elapid/ops/attention/attention.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"
#include "elapid/ops/ceiling/ceiling.h"
#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/moe/moe.h"
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

// PowerMoE-3b's: 8 of 40 experts of 1536 → 512 → 1536, gated. Random tokens, hence random experts; several layers'
// weights, so that no cache holds them. `whole`: with routing, activation and combining, else the two grouped matmuls.
void experts(benchmark::State& state, int64_t tokens, DType dtype, bool whole) {
  constexpr int64_t kWidth = 1536, kHidden = 512, kExperts = 40, kTop = 8, kLayers = 3, kDraws = 32;
  const Router router{.routing = Routing::softmax_of_top, .top_k = kTop};
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const Tensor up = machine().tensor({2 * kHidden, kWidth}, 0.05f, 0, dtype);
  const Tensor down = machine().tensor({kWidth, kHidden}, 0.05f, 0, dtype);
  const auto packed = [&](const Tensor& rows) {
    const Tensor memory = ctx.arena.alloc({packed_bytes(rows.shape, dtype)}, DType::u8);
    return Param{"weight", pack_weight(ctx.threads, rows, memory.data), Packing::tiles};
  };
  std::vector<std::vector<Param>> ups(kLayers), downs(kLayers);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t e = 0; e < kExperts; ++e) ups[layer].push_back(packed(up)), downs[layer].push_back(packed(down));
  }
  const Tensor h = machine().tensor({tokens, kWidth});
  std::vector<Tensor> logits;
  std::vector<Routes> routes;
  int64_t read = 0;  // bytes of the weights that are wanted, over all draws
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    logits.push_back(ctx.arena.alloc({tokens, kExperts}, DType::f32));
    for (int64_t i = 0; i < logits.back().size(); ++i) {
      logits.back().ptr<float>()[i] = static_cast<float>(uniform(2 + draw, static_cast<uint64_t>(i), 0));
    }
    routes.push_back(route(ctx, logits.back(), router));
    const int64_t* offsets = routes.back().offsets.ptr<int64_t>();
    for (int64_t e = 0; e < kExperts; ++e) read += offsets[e + 1] > offsets[e] ? up.bytes() + down.bytes() : 0;
  }
  const Tensor x = expert_rows(ctx, h, routes.front()), v = machine().tensor({tokens * kTop, kHidden});
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    const size_t draw = next % kDraws, layer = next % kLayers;
    if (whole) {
      const Routes r = route(ctx, logits[draw], router);
      const Tensor u = grouped_matmul(ctx, expert_rows(ctx, h, r), ups[layer], r.offsets);
      const Tensor y = grouped_matmul(ctx, activation(ctx, u, Activation::silu, true), downs[layer], r.offsets);
      benchmark::DoNotOptimize(combine(ctx, y, r).data);
    } else {
      benchmark::DoNotOptimize(grouped_matmul(ctx, x, ups[layer], routes[draw].offsets).data);
      benchmark::DoNotOptimize(grouped_matmul(ctx, v, downs[layer], routes[draw].offsets).data);
    }
    ++next;
  }
  set_bytes(state, read / kDraws);
  set_operations(state, 2 * tokens * kTop * 3 * kHidden * kWidth);
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

// `sequences` of `length` new tokens each after `past` of them. Caches rotate where they are what is streamed.
void attend(benchmark::State& state, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t sequences,
            int64_t length, int64_t past) {
  Context ctx = machine().ctx();
  const Arena::Scope scope(ctx.arena);
  const int64_t width = kv_heads * head_dim, tokens = sequences * length;
  const int64_t pages = (past + length + kPageTokens - 1) / kPageTokens;
  const int64_t bytes = 2 * sequences * (past + length) * width * 4;
  const int64_t copies = length == 1 ? 1 + (int64_t{256} << 20) / bytes : 1;
  const Tensor qkv = machine().tensor({tokens, heads * head_dim + 2 * width});
  AttentionInputs in;
  in.q = qkv.columns(0, heads * head_dim);
  in.k = qkv.columns(heads * head_dim, heads * head_dim + width);
  in.v = qkv.columns(heads * head_dim + width, heads * head_dim + 2 * width);
  in.heads = heads;
  in.kv_heads = kv_heads;
  in.scale = 0.125f;
  Batch batch = batch_of(std::vector<int64_t>(static_cast<size_t>(sequences), length), true);
  batch.past = ctx.arena.alloc({sequences}, DType::i64);
  const Tensor table = ctx.arena.alloc({sequences, pages}, DType::i32);
  for (int64_t s = 0; s < sequences; ++s) batch.past.ptr<int64_t>()[s] = past;
  for (int64_t i = 0; i < table.size(); ++i) table.ptr<int32_t>()[i] = static_cast<int32_t>(i);
  std::vector<KvCache> caches;
  for (int64_t i = 0; i < copies; ++i) {
    caches.push_back({machine().tensor({sequences * pages, kPageTokens, width}),
                      machine().tensor({sequences * pages, kPageTokens, width}), table});
  }
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) {
    const Arena::Scope step(ctx.arena);
    benchmark::DoNotOptimize(attention(ctx, in, batch, caches[next]).data);
    next = (next + 1) % caches.size();
  }
  if (length == 1) set_bytes(state, bytes);
  // Two products for every pair of a token and one that it sees.
  set_operations(state, 4 * sequences * heads * head_dim * (length * past + length * (length + 1) / 2));
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
  const struct {
    const char* name;
    int64_t heads, kv_heads, head_dim;
  } attentions[] = {{"32x64/kv:8", 32, 8, 64}, {"32x128/kv:8", 32, 8, 128}, {"24x64/kv:24", 24, 24, 64}};
  for (const auto& a : attentions) {
    for (const int64_t past : {0, 256, 4096, 32768}) {
      add(concat("attention/", a.name, "/step/past:", past),
          [=](benchmark::State& state) { attend(state, a.heads, a.kv_heads, a.head_dim, 1, 1, past); });
    }
    add(concat("attention/", a.name, "/steps:16/past:1024"),
        [=](benchmark::State& state) { attend(state, a.heads, a.kv_heads, a.head_dim, 16, 1, 1024); });
    for (const int64_t length : {64, 512, 2048}) {
      add(concat("attention/", a.name, "/prefill:", length),
          [=](benchmark::State& state) { attend(state, a.heads, a.kv_heads, a.head_dim, 1, length, 0); });
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
  for (const int64_t tokens : {1, 8, 64, 512}) {
    add(concat("grouped_matmul/powermoe-3b/bf16/tokens:", tokens),
        [=](benchmark::State& state) { experts(state, tokens, DType::bf16, false); });
    add(concat("moe/powermoe-3b/bf16/tokens:", tokens),
        [=](benchmark::State& state) { experts(state, tokens, DType::bf16, true); });
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
