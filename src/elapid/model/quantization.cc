#include "elapid/model/quantization.h"

#include "elapid/core/error.h"
#include "elapid/core/widen.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/model.h"
#include "elapid/ops/matmul/quantized.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

namespace elapid {
namespace {

constexpr std::string_view kOurs = "elapid", kTheirs = "bitsandbytes";
constexpr int64_t kVersion = 1;

// bitsandbytes' tensors beside a matrix.
constexpr std::string_view kAbsmax = ".absmax", kMap = ".quant_map", kNestedAbsmax = ".nested_absmax",
                           kNestedMap = ".nested_quant_map", kStateNf4 = ".quant_state.bitsandbytes__nf4",
                           kStateFp4 = ".quant_state.bitsandbytes__fp4";
constexpr std::array kBesides = {kNestedAbsmax, kNestedMap, kAbsmax, kMap, kStateNf4, kStateFp4};
constexpr int64_t kMostState = 1 << 16;  // bytes of its JSON

// The part of a matrix that a rule means.
struct Range {
  Shape stored;  // of the whole tensor, as the configuration implies it
  int64_t rows, columns;
  int64_t row, row_count, column, column_count;
};

Range range_of(const NameRule& rule, const Shape& whole) {
  const bool all = rule.shape.rank == 0;
  const Shape& shape = all ? whole : rule.shape;
  const Tensor matrix = as_matrix(Tensor(nullptr, DType::u8, shape));
  Range range{shape, matrix.shape[0], matrix.shape[1], 0, matrix.shape[0], 0, matrix.shape[1]};
  if (!all) {
    range.row = rule.row;
    range.row_count = rule.rows;
    range.column = rule.column;
    range.column_count = rule.columns;
  }
  return range;
}

std::span<const uint8_t> bytes_of(const Tensor& t) {
  return {static_cast<const uint8_t*>(t.data), static_cast<size_t>(t.bytes())};
}

// Elements [first, first + count).
std::vector<float> floats_of(const Tensor& t, int64_t first, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  widen(static_cast<const char*>(t.data) + first * size_of(t.dtype), t.dtype, count, values.data());
  return values;
}

void check_finite(const std::vector<float>& values, const std::string& name, std::string_view what) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  require(bad == values.end(), "load model: ", name, what, " must be finite, got ", bad == values.end() ? 0 : *bad);
}

CodedRows our_part(const Quantization& quantization, const Checkpoint& weights, const std::string& name,
                   const Range& range, bool values) {
  const Tensor &codes = weights.at(name), &scales = weights.at(name + std::string(kScales));
  // Of a model in four bits, the head has eight.
  const bool bytes = quantization.bits == 8 || codes.cols() == range.columns;
  const Packing packing = bytes ? Packing::int8 : Packing::int4;
  const int64_t width = code_bytes(packing, range.columns), groups = quant_groups(range.columns);
  const auto check = [&](const Tensor& t, std::string_view suffix, DType dtype, const Shape& shape) {
    require(t.dtype == dtype && t.shape == shape, "load model: ", name, suffix, " must be ", name_of(dtype), ' ',
            shown(shape), " as config.json says, got ", name_of(t.dtype), ' ', shown(t.shape));
  };
  require(range.stored.rank >= 2, "load model: ", name, " must be a matrix to have scales, got a vector");
  check(codes, "", DType::u8, with_columns(range.stored, width));
  check(scales, kScales, DType::f32, with_columns(range.stored, groups));
  CodedRows part{.shape = {range.row_count, range.column_count},
                 .bits = bytes ? 8 : 4,
                 .name = bytes ? "int8" : "nf4",
                 .dtype = DType::f32,
                 .codes = bytes_of(codes),
                 .pitch = bytes ? width : 2 * width,
                 .group = kQuantGroup,
                 .row_groups = groups,
                 .column = range.column,
                 .stored_bytes = range.row_count * (width + groups * size_of(DType::f32))};
  part.first = range.row * part.pitch + range.column;
  std::copy_n(kNormalFloat4, part.levels.size(), part.levels.begin());
  if (values) {
    part.scales = floats_of(scales, range.row * groups, range.row_count * groups);
    check_finite(part.scales, name, kScales);
  }
  return part;
}

DType dtype_named(const Json& json, const std::string& what) {
  const std::string name = json.is_string() ? json.get<std::string>() : describe(json);
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  require(name == "float16", what, ": dtype must be float32, bfloat16 or float16, got ", quote(name));
  return DType::f16;
}

// QuantState.as_dict(packed=True) of bitsandbytes.
struct State {
  bool nested = false;
  int64_t block = 0, nested_block = 0;
  float nested_offset = 0;
  DType dtype{};
};

State read_state(const Tensor& t, const std::string& what, std::string_view type, const Shape& shape, bool nested) {
  require(t.dtype == DType::u8 && t.shape.rank == 1 && t.size() <= kMostState, what, ": must be at most ", kMostState,
          " bytes of JSON, got ", name_of(t.dtype), ' ', shown(t.shape));
  const Json json = parse_json({static_cast<const char*>(t.data), static_cast<size_t>(t.size())}, what);
  require(json.is_object(), what, ": must be an object, got ", describe(json));
  const auto field = [&](const char* key) -> const Json& {
    const auto found = json.find(key);
    require(found != json.end(), what, ": must have ", key, ", got none");
    return *found;
  };
  require(field("quant_type") == type, what, ": quant_type must be ", type, " as its name says, got ",
          describe(field("quant_type")));
  State state{.nested = nested, .dtype = dtype_named(field("dtype"), what)};
  state.block = json_integer(field("blocksize"), what + ": blocksize", 32, 4096);
  require((state.block & (state.block - 1)) == 0, what, ": blocksize must be a power of two, got ", state.block);
  Json dims = Json::array();
  for (int i = 0; i < shape.rank; ++i) dims.push_back(shape[i]);
  require(field("shape") == dims, what, ": shape must be ", dims.dump(), " as config.json says, got ",
          field("shape").is_array() && field("shape").size() <= 8 ? field("shape").dump() : describe(field("shape")));
  if (nested) {
    state.nested_block = json_integer(field("nested_blocksize"), what + ": nested_blocksize", 1, 4096);
    state.nested_offset = static_cast<float>(json_number(field("nested_offset"), what + ": nested_offset"));
    require(std::isfinite(state.nested_offset), what, ": nested_offset must be finite, got ", state.nested_offset);
    require(field("nested_dtype") == "float32", what, ": nested_dtype must be float32, got ",
            describe(field("nested_dtype")));
  }
  return state;
}

CodedRows their_part(const Checkpoint& weights, const std::string& name, const Range& range, bool values) {
  const auto besides = [&](std::string_view suffix) -> const Tensor* {
    const auto found = weights.entries().find(name + std::string(suffix));
    return found == weights.entries().end() ? nullptr : &found->second.tensor;
  };
  const auto needed = [&](std::string_view suffix, int64_t size, bool bytes) -> const Tensor& {
    const Tensor* t = besides(suffix);
    require(t != nullptr, "load model: ", name, " must have ", name, suffix, " beside it, got none");
    const bool fits =
        bytes ? t->dtype == DType::u8 : t->dtype == DType::f32 || t->dtype == DType::bf16 || t->dtype == DType::f16;
    require(fits && t->size() == size, "load model: ", name, suffix, " must be ", size, " elements of ",
            bytes ? "u8" : "f32, bf16 or f16", ", got ", name_of(t->dtype), ' ', shown(t->shape));
    return *t;
  };
  const bool fp4 = besides(kStateFp4) != nullptr;
  const std::string_view suffix = fp4 ? kStateFp4 : kStateNf4, type = fp4 ? "fp4" : "nf4";
  require(besides(suffix) != nullptr, "load model: ", name, " must have ", name, suffix, " beside it, got none");
  const bool nested = besides(kNestedAbsmax) != nullptr || besides(kNestedMap) != nullptr;
  const State state = read_state(*besides(suffix), concat(name, suffix), type, range.stored, nested);

  const int64_t size = range.rows * range.columns, blocks = (size + state.block - 1) / state.block;
  const Tensor &codes = weights.at(name), &absmax = needed(kAbsmax, blocks, nested), &map = needed(kMap, 16, false);
  require(codes.bytes() == (size + 1) / 2, "load model: ", name, " must be ", (size + 1) / 2, " bytes of codes for ",
          shown(range.stored), ", got ", codes.bytes());
  CodedRows part{.shape = {range.row_count, range.column_count},
                 .bits = 4,
                 .name = type,
                 .dtype = state.dtype,
                 .codes = bytes_of(codes),
                 .first = range.row * range.columns + range.column,
                 .pitch = range.columns,
                 .group = state.block,
                 .row_groups = range.columns % state.block == 0 ? range.columns / state.block : 0,
                 .column = range.column};
  part.stored_bytes = (codes.bytes() + absmax.bytes()) * range.row_count / std::max<int64_t>(range.rows, 1);
  const std::vector<float> levels = floats_of(map, 0, 16);
  check_finite(levels, name, kMap);
  std::copy(levels.begin(), levels.end(), part.levels.begin());
  if (nested) {
    needed(kNestedAbsmax, (blocks + state.nested_block - 1) / state.nested_block, false);
    needed(kNestedMap, 256, false);
  }
  if (!values) return part;
  // Blocks of rows end with the row, or the part reaches over blocks from the tensor's first on.
  const int64_t first = range.row * part.row_groups,
                count = part.row_groups > 0 ? range.row_count * part.row_groups : blocks;
  if (nested) {
    const std::vector<float> of_scales = floats_of(*besides(kNestedAbsmax), 0, besides(kNestedAbsmax)->size()),
                             table = floats_of(*besides(kNestedMap), 0, 256);
    for (int64_t i = first; i < first + count; ++i) {
      const float level = table[bytes_of(absmax)[static_cast<size_t>(i)]];
      part.scales.push_back(level * of_scales[static_cast<size_t>(i / state.nested_block)] + state.nested_offset);
    }
  } else {
    part.scales = floats_of(absmax, first, count);
  }
  check_finite(part.scales, name, kAbsmax);
  return part;
}

}  // namespace

