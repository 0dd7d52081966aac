#include "elapid/model/builder.h"

#include "elapid/core/error.h"
#include "elapid/core/widen.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/ops/matmul/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace elapid {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Calls f(row, column, value) for every element; mapped files promise no alignment.
template <class F>
void for_each_element(const ModelBuilder::Source& source, const F& f) {
  int64_t first = 0;
  for (const ModelBuilder::Part& part : source.parts) {
    const Tensor& t = part.rows;
    const auto walk = [&]<class T>(T value) {
      for (int64_t r = 0; r < t.shape[0]; ++r) {
        const char* at = static_cast<const char*>(t.data) + r * t.row_stride() * size_of(t.dtype);
        for (int64_t c = 0; c < t.shape[1]; ++c) {
          std::memcpy(&value, at + c * int64_t{sizeof value}, sizeof value);
          f(first + r, c, to_float(value));
        }
      }
    };
    switch (t.dtype) {
      case DType::f32: walk(float{}); break;
      case DType::bf16: walk(BFloat16{}); break;
      default: walk(Float16{}); break;
    }
    first += t.shape[0];
  }
}

// A dtype that all parts share, of those that this engine computes with.
DType dtype_of(const ParameterInfo& info, const ModelBuilder::Source& source) {
  const DType dtype = source.parts.front().rows.dtype;
  for (const ModelBuilder::Part& part : source.parts) {
    const DType d = part.rows.dtype;
    require(d == DType::f32 || d == DType::bf16 || d == DType::f16, "load model: ", info.param->name,
            " must be f32, bf16 or f16, got ", name_of(d));
    require(!part.coded || info.role == Role::matrix || info.role == Role::router, "load model: ", info.param->name,
            " must not be quantized, got codes");
    require(d == dtype || (info.role != Role::matrix && info.role != Role::router), "load model: all parts of ",
            info.name, " must be of one element type, got ", name_of(dtype), " and ", name_of(d));
  }
  return dtype;
}

Packing packing_of(Precision precision) {
  return precision == Precision::int8 ? Packing::int8 : precision == Precision::int4 ? Packing::int4 : Packing::tiles;
}

// From the first to the last byte of a part in its file, scales apart.
Bytes bytes_of(const ModelBuilder::Part& part) {
  if (part.coded) {
    const CodedRows& c = *part.coded;
    const auto begin = static_cast<size_t>(c.first * c.bits / 8),
               end = static_cast<size_t>(((c.shape[0] - 1) * c.pitch + c.first + c.shape[1]) * c.bits + 7) / 8;
    return std::as_bytes(c.codes.subspan(begin, end - begin));
  }
  const int64_t elements = (part.rows.shape[0] - 1) * part.rows.row_stride() + part.rows.shape[1];
  return {static_cast<const std::byte*>(part.rows.data), static_cast<size_t>(elements * size_of(part.rows.dtype))};
}

// The precision that holds all of a parameter's codes exactly.
std::optional<Precision> precision_of_codes(const ModelBuilder::Source& source) {
  std::optional<Packing> packing;
  for (const ModelBuilder::Part& part : source.parts) {
    const std::optional<Packing> exact = part.coded ? exact_packing(*part.coded) : std::nullopt;
    if (!exact || (packing && packing != exact)) return {};
    packing = exact;
  }
  return packing == Packing::int8 ? Precision::int8 : Precision::int4;
}

int64_t bytes_in(Precision precision, Shape shape, DType stored) {
  const Packing packing = packing_of(precision);
  if (is_quantized(packing)) return quantized_bytes(shape, packing);
  return packed_bytes(shape, precision == Precision::bf16 ? DType::bf16 : stored);
}

Tensor pack_rows(ThreadPool& threads, std::span<const Tensor> rows, Precision precision, const std::string& name,
                 void* memory) {
  const Packing packing = packing_of(precision);
  if (is_quantized(packing)) return pack_quantized(threads, rows, packing, memory, name);
  return pack_weight(threads, rows, precision == Precision::bf16 ? DType::bf16 : rows.front().dtype, memory);
}

