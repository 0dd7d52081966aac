#include "elapid/model/families/rope.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <string_view>

namespace elapid {
namespace {

using Frequencies = std::vector<double>;

// What some type reads; "finetuned" says who trained the model.
constexpr std::array<std::string_view, 15> kKeys = {
    "attention_factor",      "beta_fast",       "beta_slow", "factor",         "finetuned",
    "high_freq_factor",      "low_freq_factor", "mscale",    "mscale_all_dim", "original_max_position_embeddings",
    "partial_rotary_factor", "rope_theta",      "rope_type", "truncate",       "type"};

class Rope {
 public:
  Rope(const Json& json, int64_t rotary_dim, int64_t max_positions, const std::string& what)
      : json_(json), what_(what), dim_(rotary_dim), max_positions_(max_positions) {
    base_ = positive("rope_theta");
    for (int64_t i = 0; i < dim_; i += 2) {
      frequencies_.push_back(std::pow(base_, -static_cast<double>(i) / static_cast<double>(dim_)));
    }
  }

  void apply(AttentionConfig& attention) {
    const std::string type = text("rope_type", text("type", "default"));
    if (type == "linear") {
      const double factor = positive("factor");
      for (double& f : frequencies_) f /= factor;
    } else if (type == "llama3") {
      llama3();
    } else if (type == "yarn") {
      yarn(attention);
    } else {
      require(type == "default", what_, ": rope_type must be default, linear, llama3 or yarn, got ", quote(type));
    }
    for (const auto& [key, value] : json_.items()) {
      require(std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end(), what_, ": ", key,
              ": must be a key that this engine knows, got ", describe(value));
    }
    for (const double f : frequencies_) {
      require(std::abs(f) <= std::numeric_limits<float>::max(), what_,
              ": frequencies must be finite, got another from rope_theta ", base_);
    }
    attention.inverse_frequencies.assign(frequencies_.begin(), frequencies_.end());
  }

 private:
  [[nodiscard]] std::string text(const char* key, const std::string& otherwise) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null()) return otherwise;
    require(found->is_string(), what_, ": ", key, " must be a string, got ", describe(*found));
    return found->get<std::string>();
  }
  [[nodiscard]] bool has(const char* key) const {
    const auto found = json_.find(key);
    return found != json_.end() && !found->is_null();
  }
  [[nodiscard]] double positive(const char* key) const {
    require(has(key), what_, ": must have ", key, ", got none");
    const double value = json_number(json_.at(key), concat(what_, ": ", key));
    require(value > 0 && std::isfinite(value), what_, ": ", key, " must be positive and finite, got ", value);
    return value;
  }
  [[nodiscard]] double positive(const char* key, double otherwise) const {
    return has(key) ? positive(key) : otherwise;
  }

  // Long waves are stretched, short ones are not, and those between in part.
  void llama3() {
    const double factor = positive("factor"), low = positive("low_freq_factor"), high = positive("high_freq_factor");
    const double context = positive("original_max_position_embeddings");
    require(low != high, what_, ": low_freq_factor must differ from high_freq_factor, got ", low);
    for (double& f : frequencies_) {
      const double wave = 2 * std::numbers::pi / f;
      if (wave > context / low) {
        f /= factor;
      } else if (wave >= context / high) {
        const double smooth = (context / wave - low) / (high - low);
        f = (1 - smooth) * f / factor + smooth * f;
      }
    }
  }

  // Peng et al. 2023, arXiv 2309.00071.
  void yarn(AttentionConfig& attention) {
    require(base_ > 1, what_, ": rope_theta must be above 1 for yarn, got ", base_);
    const double context = positive("original_max_position_embeddings");
    const double factor = positive("factor", static_cast<double>(max_positions_) / context);
    const auto scale = [&](double by) { return factor <= 1 ? 1 : 0.1 * by * std::log(factor) + 1; };
    double sharpened = scale(1);
    if (has("mscale") && has("mscale_all_dim"))
      sharpened = scale(positive("mscale")) / scale(positive("mscale_all_dim"));
    sharpened = positive("attention_factor", sharpened);
    require(sharpened <= std::numeric_limits<float>::max(), what_, ": attention_factor must be finite, got ",
            sharpened);
    attention.rotary_scaling = static_cast<float>(sharpened);
    // The dimension that turns so often over the original context.
    const auto dimension = [&](double turns) {
      return static_cast<double>(dim_) * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(base_));
    };
    double low = dimension(positive("beta_fast", 32)), high = dimension(positive("beta_slow", 1));
    require(!has("truncate") || json_.at("truncate").is_boolean(), what_, ": truncate must be true or false, got ",
            has("truncate") ? describe(json_.at("truncate")) : "");
    if (!has("truncate") || json_.at("truncate") != false) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(dim_ - 1));
    if (low == high) high += 0.001;
    for (size_t i = 0; i < frequencies_.size(); ++i) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequencies_[i] = frequencies_[i] / factor * ramp + frequencies_[i] * (1 - ramp);
    }
  }

  const Json& json_;
  const std::string& what_;
  int64_t dim_, max_positions_;
  double base_ = 0;
  Frequencies frequencies_;
};

}  // namespace

void set_rope(AttentionConfig& attention, const Json& rope, int64_t rotary_dim, int64_t max_positions,
              const std::string& what) {
  require(rotary_dim % 2 == 0 && rotary_dim <= attention.head_dim, what, ": must rotate an even number of a head's ",
          attention.head_dim, " elements, got ", rotary_dim);
  Rope(rope, rotary_dim, max_positions, what).apply(attention);
}

}  // namespace elapid
