#pragma once

// What the configurations of several families say in the same words.

#include "elapid/model/families/config_reader.h"

namespace elapid {

// A norm's epsilon: finite and not negative.
float read_epsilon(ConfigReader& reader, const std::string& key, double otherwise);

// An activation by transformers' name.
Activation read_activation(ConfigReader& reader, const std::string& key, const std::string& otherwise);

// [smallest, largest] time step, the largest may be infinite; 0 to infinity when absent.
void read_time_step_limit(ConfigReader& reader, const std::string& key, Mamba2Config& mixer);

// Zamba2 and Nemotron-H clamp time steps from below at time_step_min, which elsewhere is initialization's alone.
void read_time_step_floor(ConfigReader& reader, Mamba2Config& mixer);

// Whether the two sizes multiply to the third, and all of it stays within bounds. An Error names the key.
void check_mixer(const ConfigReader& reader, const std::string& key, const Mamba2Config& mixer, int64_t d_inner);

// The Mamba-2 mixer of Bamba, Granite and Falcon-H1 (mamba_n_heads, mamba_d_head, …), over `d_inner` channels. The
// gated norm covers all of them.
Mamba2Config read_bamba_mixer(ConfigReader& reader, int64_t d_model, int64_t d_inner, float eps);

// Mamba-1's mixer (state_size, conv_kernel, time_step_rank, …), or with Jamba's prefix: "mamba_d_state",
// "mamba_d_conv".
struct Mamba1Keys {
  std::string d_state, d_conv, dt_rank, expand, proj_bias, conv_bias;
};
Mamba1Config read_mamba1_mixer(ConfigReader& reader, const Mamba1Keys& keys, int64_t d_model);

// Attention from d_in (0: d_model) to d_model: num_attention_heads (`heads` when absent), num_key_value_heads
// (`kv_heads`; 0: as many as heads), head_dim (`head_dim`; 0: d_in / heads), scale 1/√head_dim, no biases, no rotation.
AttentionConfig read_attention(ConfigReader& reader, int64_t d_model, int64_t heads, int64_t kv_heads,
                               int64_t head_dim = 0, int64_t d_in = 0);

// Rotation of the first `share` of each head: rope_parameters, or rope_theta and rope_scaling of earlier releases.
void read_rope(ConfigReader& reader, AttentionConfig& attention, double otherwise_theta, double share);

// A list of `layers` names, each of them in `known`, earlier releases' names replaced by today's ("mamba" by
// "linear_attention", "attention" by "full_attention"); `otherwise` when absent. layers = 0: as long as it is.
std::vector<std::string> read_layer_types(ConfigReader& reader, std::initializer_list<std::string> keys, int64_t layers,
                                          const std::vector<std::string>& known,
                                          const std::vector<std::string>& otherwise);

}  // namespace elapid