// Rows that are stored in codes, decoded a few at a time.
void pack_decoded(ThreadPool& threads, const ModelBuilder::Source& source, Shape shape, Precision precision,
                  const std::string& name, char* memory) {
  constexpr int64_t kRoom = int64_t{16} << 20;
  const DType dtype = source.parts.front().rows.dtype;
  const int64_t row_bytes = shape[1] * size_of(dtype);
  const int64_t step = std::min(shape[0], std::max<int64_t>(1, kRoom / row_bytes / kPackBlock) * kPackBlock);
  Buffer room(step * row_bytes);
  auto* const rows = static_cast<char*>(room.data());
  for (int64_t first = 0; first < shape[0]; first += step) {
    const int64_t count = std::min(step, shape[0] - first);
    parallel_for(threads, count, kPackBlock, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        size_t p = 0;
        int64_t row = first + r;
        for (; row >= source.parts[p].rows.shape[0]; ++p) row -= source.parts[p].rows.shape[0];
        const ModelBuilder::Part& part = source.parts[p];
        if (part.coded) {
          decode_row(*part.coded, row, rows + r * row_bytes);
        } else {
          const char* from = static_cast<const char*>(part.rows.data) + row * part.rows.row_stride() * size_of(dtype);
          std::memcpy(rows + r * row_bytes, from, static_cast<size_t>(row_bytes));
        }
      }
    });
    const Tensor decoded(rows, dtype, {count, shape[1]});
    pack_rows(threads, {&decoded, 1}, precision, name, memory + bytes_in(precision, {first, shape[1]}, dtype));
  }
}

// What a matrix of `stored` type is in a device's memory; f16 has no use of its own there.
DType rows_dtype(Precision precision, DType stored) {
  return precision == Precision::bf16 || stored == DType::bf16 ? DType::bf16 : DType::f32;
}

// `n` elements at any alignment as elements of `dtype`: the same, f32, or bf16.
void convert_row(const char* from, DType stored, int64_t n, DType dtype, char* to) {
  if (stored == dtype) {
    std::memcpy(to, from, static_cast<size_t>(n * size_of(dtype)));
    return;
  }
  constexpr int64_t kAtOnce = 256;
  float floats[kAtOnce];
  for (int64_t begin = 0; begin < n; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, n - begin);
    widen(from + begin * size_of(stored), stored, count, floats);
    if (dtype == DType::f32) {
      std::memcpy(to + begin * size_of(dtype), floats, static_cast<size_t>(count * size_of(dtype)));
    } else {
      auto* rounded = reinterpret_cast<BFloat16*>(to) + begin;
      for (int64_t i = 0; i < count; ++i) rounded[i] = to_bf16(floats[i]);
    }
  }
}

// Rows [begin, end) of all parts together.
std::vector<ModelBuilder::Part> rows_of(const ModelBuilder::Source& source, int64_t begin, int64_t end) {
  std::vector<ModelBuilder::Part> rows;
  int64_t first = 0;
  for (const ModelBuilder::Part& part : source.parts) {
    const int64_t size = part.rows.shape[0], from = std::max(begin - first, int64_t{0}),
                  to = std::min(end - first, size);
    if (from < to) rows.push_back({part.rows.slice(from, to), part.file});
    first += size;
  }
  return rows;
}

// What was copied is not needed twice; a table's rows come back when they are looked up.
void drop_pages(const std::vector<ModelBuilder::Part>& parts) {
  for (const ModelBuilder::Part& part : parts) {
    if (part.file && part.rows.shape[0] > 0) part.file->drop_pages(bytes_of(part));
  }
}

}  // namespace

Precision precision_for(const ParameterInfo& info, DType stored, std::optional<Precision> asked) {
  if (info.role == Role::router) return Precision::f32;
  const Precision precision = asked.value_or(stored == DType::f32 ? Precision::f32 : Precision::bf16);
  if (precision <= Precision::bf16) return precision;
  // Small ones save nothing, and what follows from Mamba-1's dt_rank is sensitive.
  if (info.shape[1] < 2 * kQuantGroup) return Precision::bf16;
  return info.role == Role::table || info.name == "head.weight" ? Precision::int8 : precision;
}

