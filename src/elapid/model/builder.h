#pragma once

// ModelBuilder: puts weights, wherever they come from, into the memory form that each parameter's role asks for.

#include <functional>
#include <memory>
#include <string>

#include "elapid/model/model.h"

namespace elapid {

class ModelBuilder {
 public:
  // One parameter in the checkpoint's form; `file` keeps it alive and is null for memory that lasts only for the call.
  struct Source {
    Tensor tensor;
    std::shared_ptr<const MappedFile> file;
  };
  using Find = std::function<Source(const ParameterInfo&)>;

  ModelBuilder(ModelConfig config, ThreadPool& threads);

  // Fills every parameter with what `find` returns for it. Called once, before finish().
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
