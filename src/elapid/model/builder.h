#pragma once

// ModelBuilder: puts weights, wherever they come from, into the memory form that each parameter's role asks for.

#include "elapid/core/host_room.h"
#include "elapid/model/model.h"
#include "elapid/ops/matmul/codes.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace elapid {

// What a matrix of `stored` type is held in when `asked`, or nothing, is asked for the model's. `info` may be that of a
// table from which the head is packed.
Precision precision_for(const ParameterInfo& info, DType stored, std::optional<Precision> asked);

class ModelBuilder {
 public:
  // Some rows of a parameter in the checkpoint's form, as a matrix (see as_matrix() in checkpoint_rules.h); may be
  // columns of a wider one. `file` keeps it alive and is null for memory that lasts only until the next parameter.
  struct Part {
    Tensor rows;
    std::shared_ptr<const MappedFile> file;
    // Where the file has codes: these rows, which then have no data, only the type and shape that they decode to. No
    // scales are needed as long as values are not.
    std::shared_ptr<const CodedRows> coded{};
  };
  // One parameter: its parts' rows, one after another. Parameters of the same key, unless it is empty, are one in
  // memory.
  struct Source {
    std::vector<Part> parts;
    std::string key{};
  };
  // Called twice for every parameter: first with values = false, when only dtype, shape and file are looked at (memory
  // is sized before it is filled), then with true, right before they are copied.
  using Find = std::function<Source(const ParameterInfo&, bool values)>;

  // `precision` and `device` as LoadOptions'. In a device's memory, matrices are rows of f32 or bf16, copied there a
  // part at a time: host memory never holds them all. An Error when the device is not there.
  ModelBuilder(ModelConfig config, ThreadPool& threads, std::optional<Precision> precision, Device device = {});

  // A file that holds all of the model's own memory already, and where in it that begins, or nothing. `layout` tells
  // where everything lies in it and which of a checkpoint's tensors it is.
  struct Packed {
    std::shared_ptr<const MappedFile> file;
    const void* memory = nullptr;
  };
  using FindPacked = std::function<Packed(const std::string& layout, int64_t bytes)>;

  // Fills every parameter. Called once, before finish(). `find_packed` is for host memory.
  void fill(const Find& find, const FindPacked& find_packed = {});
  // The model's own memory.
  [[nodiscard]] Bytes memory() const { return {static_cast<const std::byte*>(memory_), static_cast<size_t>(bytes_)}; }
  // Adds to what a person should know about how the model was loaded.
  void note(std::string text);
  // `fingerprint` is called when a state meets a file.
  std::unique_ptr<Model> finish(std::function<std::string()> fingerprint);

 private:
  // What the matrix of a parameter, or the head that is packed from a table, is held in.
  [[nodiscard]] Precision precision_of(const ParameterInfo& info, const Source& source) const;
  [[nodiscard]] int64_t memory_of(const ParameterInfo& info, const Source& source) const;
  void place(const ParameterInfo& info, const Source& source);
  Tensor pack(const ParameterInfo& info, const Source& source, Precision precision, const std::string& name);
  // Rows of `dtype` in the device's memory.
  Tensor put_rows(const Source& source, Shape shape, DType dtype);
  void* take(int64_t bytes);

  std::unique_ptr<Model> model_;
  ThreadPool& threads_;
  std::optional<Precision> precision_;
  Device device_;
  HostRoom staging_;  // for what is copied to the device
  void* memory_ = nullptr;
  int64_t bytes_ = 0, used_ = 0;
  bool packed_ = false;  // what memory_ is to hold is there already
};

}  // namespace elapid
