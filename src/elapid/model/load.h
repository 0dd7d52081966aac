#pragma once

// Checkpoint → Model.

#include "elapid/model/model.h"

#include <filesystem>
#include <memory>
#include <optional>

namespace elapid {

// What the gated norm of a Mamba-2 mixer with several groups covers.
enum class GatedNorm : uint8_t { group, whole };

struct LoadOptions {
  std::optional<GatedNorm> gated_norm{};  // else as the checkpoint was trained, as far as its folder tells
  // Of the matrices. f32 is the reference path; empty: as stored where that is quantized in groups that are ours, bf16
  // where it is bf16 or f16, else f32.
  std::optional<Precision> precision = Precision::f32;
  // A folder that keeps packed weights, see packed_cache.h. That they could not be kept is among the model's notes.
  std::optional<std::filesystem::path> packed_cache{};
  bool verify_packed = false;  // read all that was kept, instead of its header alone
  // Where the weights go and the model runs. On CUDA f32 or bf16, and nothing is kept packed.
  Device device{};
};

// Loads a folder: config.json, and the weights in any form that Checkpoint opens. `threads` pack them. Missing or
// unknown tensors, shapes that do not follow from the config, config keys that change the mathematics in a way this
// engine does not compute: each is an Error that names it.
std::unique_ptr<Model> load_model(const std::filesystem::path& folder, ThreadPool& threads,
                                  const LoadOptions& options = {});

// The configuration of a folder alone: config.json, or params.json where the weights are Mistral's.
ModelConfig load_config(const std::filesystem::path& folder, const LoadOptions& options = {});

// A model with random weights, to measure speed: never zeros, of the config's torch_dtype (f32 when it names none),
// initialized so that activations stay finite at any depth. Same seed, same weights.
std::unique_ptr<Model> random_model(const ModelConfig& config, ThreadPool& threads, uint64_t seed = 1,
                                    std::optional<Precision> precision = Precision::f32, Device device = {});

}  // namespace elapid
