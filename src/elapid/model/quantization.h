#pragma once

// Folders whose matrices are stored quantized: what config.json says of them, and the tensors that make one matrix.
// docs/quantization.md describes both formats.

#include "elapid/io/checkpoint.h"
#include "elapid/io/json.h"
#include "elapid/model/families/family.h"
#include "elapid/ops/matmul/codes.h"

#include <memory>
#include <string>
#include <string_view>

namespace elapid {

enum class Precision : uint8_t;

// The quantization_config of a config.json, "what" naming the key in errors: of elapid's own format or of bitsandbytes'
// four bits. Others are an Error.
Quantization read_quantization(const Json& json, const std::string& what);
// The same for a folder that is to be written.
Json quantization_json(Precision precision);

// [leading dimensions of `shape`, last]: of codes and scales beside a matrix of that shape.
inline Shape with_columns(Shape shape, int64_t last) {
  shape.dims[shape.rank - 1] = last;
  return shape;
}

// Suffix of the tensor of scales beside a matrix of codes in elapid's format.
inline constexpr std::string_view kScales = ".scales";

// The name of the matrix that a tensor of this name belongs to: without the suffix of scales and tables, if it has one.
std::string_view coded_matrix_of(const Quantization& quantization, std::string_view name);

// What a rule means of a matrix that is stored in codes, null when it is stored as any other. Without `values`, there
// are no scales. An Error unless all tensors of the matrix are there, fit each other, and fit `whole`, the parameter's
// shape.
std::shared_ptr<const CodedRows> coded_part(const Quantization& quantization, const Checkpoint& weights,
                                            const NameRule& rule, const Shape& whole, bool values);

}  // namespace elapid
