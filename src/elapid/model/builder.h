#pragma once

// ModelBuilder: puts weights, wherever they come from, into the memory form that each parameter's role asks for.

#include "elapid/model/model.h"

#include <functional>
#include <memory>
#include <string>

namespace elapid {

class ModelBuilder {
 public:
  // One parameter in the checkpoint's form; `file` keeps it alive and is null for memory that lasts only until the next
  // one.
  struct Source {
    Tensor tensor;
    std::shared_ptr<const MappedFile> file;
  };
  // Called twice for every parameter: first with values = false, when only dtype, shape and file are looked at (memory
  // is sized before it is filled), then with true, right before they are copied.
  using Find = std::function<Source(const ParameterInfo&, bool values)>;

  ModelBuilder(ModelConfig config, ThreadPool& threads);

  // Fills every parameter. Called once, before finish().
  void fill(const Find& find);
  // `fingerprint` is called when a state meets a file.
  std::unique_ptr<Model> finish(std::function<std::string()> fingerprint);

 private:
  void place(const ParameterInfo& info, const Source& source);
  void* take(int64_t bytes);

  std::unique_ptr<Model> model_;
  ThreadPool& threads_;
  int64_t used_ = 0;
};

}  // namespace elapid