ModelBuilder::ModelBuilder(ModelConfig config, ThreadPool& threads, std::optional<Precision> precision, Device device)
    : model_(std::make_unique<Model>(std::move(config))), threads_(threads), precision_(precision), device_(device) {
  require(!on_cuda(device) || !precision || *precision <= Precision::bf16, "load model: --dtype ",
          name_of(precision.value_or(Precision::f32)),
          " must be f32 or bf16 on cuda, where weights in 8 or 4 bits are not computed with yet");
  if constexpr (kWithCuda) {
    if (on_cuda(device)) checked_cuda_device(device.index);
  }
}

void* ModelBuilder::take(int64_t bytes) {
  const int64_t left = bytes_ - used_;
  require(bytes <= left, "load model: weights must fit the memory that was counted for them, ", bytes_, " bytes, got ",
          bytes, " where ", left, " are left");
  char* at = static_cast<char*>(memory_) + used_;
  used_ += aligned(bytes);
  return at;
}

Precision ModelBuilder::precision_of(const ParameterInfo& info, const Source& source) const {
  const std::optional<Precision> exact =
      info.role == Role::router || on_cuda(device_) ? std::nullopt : precision_of_codes(source);
  if (exact && precision_.value_or(*exact) == *exact) return *exact;
  return precision_for(info, source.parts.front().rows.dtype, precision_);
}

int64_t ModelBuilder::memory_of(const ParameterInfo& info, const Source& source) const {
  const DType dtype = dtype_of(info, source);
  const Precision precision = precision_of(info, source);
  if (on_cuda(device_) && (info.role == Role::table || info.role == Role::matrix || info.role == Role::router)) {
    const int64_t rows = aligned(info.shape.size() * size_of(rows_dtype(precision, dtype)));
    if (info.role != Role::table) return rows;
    const bool head = model_->config_.tied_head && rows_dtype(precision, dtype) != dtype;
    return aligned(info.shape.size() * size_of(dtype)) + (head ? rows : 0);
  }
  const int64_t packed = aligned(bytes_in(precision, info.shape, dtype));
  switch (info.role) {
    case Role::matrix:
    case Role::router: return packed;
    case Role::table:
      return (source.parts.front().file ? 0 : aligned(info.shape.size() * size_of(dtype))) +
             (model_->config_.tied_head ? packed : 0);
    default: return aligned(info.shape.size() * size_of(DType::f32));
  }
}

void ModelBuilder::note(std::string text) { model_->config_.notes.push_back(std::move(text)); }

void ModelBuilder::fill(const Find& find, const FindPacked& find_packed) {
  Model& model = *model_;
  int64_t& total = bytes_;
  std::string layout;
  std::map<std::string, const Param*> placed;
  model.visit([&](const ParameterInfo& info) {
    const Source source = find(info, false);
    if (!source.key.empty() && !placed.emplace(source.key, nullptr).second) return;
    const int64_t bytes = memory_of(info, source);
    require(!__builtin_add_overflow(total, bytes, &total), "load model: all weights together must fit 63 bits, got ",
            bytes, " bytes more at ", info.param->name);
    layout +=
        concat(info.name, ' ', static_cast<int>(info.role), ' ', shown(info.shape), ' ', source.key, ' ', bytes, '\n');
  });
  const bool keeps = find_packed && !on_cuda(device_);
  if (const Packed found = keeps ? find_packed(layout, total) : Packed{}; found.file) {
    model.files_.push_back(found.file);
    memory_ = const_cast<void*>(found.memory);  // nobody writes weights
    packed_ = true;
  } else {
    model.memory_ = Buffer(total, device_);
    memory_ = model.memory_.data();
  }
  model.visit([&](const ParameterInfo& info) {
    const Source source = find(info, true);
    const Param*& first = placed[source.key];
    if (!source.key.empty() && first != nullptr) {
      *info.param = *first;
      return;
    }
    first = info.param;
    place(info, source);
  });
}