Quantization read_quantization(const Json& json, const std::string& what) {
  require(json.is_object(), what, ": must be an object, got ", describe(json));
  const auto is = [&](const char* key, const Json& value) { return json.contains(key) && json.at(key) == value; };
  const std::string_view known = ": must be elapid's, or bitsandbytes' with load_in_4bit, got ";
  if (is("quant_method", kOurs)) {
    const auto must_be = [&](const char* key, const Json& value) {
      require(is(key, value), what, ": ", key, " must be ", value.dump(), ", got ",
              json.contains(key) ? describe(json.at(key)) : "none");
    };
    const bool eight = is("bits", 8);
    if (!eight) must_be("bits", 4);
    must_be("version", kVersion);
    must_be("group_size", kQuantGroup);
    must_be("code", eight ? "int8" : "nf4");
    return {Quantization::Method::elapid, eight ? 8 : 4, eight ? "int8" : "nf4"};
  }
  require(!json.contains("quant_method") || is("quant_method", kTheirs), what, known, "quant_method ",
          json.contains("quant_method") ? describe(json.at("quant_method")) : "");
  require(is("load_in_4bit", true), what, known, is("load_in_8bit", true) ? "load_in_8bit" : "neither");
  const Json type = json.value("bnb_4bit_quant_type", Json("fp4"));
  require(type == "nf4" || type == "fp4", what, ": bnb_4bit_quant_type must be nf4 or fp4, got ", describe(type));
  return {Quantization::Method::bitsandbytes, 4, type.get<std::string>()};
}

