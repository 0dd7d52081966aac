#pragma once

// What transformers calls the parameters of a body, where its classes agree with each other.

#include "elapid/model/families/family.h"

namespace elapid {

// The parameters of `body` in the block that `ours` names ("blocks.3."), which the checkpoint keeps under `theirs`
// ("backbone.layers.3.mixer.").
void name_body(NameTable& table, const BodyConfig& body, const std::string& ours, const std::string& theirs);

// Those of a Mamba-2 mixer besides its two projections; `ours` ends in "mamba2.".
void name_mamba2_rest(NameTable& table, const Mamba2Config& c, const std::string& ours, const std::string& theirs);

// A whole model of Mamba's build: backbone.layers.N holds norm and mixer, and a second body, the expert that all tokens
// take, is mixer.shared_experts; norm_f and lm_head follow.
NameTable backbone_names(const ModelConfig& config);

// A whole decoder of Llama's build: model.layers.N holds input_layernorm and mamba or self_attn (or both), then
// `second_norm` and what `feeding` ("feed_forward.") holds; `final_norm` and lm_head follow.
void name_decoder(NameTable& table, const ModelConfig& config, const std::string& second_norm,
                  const std::string& feeding, const std::string& final_norm);

}  // namespace elapid
