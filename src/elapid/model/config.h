#pragma once

// ModelConfig: a model as data. Families map a checkpoint's config.json to it.

#include "elapid/core/dtype.h"
#include "elapid/nn/block.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

// How a folder's matrices are stored, where it is not as numbers; see model/quantization.h.
struct Quantization {
  enum class Method : uint8_t { elapid, bitsandbytes };
  Method method;
  int bits;          // 8 or 4
  std::string code;  // "int8", "nf4" or "fp4"
};
std::string_view name_of(Quantization::Method method);

struct ModelConfig {
  std::string family;  // the checkpoint's model_type
  int64_t vocab = 0, d_model = 0;
  NormConfig norm;
  bool tied_head = true;
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  // Of embeddings that a caller gives in place of ids: some families scale those, too, others the table's rows alone.
  float given_embedding_scale = 1;
  std::vector<BlockConfig> blocks;

  float router_aux_loss_coef = 0;  // share of the experts' auxiliary loss in the training loss
  int64_t shared_blocks = 0;       // how many sets of parameters the shared blocks take turns with; 0: none is shared

  // The checkpoint's layers; one may be several blocks.
  [[nodiscard]] int64_t layers() const { return blocks.empty() ? 0 : blocks.back().layer + 1; }

  // Not mathematics, but what comes with it.
  std::optional<Quantization> quantization;
  int64_t tokens = 0;                     // ids that exist, where the vocabulary is padded; 0: all
  std::vector<int64_t> eos_ids;           // config.json's eos_token_id
  std::optional<DType> torch_dtype;       // what random weights are made of
  std::vector<std::string> unknown_keys;  // of config.json: neither mapped nor known to be harmless
  std::vector<std::string> notes;         // what a person should know about how the checkpoint was read
};

// config.json as text → ModelConfig; `what` names it in errors. Fuzzed.
ModelConfig parse_config(std::string_view text, const std::string& what);

}  // namespace elapid