Json quantization_json(Precision precision) {
  const bool eight = precision == Precision::int8;
  return {{"quant_method", kOurs},
          {"version", kVersion},
          {"bits", eight ? 8 : 4},
          {"group_size", kQuantGroup},
          {"code", eight ? "int8" : "nf4"}};
}

std::string_view coded_matrix_of(const Quantization& quantization, std::string_view name) {
  if (quantization.method == Quantization::Method::elapid) {
    return name.ends_with(kScales) ? name.substr(0, name.size() - kScales.size()) : name;
  }
  for (const std::string_view suffix : kBesides) {
    if (name.ends_with(suffix)) return name.substr(0, name.size() - suffix.size());
  }
  return name;
}

std::shared_ptr<const CodedRows> coded_part(const Quantization& quantization, const Checkpoint& weights,
                                            const NameRule& rule, const Shape& whole, bool values) {
  const auto has = [&](std::string_view suffix) { return weights.contains(rule.theirs + std::string(suffix)); };
  if (!has("")) return nullptr;  // the caller says so
  const Range range = range_of(rule, whole);
  if (quantization.method == Quantization::Method::elapid) {
    if (has(kScales)) return std::make_shared<CodedRows>(our_part(quantization, weights, rule.theirs, range, values));
    require(weights.at(rule.theirs).dtype != DType::u8, "load model: ", rule.theirs, " must have ", rule.theirs,
            kScales, " beside its codes, got none");
    return nullptr;
  }
  if (std::none_of(kBesides.begin(), kBesides.end(), has)) return nullptr;
  return std::make_shared<CodedRows>(their_part(weights, rule.theirs, range, values));
}

}  // namespace elapid
