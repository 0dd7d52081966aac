#include "elapid/model/builder.h"

#include "elapid/core/error.h"
#include "elapid/ops/matmul/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace elapid {
namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Element i as float; mapped files promise no alignment.
float element(const Tensor& t, int64_t i) {
  const char* at = static_cast<const char*>(t.data) + i * size_of(t.dtype);
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, at, sizeof value);
    return to_float(value);
  };
  switch (t.dtype) {
    case DType::f32: return read(float{});
    case DType::bf16: return read(BFloat16{});
    default: return read(Float16{});
  }
}

}  // namespace

ModelBuilder::ModelBuilder(ModelConfig config, ThreadPool& threads)
    : model_(std::make_unique<Model>(std::move(config))), threads_(threads) {}

void* ModelBuilder::take(int64_t bytes) {
  char* at = static_cast<char*>(model_->memory_.data()) + used_;
  used_ += aligned(bytes);
  assert(used_ <= model_->memory_.bytes());
  return at;
}

void ModelBuilder::fill(const Find& find) {
  Model& model = *model_;
  int64_t total = 0;
  const auto packed = [&](const Tensor& t) { return aligned(packed_bytes(t.shape, t.dtype)); };
  model.visit([&](const ParameterInfo& info) {
    const Source source = find(info, false);
    const Tensor& t = source.tensor;
    require(t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16, "load model: ", info.param->name,
            " must be f32, bf16 or f16, got ", name_of(t.dtype));
    if (info.role == Role::matrix) {
      total += packed(t);
    } else if (info.role == Role::table) {
      if (!source.file) total += aligned(t.bytes());
      if (model.config_.tied_head) total += packed(t);
    } else {
      total += aligned(t.size() * size_of(DType::f32));
    }
  });
  model.memory_ = Buffer(total);
  model.visit([&](const ParameterInfo& info) { place(info, find(info, true)); });
}

void ModelBuilder::place(const ParameterInfo& info, const Source& source) {
  Model& model = *model_;
  Param& param = *info.param;
  const Tensor& t = source.tensor;
  Model::Weights& weights = model.weights_;
  weights.parameters += t.size();
  weights.bytes += t.bytes();
  auto& by_dtype = weights.elements_by_dtype;
  const auto same = std::find_if(by_dtype.begin(), by_dtype.end(), [&](const auto& e) { return e.first == t.dtype; });
  same == by_dtype.end() ? by_dtype.emplace_back(t.dtype, t.size()).second : same->second += t.size();

  const auto pack = [&](Param& to) {
    const int64_t bytes = packed_bytes(t.shape, t.dtype);
    to.value = pack_weight(threads_, t, take(bytes));
    to.packing = Packing::tiles;
    weights.bytes_per_token += bytes;
  };
  switch (info.role) {
    case Role::matrix:
      pack(param);
      if (info.param != &model.head_) weights.matrix_elements += t.size();
      break;
    case Role::table:
      param.value = t;
      if (source.file) {
        model.files_.push_back(source.file);
      } else {
        void* copy = take(t.bytes());
        std::memcpy(copy, t.data, static_cast<size_t>(t.bytes()));
        param.value.data = copy;
      }
      weights.bytes_per_token += t.cols() * size_of(t.dtype);
      if (model.config_.tied_head) {
        model.head_.name = param.name;
        pack(model.head_);
      }
      break;
    case Role::vector:
    case Role::decay: {
      param.value = Tensor(take(t.size() * size_of(DType::f32)), DType::f32, t.shape);
      for (int64_t i = 0; i < t.size(); ++i) {
        const float v = element(t, i);
        // In double, rounded once: A is the exponent's factor at every step.
        param.value.ptr<float>()[i] = info.role == Role::decay ? static_cast<float>(-std::exp(double{v})) : v;
      }
      weights.bytes_per_token += param.value.bytes();
      break;
    }
    case Role::conv_taps: {
      const int64_t channels = t.shape[0], taps = t.shape[2];
      param.value = Tensor(take(t.size() * size_of(DType::f32)), DType::f32, {taps, channels});
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k < taps; ++k) param.value.row<float>(k)[c] = element(t, c * taps + k);
      }
      weights.bytes_per_token += param.value.bytes();
      break;
    }
  }
  // What was copied is not needed twice; a table's rows come back when they are looked up.
  if (source.file) {
    source.file->drop_pages({static_cast<const std::byte*>(t.data), static_cast<size_t>(t.bytes())});
  }
}

std::unique_ptr<Model> ModelBuilder::finish(std::function<std::string()> fingerprint) {
  model_->spec_->fingerprint = std::move(fingerprint);
  return std::move(model_);
}

}  // namespace elapid
