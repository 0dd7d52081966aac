#pragma once

// ConfigReader: reads the keys of a config.json and keeps account of them, so that a key which nobody read is noticed.

#include "elapid/io/json.h"
#include "elapid/model/config.h"

#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <string_view>

namespace elapid {

// A number that float32 holds as a finite one; an Error naming `what` otherwise.
double finite_number(const Json& value, const std::string& what);

class ConfigReader {
 public:
  ConfigReader(const Json& json, const std::string& what);

  // Upper bounds that no checkpoint comes near, but which keep every product of sizes within 64 bits.
  static constexpr int64_t kMostLayers = 1 << 14, kMostSize = 1 << 24, kMostVocab = std::numeric_limits<int32_t>::max();

  // A key of our own, which convert writes where the vocabulary is padded: how many ids exist.
  static constexpr const char* kTokens = "unpadded_vocab_size";

  // The key's value, or `otherwise` when it is absent or null. Errors name file, key, rule and value.
  int64_t integer(const std::string& key, int64_t otherwise, int64_t minimum, int64_t maximum);
  double number(const std::string& key, double otherwise);  // finite
  bool boolean(const std::string& key, bool otherwise);
  std::string text(const std::string& key, const std::string& otherwise);
  // A list of integers, or one integer; empty when absent.
  std::vector<int64_t> integers(const std::string& key, int64_t minimum = std::numeric_limits<int64_t>::min(),
                                int64_t maximum = std::numeric_limits<int64_t>::max());
  // The value itself, null when absent.
  const Json& value(const std::string& key);
  // The key exists but does not change what is computed.
  void harmless(std::initializer_list<std::string_view> keys);

  [[nodiscard]] std::string name_of_key(const std::string& key) const { return what_ + ": " + key; }

  // For an object inside the configuration: a key that nobody read is an Error.
  void finish_part();

  // Fills what every family shares (eos_ids, torch_dtype, tokens) and unknown_keys. A key that no family reads here but
  // that is known to change the mathematics somewhere is an Error unless its value says "off".
  void finish(ModelConfig& config);

 private:
  const Json& json_;
  std::string what_;
  std::set<std::string, std::less<>> read_;
};

}  // namespace elapid