// Some rows after others: the pages of a mapped file take little memory beside what they become.
Tensor ModelBuilder::pack(const ParameterInfo& info, const Source& source, Precision precision,
                          const std::string& name) {
  constexpr int64_t kAtOnce = int64_t{4} << 20;
  const DType stored = source.parts.front().rows.dtype;
  const Packing packing = packing_of(precision);
  const DType packed = is_quantized(packing) ? DType::u8 : precision == Precision::bf16 ? DType::bf16 : stored;
  const int64_t rows = info.shape[0], columns = info.shape[1];
  auto* const memory = static_cast<char*>(take(bytes_in(precision, info.shape, stored)));
  const Tensor value(memory, packed, info.shape);
  if (packed_) return value;
  if (is_quantized(packing) && precision_of_codes(source) == precision) {
    std::vector<const CodedRows*> coded;
    for (const Part& part : source.parts) coded.push_back(part.coded.get());
    return pack_codes(threads_, coded, packing, memory);
  }
  if (std::any_of(source.parts.begin(), source.parts.end(), [](const Part& part) { return part.coded != nullptr; })) {
    pack_decoded(threads_, source, info.shape, precision, name, memory);
    return value;
  }
  const int64_t step = (kAtOnce / std::max(columns * size_of(stored), int64_t{1}) / kPackBlock + 1) * kPackBlock;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const std::vector<Part> parts = rows_of(source, begin, std::min(begin + step, rows));
    std::vector<Tensor> tensors;
    for (const Part& part : parts) tensors.push_back(part.rows);
    pack_rows(threads_, tensors, precision, name, memory + bytes_in(precision, {begin, columns}, stored));
    drop_pages(parts);
  }
  return value;
}

Tensor ModelBuilder::put_rows(const Source& source, Shape shape, DType dtype) {
  constexpr int64_t kRoom = int64_t{32} << 20;
  const int64_t row_bytes = shape[1] * size_of(dtype);
  auto* const memory = static_cast<char*>(take(shape[0] * row_bytes));
  if constexpr (kWithCuda) {
    const int64_t step = std::max<int64_t>(1, kRoom / std::max<int64_t>(row_bytes, 1));
    for (int64_t first = 0; first < shape[0]; first += step) {
      const int64_t count = std::min(step, shape[0] - first);
      staging_.reset();
      const Tensor rows = staging_.alloc({count, shape[1]}, dtype);
      const DType stored = source.parts.front().rows.dtype;
      parallel_for(
          threads_, count, std::max<int64_t>(1, count / (4 * threads_.size())), [&](int64_t begin, int64_t end, int) {
            std::vector<char> decoded(static_cast<size_t>(shape[1] * size_of(stored)));
            for (int64_t r = begin; r < end; ++r) {
              size_t p = 0;
              int64_t row = first + r;
              for (; row >= source.parts[p].rows.shape[0]; ++p) row -= source.parts[p].rows.shape[0];
              const Part& part = source.parts[p];
              const char* from = decoded.data();
              if (part.coded) {
                decode_row(*part.coded, row, decoded.data());
              } else {
                from = static_cast<const char*>(part.rows.data) + row * part.rows.row_stride() * size_of(stored);
              }
              convert_row(from, stored, shape[1], dtype, static_cast<char*>(rows.data) + r * row_bytes);
            }
          });
      copy_async(memory + first * row_bytes, rows.data, rows.bytes(), nullptr);
      synchronize(nullptr);  // the room is written again
      if (std::none_of(source.parts.begin(), source.parts.end(), [](const Part& part) { return part.coded; })) {
        drop_pages(rows_of(source, first, first + count));
      }
    }
  }
  return {memory, dtype, shape};
}

