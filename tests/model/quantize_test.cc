#include "elapid/model/quantize.h"

#include "elapid/model/convert.h"
#include "elapid/model/quantization.h"
#include "elapid/ops/matmul/codes.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/matmul/quantized.h"
#include "tests/model/fixtures.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <map>

namespace elapid::testing {
namespace {

Json falcon_mamba(int64_t dt_rank = 136, bool tied = false) {
  return {{"model_type", "falcon_mamba"}, {"vocab_size", 96},           {"hidden_size", 160},
          {"intermediate_size", 320},     {"num_hidden_layers", 2},     {"state_size", 8},
          {"time_step_rank", dt_rank},    {"tie_word_embeddings", tied}};
}

// Tensors by name, to be changed and written; memory lives as long as this.
class Folder {
 public:
  explicit Folder(Json config_) : config(std::move(config_)) {}

  // Of the type that the tensors say, values of a uniform distribution around zero.
  void fill(const fs::path& scratch, DType dtype) {
    write_text(scratch / "config.json", config.dump());
    const RandomCheckpoint random(load_config(scratch));
    for (const NamedTensor& t : random.tensors) {
      const Tensor to = make(t.name, dtype, t.tensor.shape);
      for (int64_t i = 0; i < to.size(); ++i) {
        const float v = t.tensor.ptr<float>()[i] * 0.2f;
        dtype == DType::f32 ? to.ptr<float>()[i] = v : (to.ptr<BFloat16>()[i] = to_bf16(v), v);
      }
    }
  }
  Tensor make(const std::string& name, DType dtype, Shape shape) {
    auto& memory = memory_.emplace_back(std::max<int64_t>(1, shape.size() * size_of(dtype)));
    return tensors[name] = {memory.data(), dtype, shape};
  }
  template <class T>
  Tensor put(const std::string& name, DType dtype, Shape shape, const std::vector<T>& values) {
    const Tensor t = make(name, dtype, shape);
    if (t.bytes() > 0) std::memcpy(t.data, values.data(), static_cast<size_t>(t.bytes()));
    return t;
  }
  void write(const fs::path& folder) const {
    fs::create_directories(folder);
    write_text(folder / "config.json", config.dump());
    std::vector<NamedTensor> all;
    for (const auto& [name, t] : tensors) all.push_back({name, t});
    write_safetensors(folder / "model.safetensors", all);
  }

  Json config;
  std::map<std::string, Tensor> tensors;

 private:
  std::vector<Buffer> memory_;
};

class QuantizeTest : public ::testing::Test {
 protected:
  std::unique_ptr<Model> load(const fs::path& folder, std::optional<Precision> precision) {
    return load_model(folder, threads_, {.precision = precision});
  }
  // More rows than decoding takes, and one alone.
  std::vector<float> logits(const fs::path& folder, std::optional<Precision> precision) {
    std::vector<TokenId> ids;
    for (TokenId i = 0; i < 21; ++i) ids.push_back(i * 37 % 90);
    const auto model = load(folder, precision);
    std::vector<float> all = run(*model, ctx_, {{ids}}), alone = run(*model, ctx_, {{{5}}});
    all.insert(all.end(), alone.begin(), alone.end());
    return all;
  }
  fs::path at(const char* name) {
    fs::create_directories(folder_.path() / name);
    return folder_.path() / name;
  }

