#pragma once

// Fields of the JSON objects in tokenizer files, with errors that name them. nlohmann-json's own accessors assume types
// that a hostile file need not have.

#include "elapid/core/error.h"
#include "elapid/io/json.h"

#include <cstdint>
#include <string>
#include <vector>

namespace elapid {

inline const Json& object_field(const Json& object, const char* key, const std::string& what) {
  require(object.is_object(), what, " must be an object, got ", object.type_name());
  const auto found = object.find(key);
  require(found != object.end(), what, ": the field \"", key, "\" is missing");
  return *found;
}

inline bool has_field(const Json& object, const char* key) {
  return object.is_object() && object.contains(key) && !object.at(key).is_null();
}

inline std::string string_field(const Json& object, const char* key, const std::string& what) {
  const Json& value = object_field(object, key, what);
  require(value.is_string(), what, ": \"", key, "\" must be a string, got ", value.type_name());
  return value.get<std::string>();
}

inline bool bool_field(const Json& object, const char* key, bool otherwise, const std::string& what) {
  if (!has_field(object, key)) return otherwise;
  const Json& value = object.at(key);
  require(value.is_boolean(), what, ": \"", key, "\" must be true or false, got ", value.type_name());
  return value.get<bool>();
}

inline const std::vector<Json>& array_field(const Json& object, const char* key, const std::string& what) {
  const Json& value = object_field(object, key, what);
  require(value.is_array(), what, ": \"", key, "\" must be an array, got ", value.type_name());
  return value.get_ref<const Json::array_t&>();
}

// One character, as UTF-8.
inline std::string character_field(const Json& object, const char* key, const std::string& what) {
  const std::string value = string_field(object, key, what);
  const auto is_lead = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  int64_t characters = 0;
  for (const char c : value) characters += is_lead(c);
  require(characters == 1, what, ": \"", key, "\" must be one character, got ", quote(value));
  return value;
}

}  // namespace elapid