void ModelBuilder::place(const ParameterInfo& info, const Source& source) {
  Model& model = *model_;
  Param& param = *info.param;
  Model::Weights& weights = model.weights_;
  for (const Part& part : source.parts) {
    const std::string_view dtype = part.coded ? part.coded->name : name_of(part.rows.dtype);
    const int64_t size = part.rows.size();
    weights.parameters += size;
    weights.bytes += part.coded ? part.coded->stored_bytes : size * size_of(part.rows.dtype);
    auto& by_dtype = weights.elements_by_dtype;
    const auto same = std::find_if(by_dtype.begin(), by_dtype.end(), [&](const auto& e) { return e.first == dtype; });
    same == by_dtype.end() ? by_dtype.emplace_back(dtype, size).second : same->second += size;
  }
  const auto pack = [&](Param& to) {
    const Precision precision = precision_of(info, source);
    to.arithmetic = precision == Precision::f32 ? Arithmetic::f32 : Arithmetic::bf16;
    weights.precision = std::max(weights.precision, precision);
    const DType stored = source.parts.front().rows.dtype;
    if (on_cuda(device_)) {
      const DType dtype = rows_dtype(precision, stored);
      // A tied head is the table itself, where both are of one type.
      const bool same = info.role == Role::table && dtype == model.embedding_.value.dtype;
      to.value = same ? model.embedding_.value : put_rows(source, info.shape, dtype);
      weights.bytes_per_token += static_cast<int64_t>(static_cast<double>(to.value.bytes()) * info.use);
      return;
    }
    const int64_t bytes = bytes_in(precision, info.shape, stored);
    to.packing = packing_of(precision);
    to.value = this->pack(info, source, precision, param.name);
    weights.bytes_per_token += static_cast<int64_t>(static_cast<double>(bytes) * info.use);
  };
  // f(element) as float32 in memory, at [row, column] or the other way round.
  const auto floats = [&](Shape shape, bool transposed, const auto& f) {
    param.value = Tensor(take(shape.size() * size_of(DType::f32)), DType::f32, shape);
    std::vector<float> staged(on_cuda(device_) ? static_cast<size_t>(shape.size()) : 0);
    float* to = on_cuda(device_) ? staged.data() : param.value.ptr<float>();
    const int64_t rows = info.shape[0], columns = info.shape.size() / std::max<int64_t>(rows, 1);
    if (!packed_) {
      for_each_element(source,
                       [&](int64_t r, int64_t c, float v) { to[transposed ? c * rows + r : r * columns + c] = f(v); });
    }
    if constexpr (kWithCuda) {
      if (on_cuda(device_)) {
        copy_async(param.value.data, staged.data(), param.value.bytes(), nullptr);
        synchronize(nullptr);
      }
    }
    weights.bytes_per_token += param.value.bytes();
  };
  const auto as_is = [](float v) { return v; };
  switch (info.role) {
    case Role::matrix:
    case Role::router:
      pack(param);
      if (info.param != &model.head_) {
        weights.matrix_elements += static_cast<int64_t>(static_cast<double>(info.shape.size()) * info.use);
      }
      break;
    case Role::table: {
      const Part& part = source.parts.front();
      param.value = Tensor(part.rows.data, part.rows.dtype, info.shape);
      if (on_cuda(device_)) {
        param.value = put_rows(source, info.shape, part.rows.dtype);
      } else if (part.file) {
        model.files_.push_back(part.file);
      } else {
        void* copy = take(param.value.bytes());
        if (!packed_) std::memcpy(copy, part.rows.data, static_cast<size_t>(param.value.bytes()));
        param.value.data = copy;
      }
      weights.bytes_per_token += param.value.cols() * size_of(param.value.dtype);
      if (model.config_.tied_head) {
        model.head_.name = param.name;
        pack(model.head_);
      }
      break;
    }
    case Role::vector: floats(info.shape, false, as_is); break;
    case Role::decay:
      // In double, rounded once: A is the exponent's factor at every step.
      floats(info.shape, false, [](float v) { return static_cast<float>(-std::exp(double{v})); });
      break;
    case Role::conv_taps: floats({info.shape[2], info.shape[0]}, true, as_is); break;
  }
  drop_pages(source.parts);
}

std::unique_ptr<Model> ModelBuilder::finish(std::function<std::string()> fingerprint) {
  model_->spec_->fingerprint = std::move(fingerprint);
  return std::move(model_);
}

}  // namespace elapid
