// What bench/llama_cpp/compare.py runs of llama.cpp: rounding a GGUF file's weights, and timing a model in the terms of
// `elapid bench`. It is compiled against the llama.h of the sources that compare.py builds.
//
//   llama_peer quantize IN.gguf OUT.gguf FTYPE THREADS     FTYPE is a number of llama.h's llama_ftype
//   llama_peer bench MODEL.gguf THREADS PROMPT GEN BATCH REPEAT
//
// Threads, batches and memory are llama-bench's defaults: ggml_threadpool_params_default(), micro-batches of 512
// tokens, the file mapped, flash attention where the library wants it. Prompts are fed a sequence at a time in batches
// of 512, the last token's logits alone are asked for; a decode step is one batch of one token of every sequence.

#include "ggml-cpu.h"
#include "llama.h"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kBatch = 512;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double peak_mib() {
  double kib = 0;
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, "VmHWM: %lf", &kib) == 1) break;
    }
    std::fclose(file);
  }
  return kib / 1024;
}

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

struct Options {
  int threads, prompt, gen, batch, repeat;
};

class Bench {
 public:
  Bench(const char* path, const Options& o) : options_(o) {
    model_.reset(llama_model_load_from_file(path, llama_model_default_params()));
    require(model_ != nullptr, "cannot load the model");
    vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(o.batch) * static_cast<uint32_t>(o.prompt + o.gen);
    params.n_batch = kBatch;
    params.n_ubatch = kBatch;
    params.n_seq_max = static_cast<uint32_t>(o.batch);
    params.n_threads = params.n_threads_batch = o.threads;
    params.swa_full = false;
    ctx_.reset(llama_init_from_model(model_.get(), params));
    require(ctx_ != nullptr, "cannot make a context");
    ggml_threadpool_params pool = ggml_threadpool_params_default(o.threads);
    pool_.reset(ggml_threadpool_new(&pool));
    require(pool_ != nullptr, "cannot start threads");
    llama_attach_threadpool(ctx_.get(), pool_.get(), nullptr);
    batch_ = llama_batch_init(kBatch, 0, 1);
  }
  ~Bench() { llama_batch_free(batch_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  struct Seconds {
    double prefill, decode;
  };
  Seconds operator()() {
    llama_memory_clear(llama_get_memory(ctx_.get()), false);
    Seconds seconds{};
    const double start = now();
    for (int s = 0; s < options_.batch; ++s) {
      for (int i = 0; i < options_.prompt; ++i) {
        add(s, i, i + 1 == options_.prompt);
        if (batch_.n_tokens == kBatch || i + 1 == options_.prompt) run();
      }
    }
    const double middle = now();
    for (int i = 0; i < options_.gen; ++i) {
      for (int s = 0; s < options_.batch; ++s) add(s, options_.prompt + i, true);
      run();
    }
    seconds.prefill = middle - start;
    seconds.decode = now() - middle;
    const float* logits = llama_get_logits_ith(ctx_.get(), -1);
    require(logits != nullptr && std::isfinite(logits[0]), "logits are not numbers");
    return seconds;
  }

 private:
  void add(int sequence, int position, bool output) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = static_cast<llama_token>(random_() % static_cast<uint32_t>(vocab_));
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = output ? 1 : 0;
  }
  void run() {
    require(llama_decode(ctx_.get(), batch_) == 0, "llama_decode() failed");
    llama_synchronize(ctx_.get());
    batch_.n_tokens = 0;
  }

  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* ctx) const { llama_free(ctx); }
    void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
  };
  Options options_;
  std::unique_ptr<llama_model, Free> model_;
  std::unique_ptr<ggml_threadpool, Free> pool_;  // outlives the context
  std::unique_ptr<llama_context, Free> ctx_;
  llama_batch batch_{};
  int vocab_ = 0;
  std::minstd_rand random_{1};
};

void print(const char* key, const std::vector<double>& values) {
  std::printf("\"%s\":[", key);
  for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.6f", i == 0 ? "" : ",", values[i]);
  std::printf("],");
}

void bench(char** arguments) {
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  const Options o{.threads = number(1), .prompt = number(2), .gen = number(3), .batch = number(4), .repeat = number(5)};
  const double start = now();
  Bench bench(arguments[0], o);
  const double load = now() - start;
  bench();  // page faults, and threads that still sleep
  std::vector<double> prefill, decode;
  for (int r = 0; r < o.repeat; ++r) {
    const Bench::Seconds seconds = bench();
    prefill.push_back(seconds.prefill);
    decode.push_back(seconds.decode);
  }
  std::printf("{");
  print("prefill_s", prefill);
  print("decode_s", decode);
  std::printf("\"load_s\":%.3f,\"peak_mem_mib\":%.1f,\"system\":\"%s\"}\n", load, peak_mib(),
              llama_print_system_info());
}

void quantize(char** arguments) {
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = static_cast<llama_ftype>(std::atoi(arguments[2]));
  params.nthread = std::atoi(arguments[3]);
  require(llama_model_quantize(arguments[0], arguments[1], &params) == 0, "llama_model_quantize() failed");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  try {
    if (command == "quantize" && argc == 6) {
      quantize(argv + 2);
    } else if (command == "bench" && argc == 8) {
      bench(argv + 2);
    } else {
      throw std::runtime_error("see the head of peer.cc");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_peer: %s\n", error.what());
    return 1;
  }
}