  TemporaryFolder folder_;
  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
};

// What is stored as codes, decoded as docs/quantization.md says, in float32.
Folder decoded(const fs::path& folder) {
  Folder plain(read_json(folder / "config.json"));
  plain.config.erase("quantization_config");
  const Checkpoint weights = Checkpoint::open_folder(folder);
  for (const auto& [name, entry] : weights.entries()) {
    const Tensor& t = entry.tensor;
    if (name.ends_with(".scales")) continue;
    if (t.dtype != DType::u8) {
      std::memcpy(plain.make(name, t.dtype, t.shape).data, t.data, static_cast<size_t>(t.bytes()));
      continue;
    }
    const Tensor& scales = weights.at(name + ".scales");
    const auto* codes = static_cast<const uint8_t*>(t.data);
    // Bytes, or halves of them: a group of bytes is 64 wide.
    const bool bytes = (t.cols() + 63) / 64 == scales.cols() && name.find("head") != std::string::npos;
    const bool eight = bytes || read_json(folder / "config.json")["quantization_config"]["bits"] == 8;
    Shape shape = t.shape;
    if (!eight) shape.dims[shape.rank - 1] *= 2;  // widths in these tests are even
    const Tensor to = plain.make(name, DType::f32, shape);
    for (int64_t r = 0; r < to.rows(); ++r) {
      for (int64_t c = 0; c < to.cols(); ++c) {
        float scale;
        std::memcpy(&scale, scales.row<float>(r) + c / 64, 4);
        const float level =
            eight ? static_cast<float>(static_cast<int8_t>(codes[r * to.cols() + c]))
                  : kNormalFloat4[c % 2 == 0 ? codes[r * t.cols() + c / 2] >> 4 : codes[r * t.cols() + c / 2] & 15];
        to.row<float>(r)[c] = scale * level;
      }
    }
  }
  return plain;
}

struct Case {
  const char* name;
  Json config;
  int64_t codes;  // how many tensors become codes
};

std::vector<Case> cases() {
  const Json moe = {{"model_type", "granitemoe"}, {"vocab_size", 96},
                    {"hidden_size", 128},         {"intermediate_size", 140},
                    {"num_hidden_layers", 2},     {"num_attention_heads", 4},
                    {"num_key_value_heads", 2},   {"num_local_experts", 3},
                    {"num_experts_per_tok", 2},   {"attention_multiplier", 0.2},
                    {"embedding_multiplier", 6},  {"logits_scaling", 4},
                    {"residual_multiplier", 0.3}, {"tie_word_embeddings", false}};
  // Its out_proj holds two matrices side by side, 128 and 160 columns.
  const Json beside = {{"d_model", 144},
                       {"d_intermediate", 0},
                       {"n_layer", 2},
                       {"vocab_size", 96},
                       {"rms_norm", true},
                       {"tie_embeddings", true},
                       {"ssm_cfg", {{"layer", "Mamba2"}, {"d_state", 8}, {"headdim", 16}, {"d_ssm", 128}}}};
  return {{"falcon_mamba", falcon_mamba(), 2 * 4 + 1},
          {"falcon_mamba_small_rank_tied", falcon_mamba(12, true), 2 * 3},
          {"experts", moe, 2 * 6 + 1},
          {"columns", beside, 2}};
}

class QuantizeCase : public QuantizeTest, public ::testing::WithParamInterface<Case> {};

TEST_P(QuantizeCase, IsRoundingWhileLoadingBitForBit) {
  const fs::path from = at("from");
  Folder source(GetParam().config);
  source.fill(from, DType::bf16);
  source.write(from);
  for (const Precision precision : {Precision::int8, Precision::int4}) {
    const fs::path to = folder_.path() / std::string(name_of(precision)), other = folder_.path() / "decoded";
    const QuantizedFolder done = quantize_checkpoint(from, to, threads_, {.precision = precision});
    EXPECT_EQ(done.quantized, GetParam().codes);
    EXPECT_LT(done.bytes, done.original_bytes);
    const std::vector<float> want = logits(from, precision);
    EXPECT_EQ(logits(to, precision), want);
    EXPECT_EQ(logits(to, std::nullopt), want) << "auto is what it is";
    EXPECT_EQ(load(to, {})->weights().bytes, done.bytes);
    EXPECT_EQ(load(to, {})->weights().parameters, load(from, {})->weights().parameters);
    // In shards, the same.
    const fs::path shards = folder_.path() / concat("shards ", name_of(precision));
    quantize_checkpoint(from, shards, threads_, {.precision = precision, .max_shard_bytes = 60'000});
    EXPECT_TRUE(fs::exists(shards / "model.safetensors.index.json"));
    EXPECT_EQ(logits(shards, std::nullopt), want);
    // The other arithmetics take the codes' values.
    decoded(to).write(other);
    for (const Precision plain : {Precision::f32, Precision::bf16}) {
      EXPECT_EQ(logits(to, plain), logits(other, plain)) << name_of(plain);
    }
    const Precision wrong = precision == Precision::int8 ? Precision::int4 : Precision::int8;
    EXPECT_NE(error_of([&] {
                load(to, wrong);
              }).find(concat("must be loaded as that, as bf16 or as f32, got ", name_of(wrong))),
              std::string::npos);
    const fs::path again = folder_.path() / "again";
    for (const std::string& error : {error_of([&] { quantize_checkpoint(to, again, threads_, {}); }),
                                     error_of([&] { convert_checkpoint(to, again); })}) {
      EXPECT_NE(error.find("quantized"), std::string::npos) << error;
    }
    EXPECT_FALSE(fs::exists(again));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, QuantizeCase, ::testing::ValuesIn(cases()),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_F(QuantizeTest, MistralsLayoutKeepsItsNames) {
  const fs::path from = at("from"), to = folder_.path() / "to";
  const Json params = {
      {"dim", 128},       {"n_layers", 2},           {"vocab_size", 96},      {"n_groups", 2},
      {"rms_norm", true}, {"tie_embeddings", false}, {"model_type", "mamba"}, {"pad_vocab_size_multiple", 8}};
  write_text(from / "params.json", params.dump());
  const RandomCheckpoint random(load_config(from));
  write_safetensors(from / "consolidated.safetensors", random.tensors);
  quantize_checkpoint(from, to, threads_, {.precision = Precision::int8});
  EXPECT_TRUE(fs::exists(to / "params.json") && !fs::exists(to / "config.json"));
  EXPECT_EQ(load_config(to).family, "mistral_mamba");
  EXPECT_EQ(logits(to, std::nullopt), logits(from, Precision::int8));
}

TEST_F(QuantizeTest, RefusesWhatCannotBeRoundedAndLeavesNothing) {
  const fs::path from = at("from"), to = folder_.path() / "to";
  EXPECT_NE(error_of([&] {
              quantize_checkpoint(case_folder("mamba2_default"), to, threads_, {});
            }).find("must have a matrix of at least 128 inputs, got none"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(to));
  Folder source(falcon_mamba());
  source.fill(from, DType::f32);
  source.tensors.at("backbone.layers.1.mixer.in_proj.weight").ptr<float>()[7] = NAN;
  source.write(from);
  EXPECT_NE(error_of([&] {
              quantize_checkpoint(from, to, threads_, {});
            }).find("backbone.layers.1.mixer.in_proj.weight must be finite"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(to));
  source.tensors["extra"] = source.make("extra", DType::f32, {2});
  source.write(from);
  EXPECT_NE(error_of([&] { quantize_checkpoint(from, to, threads_, {}); }).find("got extra"), std::string::npos);
}

TEST_F(QuantizeTest, HostileCodesAreErrors) {
  const fs::path from = at("from"), to = folder_.path() / "to", spoilt = at("spoilt");
  Folder source(falcon_mamba());
  source.fill(from, DType::bf16);
  source.write(from);
  quantize_checkpoint(from, to, threads_, {.precision = Precision::int4});
  const std::string name = "backbone.layers.0.mixer.in_proj.weight", scales = name + ".scales";
  const std::pair<std::function<void(Folder&)>, const char*> ways[] = {
      {[&](Folder& f) { f.tensors.erase(scales); }, "must have backbone.layers.0.mixer.in_proj.weight.scales beside"},
      {[&](Folder& f) { f.tensors.erase(name); }, "in_proj.weight.scales"},
      {[&](Folder& f) {
         f.make(scales, DType::f32, {640, 2});
       },
       "scales must be f32 [640, 3] as config.json says"},
      {[&](Folder& f) { f.make(scales, DType::f32, {1920}); }, "got f32 [1920]"},
      {[&](Folder& f) {
         f.make(scales, DType::bf16, {640, 3});
       },
       "got bf16 [640, 3]"},
      {[&](Folder& f) {
         f.make(name, DType::u8, {640, 79});
       },
       "must be u8 [640, 80] as config.json says"},
      {[&](Folder& f) {
         f.make(name, DType::i8, {640, 80});
       },
       "got i8 [640, 80]"},
      {[&](Folder& f) {
         Tensor t = f.make(scales, DType::f32, {640, 3});
         std::fill_n(t.ptr<float>(), t.size(), 1.0f);
         t.ptr<float>()[1000] = INFINITY;
       },
       "scales must be finite, got inf"},
      {[&](Folder& f) {
         f.make("backbone.embeddings.weight", DType::u8, {96, 80});
         f.make("backbone.embeddings.weight.scales", DType::f32, {96, 3});
       },
       "backbone.embeddings.weight must not be quantized, got codes"},
      {[&](Folder& f) { f.make("backbone.norm_f.weight.scales", DType::f32, {3}); },
       "must be a matrix to have scales"}};
  for (const auto& [spoil, says] : ways) {
    const Checkpoint good = Checkpoint::open_folder(to);
    Folder f(read_json(to / "config.json"));
    for (const auto& [tensor, entry] : good.entries()) f.tensors[tensor] = entry.tensor;
    spoil(f);
    f.write(spoilt);
    for (const std::optional<Precision> precision : {std::optional(Precision::f32), std::optional<Precision>()}) {
      const std::string error = error_of([&] { load(spoilt, precision); });
      EXPECT_NE(error.find(says), std::string::npos) << error << ", must say " << says;
    }
  }
}

// bitsandbytes' format by its description: what quantize_4bit() and QuantState.as_dict(packed=True) put into a file.
struct Bits4 {
  bool fp4 = false, nested = false;
  int64_t block = 64;
  DType dtype = DType::bf16;  // of the weights that were quantized
};

constexpr std::array<float, 16> kFp4 = {0.0f,       0.0625f / 12, 8.0f / 12,  1.0f,          4.0f / 12,  6.0f / 12,
                                        2.0f / 12,  3.0f / 12,    -0.0f,      -0.0625f / 12, -8.0f / 12, -1.0f,
                                        -4.0f / 12, -6.0f / 12,   -2.0f / 12, -3.0f / 12};

// Replaces a matrix by its codes; returns the values they stand for, before they are rounded to `dtype`.
std::vector<float> quantize_as_bitsandbytes(Folder& f, const std::string& name, const Bits4& how) {
  const Tensor w = f.tensors.at(name);
  const int64_t n = w.size(), blocks = (n + how.block - 1) / how.block;
  std::vector<float> map(16), x(static_cast<size_t>(n)), absmax(static_cast<size_t>(blocks));
  how.fp4 ? std::copy(kFp4.begin(), kFp4.end(), map.begin())
          : std::copy(std::begin(kNormalFloat4), std::end(kNormalFloat4), map.begin());
  for (int64_t i = 0; i < n; ++i) {
    x[i] = w.dtype == DType::f32 ? w.ptr<float>()[i] : to_float(w.ptr<BFloat16>()[i]);
    absmax[i / how.block] = std::max(absmax[i / how.block], std::abs(x[i]));
  }
  Json state = {{"quant_type", how.fp4 ? "fp4" : "nf4"},
                {"blocksize", how.block},
                {"dtype", how.dtype == DType::f32 ? "float32" : "bfloat16"},
                {"shape", {w.shape[0], w.shape[1]}}};
  if (how.nested) {
    // A dynamic map is any 256 ascending numbers here: readers take it from the file.
    std::vector<float> table(256);
    for (int i = 0; i < 256; ++i) {
      const float level = static_cast<float>(i - 128) / 128;
      table[static_cast<size_t>(i)] = std::copysign(std::pow(std::abs(level), 1.5f), level);
    }
    double sum = 0;
    for (const float a : absmax) sum += a;
    const auto offset = static_cast<float>(sum / static_cast<double>(blocks));
    const int64_t nested_block = 256, outer = (blocks + nested_block - 1) / nested_block;
    std::vector<float> largest(static_cast<size_t>(outer));
    std::vector<uint8_t> codes(static_cast<size_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) {
      largest[i / nested_block] = std::max(largest[i / nested_block], std::abs(absmax[i] - offset));
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const float scale = largest[i / nested_block], v = (absmax[i] - offset) / scale;
      int best = 0;
      for (int c = 1; c < 256; ++c) {
        if (std::abs(table[c] - v) < std::abs(table[best] - v)) best = c;
      }
      codes[i] = static_cast<uint8_t>(best);
      const float product = table[best] * scale;
      absmax[i] = product + offset;
    }
    f.put(name + ".absmax", DType::u8, {blocks}, codes);
    f.put(name + ".nested_absmax", DType::f32, {outer}, largest);
    f.put(name + ".nested_quant_map", DType::f32, {256}, table);
    state.update({{"nested_blocksize", nested_block}, {"nested_dtype", "float32"}, {"nested_offset", offset}});
  } else {
    f.put(name + ".absmax", DType::f32, {blocks}, absmax);
  }
  std::vector<uint8_t> codes(static_cast<size_t>((n + 1) / 2));
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const float scale = absmax[i / how.block];
    unsigned best = 0;
    for (unsigned c = 1; c < 16; ++c) {
      if (std::abs(map[c] * scale - x[i]) < std::abs(map[best] * scale - x[i])) best = c;
    }
    codes[i / 2] |= static_cast<uint8_t>(best << (i % 2 == 0 ? 4 : 0));
    values[i] = map[best] * scale;
  }
  const std::string text = state.dump();
  f.put(name, DType::u8, {std::ssize(codes), 1}, codes);
  f.put(name + ".quant_map", DType::f32, {16}, map);
  f.put(name + (how.fp4 ? ".quant_state.bitsandbytes__fp4" : ".quant_state.bitsandbytes__nf4"), DType::u8,
        {std::ssize(text)}, std::vector<uint8_t>(text.begin(), text.end()));
  return values;
}

Json bitsandbytes_config(const Bits4& how) {
  return {{"quant_method", "bitsandbytes"},
          {"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"bnb_4bit_compute_dtype", "bfloat16"},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", how.fp4 ? "fp4" : "nf4"},
          {"bnb_4bit_use_double_quant", how.nested},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", nullptr},
          {"llm_int8_threshold", 6.0}};
}

const std::vector<std::string> kLinear = {"in_proj", "x_proj", "dt_proj", "out_proj"};

// The same model twice: as bitsandbytes stores it, and decoded. The head stays as it is.
void write_both(const fs::path& coded, const fs::path& plain, const Bits4& how, int64_t dt_rank = 136,
                const std::vector<std::string>& modules = kLinear) {
  Folder folder(falcon_mamba(dt_rank));
  folder.fill(coded, how.dtype);
  folder.config["torch_dtype"] = how.dtype == DType::f32 ? "float32" : "bfloat16";
  Folder values(folder.config);
  values.tensors = folder.tensors;
  for (int layer = 0; layer < 2; ++layer) {
    for (const std::string& module : modules) {
      const std::string name = concat("backbone.layers.", layer, ".mixer.", module, ".weight");
      const Shape shape = folder.tensors.at(name).shape;
      const std::vector<float> decoded = quantize_as_bitsandbytes(folder, name, how);
      const Tensor to = values.make(name, how.dtype, shape);
      for (int64_t i = 0; i < to.size(); ++i) {
        how.dtype == DType::f32 ? to.ptr<float>()[i] = decoded[i]
                                : (to.ptr<BFloat16>()[i] = to_bf16(decoded[i]), decoded[i]);
      }
    }
  }
  folder.config["quantization_config"] = bitsandbytes_config(how);
  folder.write(coded);
  values.write(plain);
}

TEST_F(QuantizeTest, BitsandbytesHasTheBitsOfItsValues) {
  const Bits4 all[] = {{},
                       {.nested = true},
                       {.fp4 = true},
                       {.fp4 = true, .nested = true, .dtype = DType::f32},
                       {.block = 32, .dtype = DType::f32},
                       {.nested = true, .block = 128},
                       {.block = 4096}};
  for (const Bits4& how : all) {
    SCOPED_TRACE(concat(how.fp4 ? "fp4 " : "nf4 ", how.nested ? "nested " : "", how.block, ' ', name_of(how.dtype)));
    const fs::path coded = at("coded"), plain = at("plain");
    write_both(coded, plain, how);
    for (const Precision precision : {Precision::f32, Precision::bf16, Precision::int8}) {
      EXPECT_EQ(logits(coded, precision), logits(plain, precision)) << name_of(precision);
    }
    // Four bits of other blocks or levels are not rounded again unless that is asked for. 160, 320 and 136 inputs: the
    // projections of 320 are ours where blocks are of 64.
    const bool ours = !how.fp4 && how.block == 64;
    EXPECT_EQ(load(coded, {})->weights().precision, ours                      ? Precision::int4
                                                    : how.dtype == DType::f32 ? Precision::f32
                                                                              : Precision::bf16);
    if (!ours) {
      EXPECT_EQ(logits(coded, {}), logits(plain, {}));
    }
  }
}

TEST_F(QuantizeTest, BitsandbytesMayLeaveModulesAlone) {
  const fs::path coded = at("coded"), plain = at("plain");
  write_both(coded, plain, {.nested = true}, 12, {"x_proj", "dt_proj"});
  EXPECT_EQ(logits(coded, Precision::f32), logits(plain, Precision::f32));
  const auto model = load(coded, {});
  const auto& dtypes = model->weights().elements_by_dtype;
  const auto of = [&](std::string_view name) {
    const auto found = std::find_if(dtypes.begin(), dtypes.end(), [&](const auto& e) { return e.first == name; });
    return found == dtypes.end() ? 0 : found->second;
  };
  EXPECT_EQ(of("nf4"), 2 * ((12 + 16) * 320 + 320 * 12));
  EXPECT_EQ(of("nf4") + of("bf16"), model->weights().parameters);
}

// Blocks of 64 within rows: what is packed is code and scale themselves, without another rounding.
TEST_F(QuantizeTest, BitsandbytesCodesAreKept) {
  for (const bool nested : {false, true}) {
    Folder f(falcon_mamba());
    const Tensor w = f.make("w", DType::f32, {37, 192});
    for (int64_t i = 0; i < w.size(); ++i) {
      w.ptr<float>()[i] = static_cast<float>(uniform(3, static_cast<uint64_t>(i), 1) - 0.5);
    }
    const std::vector<float> values = quantize_as_bitsandbytes(f, "w", {.nested = nested, .dtype = DType::f32});
    const fs::path folder = at("one");
    f.write(folder);
    const Checkpoint weights = Checkpoint::open_folder(folder);
    const Quantization quantization{Quantization::Method::bitsandbytes, 4, "nf4"};
    // All rows, then some of them in two parts.
    const auto part = [&](int64_t row, int64_t rows) {
      return coded_part(quantization, weights, {"w", "w", {37, 192}, row, rows, 0, 192}, {rows, 192}, true);
    };
    const auto all = part(0, 37), first = part(5, 20), last = part(30, 7);
    for (const std::vector<const CodedRows*>& parts : {std::vector{all.get()}, std::vector{first.get(), last.get()}}) {
      const bool whole = parts.size() == 1;
      const int64_t rows = whole ? 37 : 27;
      Buffer memory(quantized_bytes({rows, 192}, Packing::int4));
      ASSERT_EQ(exact_packing(*parts[0]), Packing::int4);
      const Param param{"w", pack_codes(threads_, parts, Packing::int4, memory.data()), Packing::int4,
                        Arithmetic::bf16};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t from = whole ? r : r < 20 ? 5 + r : 30 + r - 20;
        for (int64_t c = 0; c < 192; ++c)
          ASSERT_EQ(quantized_weight(param, r, c), values[from * 192 + c]) << r << ' ' << c;
      }
      // And a product with them, against the sum in double: x is exact in bf16, so what is rounded are the terms of a
      // group, at most 64, and the three groups with their scales.
      std::vector<float> x(192);
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 7 % 33) - 16) / 8;
      const Arena::Scope scope(arena_);
      const Isa used = active_isa();
      if (used == Isa::amx) set_active_isa(Isa::avx512);  // above it x and levels are rounded to integers
      const Tensor y = matmul(ctx_, Tensor(x.data(), DType::f32, {1, 192}), param);
      set_active_isa(used);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t from = whole ? r : r < 20 ? 5 + r : 30 + r - 20;
        double want = 0, size = 0;
        for (int64_t c = 0; c < 192; ++c) {
          const double term = double{x[c]} * double{values[from * 192 + c]};
          want += term;
          size += std::abs(term);
        }
        EXPECT_NEAR(y.ptr<float>()[r], want, (64 + 3 + 2) * 0x1p-24 * size) << r;
      }
    }
  }
}

// Out of packed memory and back: the same bytes, whatever the shape.
TEST_F(QuantizeTest, CodesOutAndBackAreTheSameBytes) {
  for (const Shape shape : {Shape(1, 1), Shape(16, 64), Shape(37, 200), Shape(5, 131), Shape(129, 63)}) {
    std::vector<float> values(static_cast<size_t>(shape.size()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = i % 64 < 3 ? 0 : static_cast<float>(uniform(5, i, 2) - 0.5);
    const Tensor rows(values.data(), DType::f32, shape);
    for (const Packing packing : {Packing::int8, Packing::int4}) {
      const int64_t bytes = quantized_bytes(shape, packing), width = code_bytes(packing, shape[1]);
      Buffer packed(bytes), again(bytes);
      const Tensor done = pack_quantized(threads_, {&rows, 1}, packing, packed.data());
      std::vector<uint8_t> codes(static_cast<size_t>(shape[0] * width));
      CodedRows part{.shape = shape,
                     .bits = packing == Packing::int8 ? 8 : 4,
                     .dtype = DType::f32,
                     .pitch = packing == Packing::int8 ? width : 2 * width,
                     .group = 64,
                     .row_groups = quant_groups(shape[1])};
      std::copy(std::begin(kNormalFloat4), std::end(kNormalFloat4), part.levels.begin());
      part.scales.resize(static_cast<size_t>(shape[0] * part.row_groups));
      unpack_codes(threads_, done, packing, codes.data(), part.scales.data());
      part.codes = codes;
      const CodedRows* one = &part;
      pack_codes(threads_, {&one, 1}, packing, again.data());
      EXPECT_EQ(std::memcmp(packed.data(), again.data(), static_cast<size_t>(bytes)), 0) << shape[0] << ' ' << shape[1];
      std::vector<float> row(static_cast<size_t>(shape[1]));
      decode_row(part, shape[0] - 1, row.data());
      const Param param{"w", done, packing, Arithmetic::bf16};
      for (int64_t c = 0; c < shape[1]; ++c) EXPECT_EQ(row[c], quantized_weight(param, shape[0] - 1, c));
    }
  }
}

TEST_F(QuantizeTest, HostileBitsandbytesTensorsAreErrors) {
  const fs::path coded = at("coded"), plain = at("plain"), spoilt = at("spoilt");
  write_both(coded, plain, {.nested = true});
  const std::string name = "backbone.layers.1.mixer.in_proj.weight", state = name + ".quant_state.bitsandbytes__nf4";
  const auto changed = [&](const char* key, const Json& value) {
    return [=](Folder& f) {
      const Tensor& t = f.tensors.at(state);
      Json json = Json::parse(std::string(static_cast<const char*>(t.data), static_cast<size_t>(t.size())));
      value.is_discarded() ? static_cast<void>(json.erase(key)) : static_cast<void>(json[key] = value);
      const std::string text = json.dump();
      f.put(state, DType::u8, {std::ssize(text)}, std::vector<uint8_t>(text.begin(), text.end()));
    };
  };
  const auto text = [&](const std::string& bytes) {
    return [=](Folder& f) {
      f.put(state, DType::u8, {std::ssize(bytes)}, std::vector<uint8_t>(bytes.begin(), bytes.end()));
    };
  };
  const auto without = [&](const char* suffix) { return [=](Folder& f) { f.tensors.erase(name + suffix); }; };
  const auto shaped = [&](const char* suffix, DType dtype, Shape shape) {
    return [=](Folder& f) { f.make(name + suffix, dtype, shape); };
  };
  const Json none(Json::value_t::discarded);
  const std::pair<std::function<void(Folder&)>, const char*> ways[] = {
      {without(""), "in_proj.weight."},
      {without(".absmax"), "must have backbone.layers.1.mixer.in_proj.weight.absmax beside it, got none"},
      {without(".quant_map"), ".quant_map beside it, got none"},
      {without(".nested_absmax"), ".nested_absmax beside it, got none"},
      {without(".nested_quant_map"), ".nested_quant_map beside it, got none"},
      {without(".quant_state.bitsandbytes__nf4"), ".quant_state.bitsandbytes__nf4 beside it, got none"},
      {text("not JSON"), "bitsandbytes__nf4"},
      {text(""), "bitsandbytes__nf4"},
      {text("[1]"), "must be an object, got an array"},
      {text("{\"quant_type\": \"nf4\", \"blocksize\": 64"), "bitsandbytes__nf4"},
      {text(std::string(300, '[')), "bitsandbytes__nf4"},
      {shaped(".quant_state.bitsandbytes__nf4", DType::u8, {70000}), "must be at most 65536 bytes of JSON"},
      {shaped(".quant_state.bitsandbytes__nf4", DType::f32, {70}), "bytes of JSON, got f32 [70]"},
      {changed("quant_type", "fp4"), "quant_type must be nf4 as its name says, got \"fp4\""},
      {changed("quant_type", none), "must have quant_type, got none"},
      {changed("blocksize", 0), "blocksize"},
      {changed("blocksize", -64), "blocksize"},
      {changed("blocksize", 96), "blocksize must be a power of two, got 96"},
      {changed("blocksize", 1e18), "blocksize"},
      {changed("blocksize", 128), "absmax must be 800 elements of u8"},
      {changed("dtype", "float64"), "dtype must be float32, bfloat16 or float16, got \"float64\""},
      {changed("dtype", 3), "dtype must be"},
      {changed("shape", {640, 159}), "shape must be [640,160] as config.json says, got [640,159]"},
      {changed("shape", 7), "shape must be [640,160] as config.json says, got 7"},
      {changed("shape", {-640, -160}), "shape must be"},
      {changed("nested_blocksize", 0), "nested_blocksize"},
      {changed("nested_blocksize", 64), "nested_absmax must be 25 elements"},
      {changed("nested_offset", "x"), "nested_offset"},
      {changed("nested_offset", 1e60), "nested_offset must be finite"},
      {changed("nested_dtype", "float64"), "nested_dtype must be float32"},
      {shaped("", DType::u8, {51199, 1}), "must be 51200 bytes of codes for [640, 160], got 51199"},
      {shaped("", DType::f32, {640, 160}), "bytes of codes"},
      {shaped(".absmax", DType::u8, {1599}), "absmax must be 1600 elements of u8, got u8 [1599]"},
      {shaped(".absmax", DType::f32, {1600}), "absmax must be 1600 elements of u8, got f32 [1600]"},
      {shaped(".quant_map", DType::f32, {15}), "quant_map must be 16 elements"},
      {shaped(".nested_quant_map", DType::f32, {255}), "nested_quant_map must be 256 elements"},
      {[&](Folder& f) { f.put(name + ".quant_map", DType::f32, {16}, std::vector<float>(16, NAN)); },
       "quant_map must be finite, got nan"},
      {[&](Folder& f) { f.put(name + ".nested_absmax", DType::f32, {7}, std::vector<float>(7, INFINITY)); },
       "absmax must be finite"},
      {[&](Folder& f) { f.make("backbone.norm_f.weight.absmax", DType::f32, {3}); },
       "backbone.norm_f.weight.quant_state.bitsandbytes__nf4 beside it, got none"},
      {[&](Folder& f) { f.config.erase("quantization_config"); }, "every tensor must be one that falcon_mamba has"}};
  for (const auto& [spoil, says] : ways) {
    const Checkpoint good = Checkpoint::open_folder(coded);
    Folder f(read_json(coded / "config.json"));
    for (const auto& [tensor, entry] : good.entries()) f.tensors[tensor] = entry.tensor;
    spoil(f);
    f.write(spoilt);
    const std::string error = error_of([&] { load(spoilt, {}); });
    EXPECT_NE(error.find(says), std::string::npos) << error << ", must say " << says;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace elapid::testing
