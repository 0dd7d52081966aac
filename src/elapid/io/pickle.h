#pragma once

// Python's pickle format as torch.save writes it (protocols 2 to 5), read as data. A pickle is a program that builds
// objects by calling what it names; here a name must be on the reader's list, and a call is recorded, never made.
// Memory is a small multiple of the pickle's own size whatever it says, and nothing recurses.

#include "elapid/io/file.h"

#include <cstdint>
#include <iosfwd>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,      // that fits 64 bits
    big_integer,  // text: its bytes, little-endian two's complement
    real,         // without its value: no reader has asked for one
    text,
    bytes,
    tuple,
    list,
    dict,        // also collections.OrderedDict; attributes that were set on it are dropped
    global,      // number: its index on the reader's list
    call,        // items: the global and the tuple of arguments
    persistent,  // an object stored elsewhere; items: those of the tuple that identifies it
  };
  Kind kind = Kind::none;
  int64_t number = 0;     // boolean and integer: the value; what has items: where they are
  std::string_view text;  // text, bytes, big_integer: a view of the pickle
};

class Pickle {
 public:
  using Kind = PickleValue::Kind;

  // Runs the pickle at the beginning of `bytes`, which must outlive the object. `globals` are the names that it may
  // mention, as "module.name", besides collections.OrderedDict. `what` names it in errors.
  Pickle(Bytes bytes, std::span<const std::string_view> globals, const std::string& what);

  [[nodiscard]] const PickleValue& root() const { return root_; }
  // Bytes up to and including the last operation.
  [[nodiscard]] int64_t size() const { return size_; }
  // Of a tuple, list, dict (key, value, key, value, …), call or persistent. Objects may contain themselves.
  [[nodiscard]] std::span<const PickleValue> items(const PickleValue& value) const;
  // All of kind persistent, also those that nothing refers to any more.
  [[nodiscard]] std::span<const PickleValue> persistents() const { return persistents_; }
  // Numbers of values that have items are below this.
  [[nodiscard]] int64_t count_nodes() const { return std::ssize(nodes_); }

 private:
  friend class PickleMachine;
  std::vector<std::vector<PickleValue>> nodes_;
  std::vector<PickleValue> persistents_;
  PickleValue root_;
  int64_t size_ = 0;
};

// For errors: a dict, None, 12, "some text".
std::ostream& operator<<(std::ostream& out, const PickleValue& value);

}  // namespace elapid
