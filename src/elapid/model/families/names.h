#pragma once

// What transformers calls the parameters of a body, where its classes agree with each other.

#include "elapid/model/families/family.h"

namespace elapid {

// The parameters of `body` in the block that `ours` names ("blocks.3."), which the checkpoint keeps under `theirs`
// ("backbone.layers.3.mixer.").
void name_body(NameTable& table, const BodyConfig& body, const std::string& ours, const std::string& theirs);

}  // namespace elapid
