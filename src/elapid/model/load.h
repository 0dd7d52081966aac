#pragma once

// Checkpoint → Model.

#include "elapid/model/model.h"

#include <filesystem>
#include <memory>

namespace elapid {

// Loads a folder: config.json, and the weights in any form that Checkpoint opens. `threads` pack them. Missing or
// unknown tensors, shapes that do not follow from the config, config keys that change the mathematics in a way this
// engine does not compute: each is an Error that names it.
std::unique_ptr<Model> load_model(const std::filesystem::path& folder, ThreadPool& threads);

// The config.json of a folder alone.
ModelConfig load_config(const std::filesystem::path& folder);

// A model with random weights, to measure speed: never zeros, of the config's torch_dtype (f32 when it names none),
// initialized so that activations stay finite at any depth. Same seed, same weights.
std::unique_ptr<Model> random_model(const ModelConfig& config, ThreadPool& threads, uint64_t seed = 1);

}  // namespace elapid
