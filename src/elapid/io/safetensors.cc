#include "elapid/io/safetensors.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <span>
#include <string_view>
#include <utility>

namespace elapid {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and tensors are used in place");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMinHeader = 2;            // {}
constexpr int64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr int64_t kDataAlignment = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

struct DTypeName {
  std::string_view name;
  DType dtype;
};
constexpr std::array kDTypes = {
    DTypeName{"F64", DType::f64},   DTypeName{"F32", DType::f32}, DTypeName{"F16", DType::f16},
    DTypeName{"BF16", DType::bf16}, DTypeName{"I64", DType::i64}, DTypeName{"I32", DType::i32},
    DTypeName{"U8", DType::u8},     DTypeName{"I8", DType::i8},   DTypeName{"BOOL", DType::boolean},
};

// Where an error happened: the file, and the tensor in it.
std::string place_of(const std::string& file, const std::string& tensor) {
  return concat(file, ": tensor ", quote(tensor));
}

// An exact non-negative integer; unlike in a config, 3.0 is none.
int64_t parse_size(const Json& value, const std::string& what) {
  require(value.is_number_integer(), what, ": must be an integer, got ", describe(value));
  return json_integer(value, what, 0, std::numeric_limits<int64_t>::max());
}

DType parse_dtype(const Json& value, const std::string& place) {
  const auto known = std::ranges::find_if(kDTypes, [&](const DTypeName& d) { return value == d.name; });
  require(known != kDTypes.end(), place, ": dtype must be one of F64, F32, F16, BF16, I64, I32, U8, I8, BOOL, got ",
          describe(value));
  return known->dtype;
}

Shape parse_shape(const Json& value, const std::string& place) {
  require(value.is_array(), place, ": shape must be an array, got ", describe(value));
  require(value.size() <= kMaxRank, place, ": shape must have at most ", kMaxRank, " dimensions, got ", value.size());
  Shape shape;
  for (const Json& dim : value) shape.dims[shape.rank++] = parse_size(dim, place + ": every dimension");
  return shape;
}

// The bytes of a dense tensor. Strides are products of trailing dimensions, so even when there are no elements, the
// product of the others must not overflow.
int64_t bytes_of(const Shape& shape, DType dtype, const std::string& place) {
  int64_t bytes = size_of(dtype);
  for (int i = 0; i < shape.rank; ++i) {
    const bool overflows = __builtin_mul_overflow(bytes, std::max<int64_t>(shape[i], 1), &bytes);
    require(!overflows, place, ": the product of the dimensions must fit 63 bits, got a larger one");
  }
  return shape.size() == 0 ? 0 : bytes;
}

// One entry of a header, checked as far as it can be without the others.
struct Span {
  std::string name;
  DType dtype;
  Shape shape;
  int64_t begin, end;  // in the data that follows the header
};

Span parse_span(const std::string& name, const Json& value, const std::string& file, int64_t data_size) {
  const std::string place = place_of(file, name);
  require(value.is_object(), place, ": must be an object, got ", describe(value));
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    require(value.contains(key), place, ": must have dtype, shape and data_offsets, got no ", key);
  }
  for (const auto& [key, unused] : value.items()) {
    require(key == "dtype" || key == "shape" || key == "data_offsets", place,
            ": must have only dtype, shape and data_offsets, got ", quote(key));
  }
  const Json& offsets = value["data_offsets"];
  require(offsets.is_array() && offsets.size() == 2, place, ": data_offsets must be an array of two, got ",
          offsets.is_array() ? concat(offsets.size()) : describe(offsets));

  const Span span{.name = name,
                  .dtype = parse_dtype(value["dtype"], place),
                  .shape = parse_shape(value["shape"], place),
                  .begin = parse_size(offsets[0], place + ": data_offsets[0]"),
                  .end = parse_size(offsets[1], place + ": data_offsets[1]")};
  require(span.begin <= span.end && span.end <= data_size, place, ": data_offsets must be ordered and within the ",
          data_size, " bytes of data, got [", span.begin, ", ", span.end, "]");
  const int64_t bytes = bytes_of(span.shape, span.dtype, place);
  require(span.end - span.begin == bytes, place, ": data_offsets must span the ", bytes,
          " bytes of its shape and dtype, got ", span.end - span.begin);
  return span;
}

// Every byte of the data must belong to exactly one tensor.
void check_coverage(std::vector<Span> spans, const std::string& file, int64_t data_size) {
  std::erase_if(spans, [](const Span& s) { return s.begin == s.end; });
  std::ranges::sort(spans, {}, &Span::begin);
  int64_t covered = 0;
  for (const Span& span : spans) {
    require(span.begin >= covered, place_of(file, span.name), ": must not overlap another tensor, got data from byte ",
            span.begin, " where the previous tensor ends at ", covered);
    require(span.begin == covered, place_of(file, span.name), ": must begin where the previous tensor ends (byte ",
            covered, "), got a hole up to ", span.begin);
    covered = span.end;
  }
  require(covered == data_size, file, ": the tensors must cover all ", data_size, " bytes of data, got ", covered);
}

std::map<std::string, std::string> parse_metadata(const Json& value, const std::string& file) {
  const std::string place = concat(file, ": ", kMetadataKey);
  require(value.is_object(), place, " must be an object, got ", describe(value));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    require(text.is_string(), place, ": ", quote(key), " must be a string, got ", describe(text));
    metadata.emplace(key, text.get_ref<const std::string&>());
  }
  return metadata;
}

