#pragma once

// What readers of checkpoints hand out.

#include "elapid/core/tensor.h"
#include "elapid/io/file.h"

#include <map>
#include <memory>
#include <string>

namespace elapid {

// A dense tensor and what its data lives in. The data may be unaligned: read elements with memcpy.
struct StoredTensor {
  Tensor tensor;
  std::shared_ptr<const MappedFile> file;  // keeps the tensor alive; null when the reader was given bytes
};

using StoredTensors = std::map<std::string, StoredTensor>;

// What a tensor to be written will be.
struct TensorInfo {
  std::string name;
  DType dtype;
  Shape shape;
};

}  // namespace elapid