std::string to_json_text(const Json& value, const std::string& what) {
  try {
    return value.dump();
  } catch (const Json::type_error&) {
    fail(concat(what, ": names and metadata must be valid UTF-8, got other bytes"));
  }
}

std::string_view format_name_of(DType dtype) { return std::ranges::find(kDTypes, dtype, &DTypeName::dtype)->name; }

}  // namespace

Safetensors Safetensors::open(const fs::path& file) {
  const std::shared_ptr<const MappedFile> mapped = MappedFile::open(file);
  return Safetensors(file.string(), mapped->bytes(), mapped);
}

Safetensors Safetensors::parse(Bytes bytes, const std::string& what) { return Safetensors(what, bytes, nullptr); }

Safetensors::Safetensors(std::string what, Bytes bytes, const std::shared_ptr<const MappedFile>& file)
    : what_(std::move(what)) {
  const int64_t size = std::ssize(bytes);
  require(size >= kLengthBytes, what_, ": must begin with a header length of ", kLengthBytes, " bytes, got ", size,
          " bytes in all");
  uint64_t stated_length = 0;
  std::memcpy(&stated_length, bytes.data(), sizeof(stated_length));
  const int64_t limit = std::min(size - kLengthBytes, kMaxHeader);
  require(std::cmp_greater_equal(stated_length, kMinHeader) && std::cmp_less_equal(stated_length, limit), what_,
          ": header length must be from ", kMinHeader, " to ", limit, " (the rest of the file, at most ", kMaxHeader,
          "), got ", stated_length);
  const auto length = static_cast<size_t>(stated_length);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  const Bytes data = bytes.subspan(kLengthBytes + length);

  const Json header = parse_json(text, what_ + ": header");
  require(header.is_object(), what_, ": header must be an object, got ", describe(header));
  std::vector<Span> spans;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      metadata_ = parse_metadata(value, what_);
    } else {
      spans.push_back(parse_span(name, value, what_, std::ssize(data)));
    }
  }
  check_coverage(spans, what_, std::ssize(data));
  for (const Span& span : spans) {
    // Tensor views both what is written and what is only read; the pages themselves are read-only.
    auto* const begin = const_cast<std::byte*>(data.data() + span.begin);
    entries_.emplace(span.name, Entry{.tensor = Tensor(begin, span.dtype, span.shape), .file = file});
  }
}

const Tensor& Safetensors::at(const std::string& name) const {
  const auto entry = entries_.find(name);
  require(entry != entries_.end(), place_of(what_, name), ": must be present, got no such tensor");
  return entry->second.tensor;
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : what_(path.string()), layout_(std::move(tensors)), file_(path) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : layout_) {
    const std::string place = place_of(what_, tensor.name);
    require(tensor.name != kMetadataKey, place, ": must have another name, got the reserved one");
    require(names.insert(tensor.name).second, place, ": must be written once, got it twice");
  }
  // The widest elements first: then every tensor is aligned.
  std::ranges::stable_sort(layout_, std::greater{}, [](const TensorInfo& t) { return size_of(t.dtype); });

  std::string header = "{";
  if (!metadata.empty()) header += concat(quote(kMetadataKey), ":", to_json_text(metadata, what_));
  int64_t offset = 0;
  for (const TensorInfo& tensor : layout_) {
    const std::string place = place_of(what_, tensor.name);
    const int64_t bytes = bytes_of(tensor.shape, tensor.dtype, place);
    const auto dims = std::span(tensor.shape.dims).first(static_cast<size_t>(tensor.shape.rank));
    const Json entry = {{"dtype", format_name_of(tensor.dtype)},
                        {"shape", Json::array_t(dims.begin(), dims.end())},
                        {"data_offsets", {offset, offset + bytes}}};
    if (header.size() > 1) header += ',';
    header += concat(to_json_text(tensor.name, place), ":", entry.dump());
    offset += bytes;
  }
  header += '}';
  const int64_t unpadded = kLengthBytes + std::ssize(header);
  header.append(static_cast<size_t>((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment), ' ');
  require(std::ssize(header) <= kMaxHeader, what_, ": the header must have at most ", kMaxHeader, " bytes, got ",
          header.size());
  const uint64_t length = header.size();
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(header);
}

void SafetensorsWriter::write(const Tensor& tensor) {
  assert(written_ < layout_.size());
  const TensorInfo& info = layout_[written_++];
  const std::string place = place_of(what_, info.name);
  require(tensor.dtype == info.dtype && tensor.shape == info.shape, place,
          ": must have the dtype and shape that were announced, got others");
  require(tensor.size() == 0 || tensor.data != nullptr, place, ": must have data, got none");
  require(tensor.size() == 0 || tensor.dense(), place, ": must be dense, got a strided view");
  file_.write(Bytes(static_cast<const std::byte*>(tensor.data), static_cast<size_t>(tensor.bytes())));
}

void SafetensorsWriter::commit() {
  assert(written_ == layout_.size());
  file_.commit();
}

void write_safetensors(const fs::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorInfo> infos;
  std::map<std::string_view, const Tensor*> by_name;
  for (const auto& [name, tensor] : tensors) {
    infos.push_back({name, tensor.dtype, tensor.shape});
    by_name.emplace(name, &tensor);
  }
  SafetensorsWriter writer(path, std::move(infos), metadata);
  for (const TensorInfo& info : writer.layout()) writer.write(*by_name.at(info.name));
  writer.commit();
}

}  // namespace elapid
